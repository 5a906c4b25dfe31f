"""Runs every comparison of every suite at a tiny size, so that no benchmark can break unnoticed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.contender import measure
from benchmarks.run import GPU, SUITES, FailedError, Job, headline, run_suite
from benchmarks.smoke import EVERYWHERE, run
from vlm_core.files import read_json


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Measures in this process, which imports torch once. Runs equal jobs once: tiny suites share most of them."""
    threads, known = torch.get_num_threads(), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDPIX_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr("vlm_core.data.loader.MOST_WORKERS", 0)  # a process that has run a flow cannot fork
        root = tmp_path_factory.mktemp("benchmarks")

        def run(job: dict[str, Any]) -> dict[str, Any]:
            key = json.dumps(job | {"directory": str(root)})
            if key not in known:
                known[key] = measure(json.loads(key))
            return known[key]

        yield run
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("suite", ["quick", "full"])
def test_every_comparison_runs(suite: str, measured: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    comparisons = [comparison.tiny() for comparison in SUITES[suite]]
    records = run_suite(suite, comparisons, tmp_path / "results", measured)
    assert [record["title"] for record in records] == [c.title for c in comparisons for _ in c.contenders]
    assert all(record["samples_per_second"] > 0 and record["peak_mb"] >= 0 for record in records)
    assert read_json(tmp_path / "results" / f"{suite}.json") == records
    table = (tmp_path / "results" / f"{suite}.md").read_text()
    assert all(f"## {comparison.title}" in table for comparison in comparisons)
    assert (tmp_path / "results" / f"{suite}.png").stat().st_size > 1000
    assert "train_vs_trl=" in headline(records)


def test_the_others_run_if_a_measurement_fails(tmp_path: Path) -> None:
    def job(wanted: Job) -> Job:
        if wanted["contender"] == "trl":
            raise FailedError("CUDA out of memory")
        losses = [2.0, 1.9] if wanted["contender"] == "plain" else [2.0, 1.5]
        speeds = dict.fromkeys(("samples_per_second", "effective_per_second", "epoch_1"), 3.0)
        return wanted | speeds | {"losses": losses, "peak_mb": 5.0, "machine": "one GPU, float32"}

    records = run_suite("gpu", GPU[:2], tmp_path, job)
    assert [(r["contender"], "error" in r) for r in records] == [
        ("ours", False), ("plain", True), ("trl", True), ("answer-ours", False), ("answer-batched", False),
    ]  # fmt: skip
    page = (tmp_path / "gpu.md").read_text()
    assert "## Failed: LoRA, 10 questions per image, trl\n\n```\nCUDA out of memory" in page
    assert "other losses than the contender beside it" in page
    assert "train_vs_trl=nan" in headline(records)
    assert "eval_vs_generate=1.00" in headline(records)


@pytest.mark.slow
def test_the_smoke_test_tells_right_from_wrong(tmp_path: Path) -> None:
    """Twenty times the learning rate gives other losses, as a wrong kernel would."""
    wrong, broken = {"optimizer.lr": 0.02}, {"model.torch_dtype": "float7"}
    settings = {"float32": EVERYWHERE["float32"], "float32, wrong": wrong, "bfloat16, broken": broken}
    records = run(settings, tmp_path)
    assert [record["right"] for record in records] == [True, False, False]
    assert "torch_dtype" in records[2]["error"]
    assert (tmp_path / "smoke.md").read_text().count("WRONG") == 2
