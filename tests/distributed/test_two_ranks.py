"""Two processes under torchrun are one process, step by step."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import small_config
from vlm_core.files import read_json, read_json_lines
from vlm_core.run_directory import CONFIG, EVALUATION, EXAMPLES, LATEST, METRICS, PREDICTIONS, RESULT, VALIDATION

pytestmark = pytest.mark.slow


def torchrun(processes: int, module: str, directory: Path, *arguments: str) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
            *("-m", module, "--config", str(directory / CONFIG), *arguments),
        ],
        check=True,
        timeout=300,
        env=os.environ,
    )


def run(directory: Path, processes: int, conversations: Path, **overrides: Any) -> None:
    directory.mkdir()
    config = small_config(
        **{
            "checkpoint.checkpoint_dir": str(directory),
            # 340 rows in batches of 48 leave 4 for the eighth step: with two ranks of 3 rows, a full and a part batch.
            "step_scheduler.global_batch_size": 48,
            "step_scheduler.local_batch_size": 3,
            "step_scheduler.max_steps": 8,
            "evaluation.limit": 31,
        }
        | overrides
    )
    (directory / CONFIG).write_text(config.to_yaml())
    torchrun(processes, "vlm_core.finetune", directory, "--conversations", str(conversations))


GEMMA3N = {"model.pretrained_model_name_or_path": "builtin:tiny-gemma3n", "optimizer.lr": 1e-4}


@pytest.mark.parametrize(
    "tuning", [{}, {"peft.dim": 4}, GEMMA3N, GEMMA3N | {"peft.dim": 4}], ids=["full", "lora", "3n-full", "3n-lora"]
)
def test_two_ranks_equal_one(tuning: dict[str, Any], conversations: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        run(tmp_path / str(processes), processes, conversations, **tuning)
    for name, keys in ((METRICS, ("step", "loss", "grad_norm", "lr", "supervised_tokens")), (VALIDATION, ("loss",))):
        one, two = (read_json_lines(tmp_path / run / name)[0] for run in "12")
        assert len(one) == len(two) > 0
        for a, b in zip(one, two, strict=True):
            assert [a[key] for key in keys] == pytest.approx([b[key] for key in keys], rel=1e-6)
    assert read_json(tmp_path / "2" / RESULT)["steps"] == 8


def test_two_ranks_evaluate_as_one(conversations: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    run(tmp_path / "run", 1, conversations)
    scores, rows = [], []
    for processes in (1, 2):
        output = tmp_path / "run" / f"{EVALUATION}-{processes}"
        arguments = ["--checkpoint-path", str(tmp_path / "run" / LATEST), "--output-dir", str(output)]
        torchrun(processes, "vlm_core.evaluate", tmp_path / "run", *arguments, "--conversations", str(conversations))
        assert sorted(path.name for path in output.iterdir()) == [EXAMPLES, PREDICTIONS, RESULT]
        scores.append({k: v for k, v in read_json(output / RESULT).items() if k != "seconds"})
        rows.append(pq.read_table(output / PREDICTIONS).to_pylist())
    assert scores[0] == scores[1]
    assert json.dumps(rows[0]) == json.dumps(rows[1])
    assert (scores[0]["examples"], scores[0]["limit"]) == (31, 31)
