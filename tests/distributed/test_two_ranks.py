"""Two processes under torchrun compute the same as one process, step by step."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import fresh_home, small_config
from tests.other_models import directory_of
from vlm_core.config import Config
from vlm_core.files import read_json, read_json_lines
from vlm_core.finetune import finetune
from vlm_core.run_directory import (
    CONFIG,
    EVALUATION,
    EXAMPLES,
    LATEST,
    METRICS,
    PREDICTIONS,
    PROGRESS,
    REPORT,
    RESULT,
    SAMPLES,
    VALIDATION,
)
from vlm_core.training.distributed import Ranks

pytestmark = pytest.mark.slow


def torchrun(module: str, *arguments: str, processes: int = 2) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*start, "-m", module, *arguments]


def command(processes: int, module: str, directory: Path, conversations: Path, *arguments: str) -> list[str]:
    common = ["--config", str(directory / CONFIG), "--conversations", str(conversations)]
    return torchrun(module, *common, *arguments, processes=processes)


def configure(directory: Path, **overrides: Any) -> Config:
    """Writes the config of a run to `directory`, and returns it."""
    directory.mkdir()
    config = small_config(
        **{
            "checkpoint.checkpoint_dir": str(directory),
            # 340 rows in batches of 48 leave 4 for the eighth step: with two ranks of 3 rows, a full and a part batch.
            "step_scheduler.global_batch_size": 48,
            "step_scheduler.local_batch_size": 3,
            "step_scheduler.max_steps": 8,
            "evaluation.limit": 31,
            "evaluation.batch_size": 8,
        }
        | overrides
    )
    (directory / CONFIG).write_text(config.to_yaml())
    return config


def run_on_two(conversations: Path, *directories: Path) -> str:
    """Trains in each of the directories on two ranks, and returns the log."""
    configs = [str(directory / CONFIG) for directory in directories]
    job = torchrun("tests.distributed.trainings", str(conversations), *configs)
    done = subprocess.run(job, timeout=550, env=os.environ, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


LIVE = {"freeze_config.freeze_vision_tower": False}  # otherwise the features are cached
PLAIN = {"packing.enabled": False} | LIVE
LORA = {"peft.dim": 4, "packing.max_tokens": 200}
QWEN = {"model.pretrained_model_name_or_path": "builtin:tiny-qwen2_5_vl", "optimizer.lr": 1e-4}
GEMMA3N = {"model.pretrained_model_name_or_path": "builtin:tiny-gemma3n", "optimizer.lr": 1e-4}

SHARDED = {"compute.strategy": "fsdp2"}


TUNINGS = {
    "plain": PLAIN,
    "nf4-lora-cached": LORA | {"model.quantization": "nf4"},
    "3n-packed": GEMMA3N | LIVE,
    "3n-lora-cached": GEMMA3N | LORA,
    "qwen-packed": QWEN | LIVE,
    "qwen-lora-cached": QWEN | LORA | {"peft.exclude_modules": ["*visual*"]},
    # A generic model. Its forward pass skips the tower's last layer, so DDP must not wait for its gradients.
    "llava": LIVE,
}
LIMITS = {"ddp": 1e-6, "fsdp2": 1e-5}


def tuning_of(name: str) -> dict[str, Any]:
    model = {"model.pretrained_model_name_or_path": str(directory_of("llava"))} if name == "llava" else {}
    return TUNINGS[name] | model


@pytest.fixture(scope="module")
def on_two(conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directories of all tunings and strategies, trained on two ranks in one job, since a start takes long."""
    root = tmp_path_factory.mktemp("two")
    for name in TUNINGS:
        for strategy in LIMITS:
            # Each rank reads ahead in another process, as on GPUs.
            overrides = {"dataloader.num_workers": 1, "compute.strategy": strategy}
            configure(root / f"{name}-{strategy}", **tuning_of(name), **overrides)
    run_on_two(conversations, *(directory for directory in sorted(root.iterdir())))
    return root


@pytest.mark.parametrize("name", TUNINGS)
def test_two_ranks_equal_one(name: str, on_two: Path, conversations: Path, tmp_path: Path) -> None:
    finetune(configure(tmp_path / "one", **tuning_of(name)), Ranks(), conversations)
    for strategy, limit in LIMITS.items():
        require_equal_curves(tmp_path / "one", on_two / f"{name}-{strategy}", rel=limit)
        assert read_json(on_two / f"{name}-{strategy}" / RESULT)["steps"] == 8


def require_equal_curves(one: Path, two: Path, rel: float) -> None:
    for name, keys in ((METRICS, ("step", "loss", "grad_norm", "lr", "supervised_tokens")), (VALIDATION, ("loss",))):
        first, second = (read_json_lines(run / name)[0] for run in (one, two))
        assert len(first) == len(second) > 0
        for a, b in zip(first, second, strict=True):
            assert [a[key] for key in keys] == pytest.approx([b[key] for key in keys], rel=rel)


FULL = {"freeze_config.freeze_embeddings": False, "compute.gradient_checkpointing": True}


@pytest.mark.parametrize(
    "tuning", [FULL | {"checkpoint.model_save_format": "torch_save"}, LORA], ids=["full-dcp", "lora"]
)
def test_one_process_resumes_from_a_sharded_checkpoint(
    tuning: dict[str, Any], conversations: Path, tmp_path: Path
) -> None:
    saving = {"step_scheduler.ckpt_every_steps": 4, "checkpoint.is_async": True}
    configure(tmp_path / "1", **tuning, **SHARDED, **saving)
    output = run_on_two(conversations, tmp_path / "1")
    (share,) = re.findall(r"fsdp2: each process holds ([\d,]+) of ([\d,]+) parameters", output)
    held, total = (int(number.replace(",", "")) for number in share)
    assert held <= 0.51 * total
    middle = {"checkpoint.restore_from": str(tmp_path / "1" / "epoch_0_step_4")}
    finetune(configure(tmp_path / "2", **tuning, **middle), Ranks(), conversations)
    whole, rest = (read_json_lines(tmp_path / run / METRICS)[0] for run in "12")
    assert [r["loss"] for r in rest] == pytest.approx([r["loss"] for r in whole[4:]], rel=1e-5)
    samples = [read_json_lines(tmp_path / run / SAMPLES)[0] for run in "12"]
    assert samples[0] == samples[1]


def test_two_ranks_share_the_images_to_encode(conversations: Path, tmp_path: Path) -> None:
    from vlm_core.models.feature_store import FeatureStore

    features = []
    for processes in (1, 2):
        home = tmp_path / f"home-{processes}"
        (tmp_path / CONFIG).write_text(small_config().to_yaml())
        job = command(processes, "vlm_core.encode", tmp_path, conversations)
        subprocess.run(job, check=True, timeout=300, env=os.environ | {"MEDPIX_HOME": str(home)})
        (store,) = home.glob("cache/vision/*")
        assert len(list(store.glob("*.arrow"))) == processes  # each rank writes one
        features.append(FeatureStore(store))
    hashes = sorted(features[0].places)
    assert len(hashes) == 40
    assert sorted(features[1].places) == hashes
    pairs = zip(*(store.read(hashes) for store in features), strict=True)
    assert max(float((one - two).abs().max()) for one, two in pairs) < 1e-5


def test_sigterm_saves_and_the_same_command_resumes(conversations: Path, tmp_path: Path) -> None:
    configure(tmp_path / "whole", **{"step_scheduler.max_steps": 16, "step_scheduler.num_epochs": 3})
    run_on_two(conversations, tmp_path / "whole")
    (tmp_path / "stopped").mkdir()
    config = (tmp_path / "whole" / CONFIG).read_text().replace(f"{tmp_path}/whole", f"{tmp_path}/stopped")
    (tmp_path / "stopped" / CONFIG).write_text(config)
    job = subprocess.Popen(command(2, "vlm_core.finetune", tmp_path / "stopped", conversations), env=os.environ)
    while len(read_json_lines(tmp_path / "stopped" / METRICS)[0]) < 3:
        assert job.poll() is None
        time.sleep(0.05)
    job.terminate()
    assert job.wait(60) != 0
    progress = read_json(tmp_path / "stopped" / LATEST / PROGRESS)
    assert 3 <= progress["step"] < 16
    subprocess.run(command(2, "vlm_core.finetune", tmp_path / "stopped", conversations), check=True, env=os.environ)
    whole, stopped = (read_json_lines(tmp_path / run / METRICS)[0] for run in ("whole", "stopped"))
    assert [(r["step"], r["loss"]) for r in stopped] == [(r["step"], r["loss"]) for r in whole]


def test_two_ranks_evaluate_as_one(conversations: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    finetune(configure(tmp_path / "run"), Ranks(), conversations)
    scores, rows = [], []
    for processes in (1, 2):
        output = tmp_path / "run" / f"{EVALUATION}-{processes}"
        arguments = ["--checkpoint-path", str(tmp_path / "run" / LATEST), "--output-dir", str(output)]
        job = command(processes, "vlm_core.evaluate", tmp_path / "run", conversations, *arguments)
        home = fresh_home(tmp_path / f"home-{processes}")  # otherwise the second one finds all answers in the cache
        subprocess.run(job, check=True, timeout=300, env=os.environ | {"MEDPIX_HOME": str(home)})
        assert sorted(path.name for path in output.iterdir()) == [EXAMPLES, PREDICTIONS, REPORT, RESULT]
        scores.append({k: v for k, v in read_json(output / RESULT).items() if k != "seconds"})
        rows.append(pq.read_table(output / PREDICTIONS).to_pylist())
    assert scores[0] == scores[1]
    assert json.dumps(rows[0]) == json.dumps(rows[1])
    assert set(scores[0]["scores"]) == {"model", "shuffled", "blank", "question_only", "commonest", "base"}
    assert (scores[0]["examples"], scores[0]["limit"]) == (31, 31)
