"""Runs a suite of comparisons and writes its tables: `make bench`, `make bench-quick`, `python -m benchmarks.run gpu`.

Each measurement runs in its own process. The contenders of a comparison take turns, so that a machine that slows down
slows all of them. The report shows medians of the ratios between measurements that ran next to each other. If one
fails, the report has its error, and the others still run.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.report import measured, write_report

RESULTS = Path(__file__).parent / "results"
SAME = {False: 1e-3, True: 2e-2}  # how far losses may be apart: in float32, in bfloat16


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
    repeats: int = 2
    threads: int = 2
    rows: int = 10  # examples in an unpacked forward pass
    overrides: dict[str, Any] = field(default_factory=dict)
    seconds: int = 3600  # after which a measurement is ended

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
            "seconds": self.seconds,
        }


class FailedError(Exception):
    """A measurement ended with an error, took too long, or did other work than the one beside it."""


TRAINING = ("ours", "plain", "trl")
ANSWERING = ("answer-ours", "answer-batched")
ANSWERS = {"evaluation.max_new_tokens": 24}
WITHOUT = ("ours", "ours/packing", "ours/vision_cache")

QUICK = [
    Comparison("LoRA, 10 questions per image", TRAINING, batch=30),
    Comparison("Answers, 10 questions per image", ANSWERING, batch=20, overrides=ANSWERS),
]
FULL = [
    Comparison("LoRA, 10 questions per image", TRAINING, batch=30),
    Comparison("Answers, 10 questions per image", (*ANSWERING, "answer-one-by-one"), overrides=ANSWERS, repeats=1),
    Comparison("SFT, 10 questions per image", TRAINING, tuning="sft", batch=30, repeats=1),
    Comparison("LoRA, 1 question per image", TRAINING, questions=1, batch=20, repeats=1),
    Comparison(
        "LoRA, 1 question per image, vision cache off", ("ours/vision_cache", "plain"), questions=1, batch=20, repeats=1
    ),
    Comparison("LoRA, one saving off at a time", WITHOUT, batch=30),
    Comparison("LoRA, large vocabulary", TRAINING, size="vocabulary", batch=30, repeats=1),
    Comparison("LoRA, 3 questions per image", TRAINING, questions=3, batch=30, repeats=1),
    Comparison("LoRA, 30 questions per image", TRAINING, questions=30, batch=30, repeats=1),
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


def _on_gpu(title: str, contenders: tuple[str, ...], **settings: Any) -> Comparison:
    """Returns a comparison on Gemma 3 4B's shapes. Each one is short, since time on a GPU is dear."""
    usual = Comparison(title, contenders, size="gemma3-4b", rows=4, steps=4, repeats=1, seconds=150)
    return replace(usual, **settings)


NF4 = {"model.quantization": "nf4"}
FLEX, COMPILED = {"model.attn_implementation": "flex_attention"}, {"compute.compile": True}
GPU = [
    _on_gpu("LoRA, 10 questions per image", TRAINING),
    _on_gpu("Answers, 10 questions per image", ANSWERING, overrides=ANSWERS, steps=2),
    _on_gpu("LoRA over nf4 weights, 10 questions per image", ("ours",), overrides=NF4, steps=2),
    _on_gpu("LoRA, 10 questions per image, FlexAttention", ("ours",), overrides=FLEX),
    _on_gpu("LoRA, 10 questions per image, compiled", ("ours",), overrides=COMPILED),
    _on_gpu("LoRA, 10 questions per image, FlexAttention, compiled", ("ours",), overrides=FLEX | COMPILED),
    _on_gpu("SFT, 10 questions per image", ("ours", "plain"), tuning="sft", steps=2),
    _on_gpu("LoRA, 1 question per image", ("ours", "ours/vision_cache", "plain"), questions=1, batch=20),
]
SUITES = {"quick": QUICK, "full": FULL, "gpu": GPU}


Job = dict[str, Any]


def measure(comparison: Comparison, directory: Path, run: Callable[[Job], Job]) -> list[Job]:
    """Runs all contenders and repeats of a comparison with `run`, and returns their records in order.

    The record of a failed measurement has an `error` in place of figures.
    """
    records: list[Job] = []
    for repeat in range(comparison.repeats):
        for contender in comparison.contenders:
            name = {"title": comparison.title, "contender": contender, "repeat": repeat}
            try:
                record = run(comparison.job(contender, directory))
                if "/packing" not in contender:  # without packing, examples have another order
                    _require_same_work(next(iter(measured(records)), record), record)
                said = f"{record['samples_per_second']:.2f}/s, {record['peak_mb']:.0f} MB"
            except FailedError as error:
                record, said = {"error": str(error)}, f"failed\n{error}"
            records.append(record | name)
            print(f"{comparison.title} [{repeat + 1}/{comparison.repeats}] {contender}: {said}", flush=True)
    return records


def _require_same_work(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Raises FailedError unless contenders trained on the same tokens from the same weights, or gave equal answers."""
    losses = zip(one.get("losses", []), other.get("losses", []), strict=True)
    if any(abs(a - b) > SAME[one["machine"].endswith("bfloat16")] * a for a, b in losses):
        raise FailedError(f"other losses than the contender beside it: {other['losses']} and {one['losses']}")
    if one.get("answers") != other.get("answers") and not one["machine"].endswith("bfloat16"):
        raise FailedError("other answers than the contender beside it")


def run_in_subprocess(job: Job) -> Job:
    """Runs `job` in its own process, and returns its record."""
    environment = os.environ | {
        "MEDPIX_HOME": f"{job['directory']}/home",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(job["threads"]),
    }
    command = [sys.executable, "-m", "benchmarks.contender", json.dumps(job)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=job["seconds"]
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"not done after {job['seconds']} s") from None
    if done.returncode:
        raise FailedError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def ratio(records: list[dict[str, Any]], title: str, other: str, value: str = "effective_per_second") -> float:
    """Returns the median ratio of ours to `other`, over pairs of measurements that ran next to each other."""
    found = [record for record in measured(records) if record["title"] == title]
    ours = [record for record in found if record["contender"].endswith("ours")]
    theirs = [record for record in found if record["contender"] == other]
    pairs = [(a, b) for a in ours for b in theirs if a["repeat"] == b["repeat"]]
    return statistics.median(a[value] / b[value] for a, b in pairs) if pairs else math.nan


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
    records = run_suite(suite, SUITES[suite], RESULTS, run_in_subprocess)
    if failed := len(records) - len(measured(records)):
        print(f"{failed} of {len(records)} measurements failed; {RESULTS / suite}.md has their errors")
    print(headline(records))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
