"""Runs every comparison of every suite at a tiny size, so that no benchmark can break unnoticed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.contender import measure
from benchmarks.run import SUITES, headline, run_suite
from vlm_core.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


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


@pytest.mark.parametrize("suite", SUITES)
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
