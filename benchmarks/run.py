"""Runs a suite of comparisons and writes its tables: `make bench`, `make bench-quick`, `python -m benchmarks.run gpu`.

Each measurement runs in its own process. The contenders of a comparison take turns, so that a machine that slows down
slows all of them. The report shows medians of the ratios between measurements that ran next to each other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.report import write_report

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Comparison:
    """Contenders that do the same work in turns, `repeats` times each."""

    title: str
    contenders: tuple[str, ...]
    size: str = "layers"
    tuning: str = "lora"
    questions: int = 10
    batch: int = 40
    steps: int = 2  # the first one is warm-up, and is not measured
    repeats: int = 3
    threads: int = 2
    rows: int = 10  # examples in an unpacked forward pass
    overrides: dict[str, Any] = field(default_factory=dict)

    def tiny(self) -> "Comparison":
        """Returns a tiny version for tests: one repeat, two images per optimizer step, a model of one layer."""
        return replace(self, size="tiny", batch=2 * self.questions, rows=2, repeats=1)

    def job(self, contender: str, directory: Path) -> dict[str, Any]:
        """Returns the argument of `benchmarks.contender`; `name/saving` means the contender with this saving off."""
        name, _, saving = contender.partition("/")
        off = {f"{saving}.enabled": False} if saving else {}
        return {
            "contender": name,
            "size": self.size,
            "tuning": self.tuning,
            "images": max(1, self.batch * self.steps // self.questions),
            "questions": self.questions,
            "batch": self.batch,
            "steps": self.steps,
            "threads": self.threads,
            "rows": self.rows,
            "overrides": self.overrides | off,
            "directory": str(directory),
        }


TRAINING = ("ours", "plain", "trl")
ANSWERING = ("answer-ours", "answer-batched")
ANSWERS = {"evaluation.max_new_tokens": 24, "evaluation.batch_size": 16}
WITHOUT = ("ours", "ours/packing", "ours/vision_cache")

QUICK = [
    Comparison("LoRA, 10 questions per image", TRAINING, batch=30),
    Comparison("Answers, 10 questions per image", ANSWERING, batch=20, overrides=ANSWERS),
]
FULL = [
    Comparison("LoRA, 10 questions per image", TRAINING, batch=30),
    Comparison("Answers, 10 questions per image", (*ANSWERING, "answer-one-by-one"), overrides=ANSWERS, repeats=2),
    Comparison("SFT, 10 questions per image", TRAINING, tuning="sft", batch=30, repeats=1),
    Comparison("LoRA, 1 question per image", TRAINING, questions=1, batch=20, repeats=1),
    Comparison(
        "LoRA, 1 question per image, vision cache off", ("ours/vision_cache", "plain"), questions=1, batch=20, repeats=2
    ),
    Comparison("LoRA, one saving off at a time", WITHOUT, batch=30),
    Comparison("LoRA, large vocabulary", TRAINING, size="vocabulary", batch=30, repeats=1),
    Comparison("LoRA, 3 questions per image", TRAINING, questions=3, batch=30, repeats=1),
    Comparison("LoRA, 30 questions per image", TRAINING, questions=30, batch=60, repeats=1),
    Comparison("Growth: 10 questions per step", ("ours",), batch=10, repeats=1),
    Comparison("Growth: 40 questions per step", ("ours",), batch=40, repeats=1),
    Comparison("Growth: 160 questions per step", ("ours",), batch=160, repeats=1),
    Comparison("Two processes of one thread each (memory: sum of both)", ("ours-two-processes",), threads=1, repeats=1),
    Comparison(
        "Answers, 1 question per image", ANSWERING, questions=1, batch=20, steps=1, overrides=ANSWERS, repeats=1
    ),
    Comparison("Share of the machine's matrix product", ("efficiency",), repeats=1),
    Comparison("Reading 1,000 questions on 100 images", ("read-cold", "read-warm"), batch=500, repeats=2),
]
GPU = [
    Comparison("LoRA, 10 questions per image", TRAINING, size="gemma3-4b", rows=2, repeats=1),
    Comparison("SFT, 10 questions per image", TRAINING, size="gemma3-4b", rows=2, tuning="sft", repeats=1),
    Comparison("Answers, 10 questions per image", ANSWERING, size="gemma3-4b", rows=2, overrides=ANSWERS, repeats=1),
]
SUITES = {"quick": QUICK, "full": FULL, "gpu": GPU}


Job = dict[str, Any]


def measure(comparison: Comparison, directory: Path, run: Callable[[Job], Job]) -> list[dict[str, Any]]:
    """Runs all contenders and repeats of a comparison with `run`, and returns their records in order."""
    records: list[dict[str, Any]] = []
    for repeat in range(comparison.repeats):
        for contender in comparison.contenders:
            record = run(comparison.job(contender, directory))
            if records and "/packing" not in contender:  # without packing, examples have another order
                _require_same_work(records[0], record)
            records.append({**record, "title": comparison.title, "contender": contender, "repeat": repeat})
            print(f"{comparison.title} [{repeat + 1}/{comparison.repeats}] {contender}: "
                  f"{record['samples_per_second']:.2f}/s, {record['peak_mb']:.0f} MB", flush=True)  # fmt: skip
    return records


def _require_same_work(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Stops if two contenders did not train on the same tokens from the same weights, or gave different answers."""
    losses = zip(one.get("losses", []), other.get("losses", []), strict=True)
    if any(abs(a - b) > 1e-3 * a for a, b in losses) or one.get("answers") != other.get("answers"):
        raise SystemExit(f"not the same work: {one} and {other}")


def run_in_subprocess(job: Job) -> Job:
    """Runs `job` in its own process, and returns its record."""
    environment = os.environ | {
        "MEDPIX_HOME": f"{job['directory']}/home",
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(job["threads"]),
    }
    command = [sys.executable, "-m", "benchmarks.contender", json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ratio(records: list[dict[str, Any]], title: str, other: str, value: str = "effective_per_second") -> float:
    """Returns the median ratio of ours to `other`, over pairs of measurements that ran next to each other."""
    ours = [record for record in records if record["title"] == title and record["contender"].endswith("ours")]
    theirs = [record for record in records if record["title"] == title and record["contender"] == other]
    return statistics.median(a[value] / b[value] for a, b in zip(ours, theirs, strict=True))


def run_suite(suite: str, comparisons: Sequence[Comparison], results: Path, run: Callable[[Job], Job]) -> list[Job]:
    """Runs all comparisons and returns their records; writes records, tables and plot to `results` after each one."""
    records: list[dict[str, Any]] = []
    results.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="medpix-bench-") as directory:
        for comparison in comparisons:
            records += measure(comparison, Path(directory), run)
            (results / f"{suite}.json").write_text(json.dumps(records, indent=1) + "\n")
            write_report(records, results, suite)
    return records


def headline(records: list[Job]) -> str:
    """Returns the main ratios as one line, the last line of a suite's output."""
    training, answers = "LoRA, 10 questions per image", "Answers, 10 questions per image"
    return (
        f"train_vs_trl={ratio(records, training, 'trl'):.2f} train_vs_plain={ratio(records, training, 'plain'):.2f} "
        f"eval_vs_generate={ratio(records, answers, 'answer-batched'):.2f} "
        f"peak_memory_vs_plain={ratio(records, training, 'plain', 'peak_mb'):.2f}"
    )


def main() -> None:
    """Runs a suite, writes its records and report, and prints the line of main ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("suite", nargs="?", choices=SUITES, default="quick")
    suite = parser.parse_args().suite
    print(headline(run_suite(suite, SUITES[suite], RESULTS, run_in_subprocess)))


if __name__ == "__main__":
    main()
