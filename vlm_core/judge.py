"""Lets a language model judge the answers of an evaluation: correct, partly, wrong or unsafe.

    python -m vlm_core.judge vlm_checkpoints/evaluation --model qwen3-32b --url http://127.0.0.1:8000/v1
    python -m vlm_core.judge vlm_checkpoints/evaluation --model gpt-5 --url https://api.openai.com/v1 --labels mine.csv

Any OpenAI-compatible endpoint works: vLLM, SGLang, Ollama, `transformers serve`. It gets questions, references and
answers, and no images. The environment variable MEDPIX_JUDGES lists the addresses that are allowed, and OPENAI_API_KEY
has the key. `--labels` is a CSV file with the columns example_id and verdict, which people filled in: it shows how far
to trust the judge. Replies are stored: a second run asks only about answers without a reply. Writes `judge.json`, and
shows the verdicts in the evaluation's report.
"""

from vlm_core.arguments import judge_parser, read_arguments

if __name__ == "__main__":  # before the imports below, which take seconds
    OPTIONS = read_arguments(judge_parser(__doc__), "pyarrow and openai")
else:
    OPTIONS = None

import argparse
import csv
from pathlib import Path

import pyarrow.parquet as pq

from vlm_core.evaluation.judge import VERDICTS, Judge, score, summary
from vlm_core.evaluation.judged import JUDGED, answers_of, show_verdicts
from vlm_core.evaluation.result_names import MODEL
from vlm_core.files import read_json, write_json
from vlm_core.plain_text import printable
from vlm_core.run_directory import PREDICTIONS, REPORT, RESULT


def read_labels(path: Path | None) -> dict[str, str]:
    """Returns people's verdicts by example id; raises ValueError for a file or a verdict that does not fit."""
    if path is None:
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not {"example_id", "verdict"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} needs the columns example_id and verdict; it has {reader.fieldnames}")
        labels = {row["example_id"]: (row["verdict"] or "").strip().lower() for row in reader}
    wrong = {example: label for example, label in labels.items() if label not in VERDICTS}
    if wrong:
        example, label = next(iter(wrong.items()))
        raise ValueError(f"{path}: the verdict {label!r} of {example} is none of {', '.join(VERDICTS)}; correct it")
    return labels


def judge(options: argparse.Namespace) -> None:
    """Judges the answers and writes judge.json into the evaluation's directory."""
    if not (options.evaluation / RESULT).is_file():
        raise ValueError(
            f"{options.evaluation} has no finished evaluation ({RESULT}): run python -m vlm_core.evaluate first"
        )
    evaluated = read_json(options.evaluation / RESULT)
    compared = [*evaluated["compared"]]
    unknown = set(options.also) - set(compared)
    if unknown:
        known = ", ".join(compared) or "no other model"
        raise ValueError(f"--also {' '.join(sorted(unknown))}: this evaluation has the answers of {known}")
    labels = read_labels(options.labels)
    records = pq.read_table(options.evaluation / PREDICTIONS).to_pylist()
    chosen = [record for record in records if record["example_id"] in labels]
    others = [record for record in records if record["example_id"] not in labels]
    step = max(1, len(others) // max(1, options.questions - len(chosen)))
    chosen += others[::step][: max(0, options.questions - len(chosen))]
    result = score(Judge(options.model, options.url), chosen, [MODEL, *options.also], labels)
    write_json(options.evaluation / JUDGED, result | {"answers": answers_of(evaluated)})
    print("\n".join(summary(result)))
    if not show_verdicts(evaluated, options.evaluation):
        print(f"{options.evaluation / REPORT} has no place for verdicts: evaluate again to see them there")


def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    try:
        judge(options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {printable(error)}") from error


if OPTIONS:
    main(OPTIONS)
