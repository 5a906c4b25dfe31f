"""Two processes under torchrun compute the same as one process, step by step.

One torchrun job runs on two ranks what all tests need (`on_two`). Each test compares its part with one process.
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import fresh_home, small_config
from tests.distributed.jobs import job, loss_broken_at, write_jobs
from tests.other_models import directory_of
from vlm_core.config import Config
from vlm_core.data.prepare import prepare_conversations
from vlm_core.encode import encode
from vlm_core.evaluate import evaluate
from vlm_core.files import read_json, read_json_lines
from vlm_core.finetune import finetune
from vlm_core.recipe import load_config
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
from vlm_core.training.distributed import STEP_WAIT, Ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the first test waits for the jobs of all

STEPS = "step_scheduler.max_steps"


def torchrun(module: str, *arguments: str) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [*start, "-m", module, *arguments]


def configure(directory: Path, **overrides: Any) -> Config:
    """Writes the config of a run to `directory`, and returns it."""
    directory.mkdir()
    config = small_config(
        **{
            "checkpoint.checkpoint_dir": str(directory),
            # 100 rows in batches of 24 leave 4 for the fifth step: with two ranks of 3 rows, a full and a part batch.
            "step_scheduler.global_batch_size": 24,
            "step_scheduler.local_batch_size": 3,
            STEPS: 5,
            "evaluation.limit": 13,
            "evaluation.batch_size": 4,
        }
        | overrides
    )
    (directory / CONFIG).write_text(config.to_yaml())
    return config


LIVE = {"freeze_config.freeze_vision_tower": False}  # otherwise the features are cached
PLAIN = {"packing.enabled": False} | LIVE
LORA = {"peft.dim": 4, "packing.max_tokens": 200}
QWEN3_VL = {"model.pretrained_model_name_or_path": "builtin:tiny-qwen3_vl", "optimizer.lr": 1e-4}
EXPERTS = QWEN3_VL | {"model.pretrained_model_name_or_path": "builtin:tiny-qwen3_vl_moe"}
GEMMA3N = {"model.pretrained_model_name_or_path": "builtin:tiny-gemma3n", "optimizer.lr": 1e-4}
GEMMA4 = {"model.pretrained_model_name_or_path": "builtin:tiny-gemma4", "optimizer.lr": 1e-4}
UNIFIED = {"model.pretrained_model_name_or_path": "builtin:tiny-gemma4_unified", "optimizer.lr": 1e-4, STEPS: 2}
EVA = {"peft.init_lora_weights": "eva", "lr_scheduler.lr_warmup_steps": 0}  # the full model runs first: no fsdp2
TUNINGS = {
    "plain": PLAIN,
    "nf4-lora-cached": LORA | {"model.quantization": "nf4"},
    "3n-packed": GEMMA3N | LIVE | {STEPS: 2},  # its tower is slow
    "3n-lora-cached": GEMMA3N | LORA,
    "qwen3-packed": QWEN3_VL | LIVE,
    "experts-lora-cached": EXPERTS | LORA | {"peft.exclude_modules": ["*visual*"]},
    "gemma4-cached": GEMMA4 | {STEPS: 2},  # its projector trains on cached features, without a stub of the tower
    "unified-packed": UNIFIED,  # it has no vision tower
    "unified-eva": UNIFIED | LORA | EVA,
    # A generic model. Its forward pass skips the tower's last layer, so DDP must not wait for its gradients.
    "llava": LIVE,
}
PHANTOM = "builtin:phantom?images=12"
MIXTURE = LORA | {
    "dataset": [
        {"path_or_dataset": PHANTOM, "name": "one", "weight": 3},
        {"path_or_dataset": f"{PHANTOM}&seed=1", "name": "two", "weight": 1},
    ]
}
LIMITS = {"ddp": 1e-6, "fsdp2": 1e-5}
BROKEN_STEP = 2
SHARDED = {"compute.strategy": "fsdp2"}
SAVING = {"step_scheduler.ckpt_every_steps": 3, "checkpoint.is_async": True}
FULL = {"freeze_config.freeze_embeddings": False, "compute.gradient_checkpointing": True}
RESUMED = {"full-dcp": FULL | {"checkpoint.model_save_format": "torch_save"}, "lora": LORA}
LONG = {STEPS: 30, "step_scheduler.num_epochs": 6}


def tuning_of(name: str) -> dict[str, Any]:
    model = {"model.pretrained_model_name_or_path": str(directory_of("llava"))} if name == "llava" else {}
    return TUNINGS[name] | model


def limits_of(name: str) -> dict[str, float]:
    """Returns the relative difference that is allowed from one process, by strategy."""
    return {"ddp": LIMITS["ddp"]} if TUNINGS[name].items() >= EVA.items() else LIMITS


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As each rank under torchrun has: other numbers of threads round sums differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def conversations(small_conversations: Path) -> Path:
    return small_conversations


@pytest.fixture(scope="module")
def trained(conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    finetune(configure(directory), Ranks(), conversations)
    return directory


@pytest.fixture(scope="module")
def stopped(conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that SIGTERM stopped after a few steps."""
    directory = tmp_path_factory.mktemp("stopped") / "run"
    configure(directory, **LONG)
    words = ("--config", str(directory / CONFIG), "--conversations", str(conversations))
    process = subprocess.Popen(torchrun("vlm_core.finetune", *words), env=os.environ)
    while len(read_json_lines(directory / METRICS)[0]) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(300) != 0
    assert 3 <= read_json(directory / LATEST / PROGRESS)["step"] < LONG[STEPS]
    return directory


@dataclass
class OnTwo:
    """What ran on two ranks: the directory of the runs by name, and the log."""

    root: Path
    log: str


@pytest.fixture(scope="module")
def on_two(conversations: Path, trained: Path, stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> OnTwo:
    root = tmp_path_factory.mktemp("two")
    jobs = []
    for name in TUNINGS:
        for strategy in limits_of(name):
            # Each rank reads ahead in another process, as on GPUs.
            overrides = {"dataloader.num_workers": 1, "compute.strategy": strategy}
            configure(root / f"{name}-{strategy}", **tuning_of(name), **overrides)
            jobs.append(job(root / f"{name}-{strategy}", conversations))
    for strategy in LIMITS:
        configure(root / f"broken-{strategy}", **PLAIN, **{"compute.strategy": strategy})
        jobs.append(job(root / f"broken-{strategy}", conversations, broken_step=BROKEN_STEP))
    for name, tuning in RESUMED.items():
        configure(root / f"sharded-{name}", **tuning, **SHARDED, **SAVING)
        jobs.append(job(root / f"sharded-{name}", conversations))
    mixture = configure(root / "mixture", **MIXTURE)
    jobs.append(job(root / "mixture", prepare_conversations(mixture)[0]))
    configure(root / "long", **LONG)
    jobs += [job(root / "long", conversations), job(stopped, conversations)]
    evaluation = {"checkpoint": str(trained / LATEST), "output": str(root / EVALUATION)}
    jobs.append(job(trained, conversations, "evaluate", home=str(fresh_home(root / "home-evaluate")), **evaluation))
    jobs.append(job(trained, conversations, "encode", home=str(fresh_home(root / "home-encode"))))
    command = torchrun("tests.distributed.jobs", str(write_jobs(root / "jobs.json", jobs)))
    done = subprocess.run(command, timeout=900, env=os.environ, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return OnTwo(root, done.stderr)


def require_equal_curves(one: Path, two: Path, rel: float) -> None:
    for name, keys in ((METRICS, ("step", "loss", "grad_norm", "lr", "supervised_tokens")), (VALIDATION, ("loss",))):
        first, second = (read_json_lines(run / name)[0] for run in (one, two))
        assert len(first) == len(second) > 0
        for a, b in zip(first, second, strict=True):
            found, expected = ([math.nan if r[key] is None else r[key] for key in keys] for r in (a, b))
            assert found == pytest.approx(expected, rel=rel, nan_ok=True)


@pytest.mark.parametrize("name", TUNINGS)
def test_two_ranks_equal_one(name: str, on_two: OnTwo, conversations: Path, tmp_path: Path) -> None:
    finetune(configure(tmp_path / "one", **tuning_of(name)), Ranks(), conversations)
    for strategy, limit in limits_of(name).items():
        require_equal_curves(tmp_path / "one", on_two.root / f"{name}-{strategy}", rel=limit)
        assert read_json(on_two.root / f"{name}-{strategy}" / RESULT)["steps"] == TUNINGS[name].get(STEPS, 5)


def test_two_ranks_draw_the_same_mixture_as_one(on_two: OnTwo, tmp_path: Path) -> None:
    config = configure(tmp_path / "one", **MIXTURE)
    finetune(config, Ranks(), prepare_conversations(config)[0])
    require_equal_curves(tmp_path / "one", on_two.root / "mixture", rel=LIMITS["ddp"])


def test_all_ranks_leave_out_a_step_that_is_broken_on_one(on_two: OnTwo, conversations: Path, tmp_path: Path) -> None:
    """If one rank applied the step, the next losses would differ from those of one process."""
    with loss_broken_at(BROKEN_STEP):
        finetune(configure(tmp_path / "one", **PLAIN), Ranks(), conversations)
    for strategy, limit in LIMITS.items():
        records = read_json_lines(on_two.root / f"broken-{strategy}" / METRICS)[0]
        assert [record["loss"] is None for record in records] == [step == BROKEN_STEP for step in range(1, 6)]
        assert [record["nonfinite_steps"] for record in records] == [0, 1, 1, 1, 1]
        require_equal_curves(tmp_path / "one", on_two.root / f"broken-{strategy}", rel=limit)


@pytest.mark.parametrize("name", RESUMED)
def test_one_process_resumes_from_a_sharded_checkpoint(
    name: str, on_two: OnTwo, conversations: Path, tmp_path: Path
) -> None:
    for held, total in re.findall(r"fsdp2: each process holds ([\d,]+) of ([\d,]+) parameters", on_two.log):
        assert int(held.replace(",", "")) <= 0.51 * int(total.replace(",", ""))
    sharded = on_two.root / f"sharded-{name}"
    middle = {"checkpoint.restore_from": str(sharded / "epoch_0_step_3")}
    finetune(configure(tmp_path / "one", **RESUMED[name], **middle), Ranks(), conversations)
    whole, rest = (read_json_lines(run / METRICS)[0] for run in (sharded, tmp_path / "one"))
    assert [r["loss"] for r in rest] == pytest.approx([r["loss"] for r in whole[3:]], rel=1e-5)
    assert read_json_lines(sharded / SAMPLES)[0] == read_json_lines(tmp_path / "one" / SAMPLES)[0]


def test_a_rank_that_is_late_for_a_step_is_named_within_minutes() -> None:
    done = subprocess.run(torchrun("tests.distributed.late"), timeout=120, capture_output=True, text=True)
    assert done.returncode != 0
    assert sorted(done.stdout.splitlines()) == ["rank 0 met the others", "rank 1 met the others"]
    assert "rank 0 waited for 0:00:02" in done.stderr
    assert re.search(r"error: .*Ranks 1 failed to pass monitoredBarrier in 2000 ms", done.stderr)
    assert timedelta(minutes=30) >= STEP_WAIT


def test_two_ranks_share_the_images_to_encode(
    on_two: OnTwo, conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlm_core.models.feature_store import FeatureStore

    monkeypatch.setenv("MEDPIX_HOME", str(fresh_home(tmp_path / "home")))
    encode(small_config(), Ranks(), conversations)
    features = []
    for home, writers in ((tmp_path / "home", 1), (on_two.root / "home-encode", 2)):
        (store,) = home.glob("cache/vision/*")
        assert len(list(store.glob("*.arrow"))) == writers  # each rank writes one
        features.append(FeatureStore(store))
    hashes = sorted(features[0].places)
    assert len(hashes) == 12
    assert sorted(features[1].places) == hashes
    pairs = zip(*(store.read(hashes) for store in features), strict=True)
    assert max(float((one - two).abs().max()) for one, two in pairs) < 1e-5


def leaves(tree: Any) -> tuple[list[Any], list[float]]:
    """Returns (the keys and values of JSON, with a mark for each number; the numbers)."""
    numbers: list[float] = []
    return json.loads(json.dumps(tree), parse_float=lambda text: numbers.append(float(text)) or "a number"), numbers


def test_sigterm_saves_and_the_same_command_resumes(on_two: OnTwo, stopped: Path) -> None:
    whole, resumed = (read_json_lines(run / METRICS)[0] for run in (on_two.root / "long", stopped))
    assert len(whole) == LONG[STEPS]
    assert [(r["step"], r["loss"]) for r in resumed] == [(r["step"], r["loss"]) for r in whole]


def test_two_ranks_evaluate_as_one(
    on_two: OnTwo, trained: Path, conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setenv("MEDPIX_HOME", str(fresh_home(tmp_path / "home")))  # otherwise it finds all answers in the cache
    evaluate(
        load_config(str(trained / CONFIG), {}),
        str(trained / LATEST),
        tmp_path / EVALUATION,
        Ranks(),
        conversations,
    )
    scores, rows = [], []
    for output in (tmp_path / EVALUATION, on_two.root / EVALUATION):
        assert sorted(path.name for path in output.iterdir()) == [EXAMPLES, PREDICTIONS, REPORT, RESULT]
        scores.append({k: v for k, v in read_json(output / RESULT).items() if k != "seconds"})
        rows.append(pq.read_table(output / PREDICTIONS).to_pylist())
    # Each rank has other batches. A matrix product rounds the result of a row by the number of rows beside it, so
    # likelihoods differ by about 1e-7, with dense masks as with structured attention.
    for one, two in (scores, rows):
        texts, numbers = zip(leaves(one), leaves(two), strict=True)
        assert texts[0] == texts[1]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)
    assert set(scores[0]["scores"]) == {"model", "shuffled", "blank", "question_only", "commonest", "base"}
    assert (scores[0]["examples"], scores[0]["limit"]) == (13, 13)
