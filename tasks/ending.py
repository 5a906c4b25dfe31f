"""The last lines of a run by hand: a box with the main numbers, links, and a command that asks the model a question."""

import shlex
import sys
from pathlib import Path
from textwrap import wrap
from typing import Any

import mlflow

from tasks.links import mlflow_run_link, report_link
from vlm_core.evaluation.metrics import METRICS, PRIMARY
from vlm_core.evaluation.result_names import with_interval
from vlm_core.files import read_json
from vlm_core.home import medpix_home
from vlm_core.plain_text import without_secrets
from vlm_core.run_directory import EVALUATION, EXAMPLE

WIDTH = 100  # of the box, in characters


def render(summary: dict[str, Any]) -> str:
    """Returns a box of text: verdict, headline score, gain from the right image, training loss, champion."""
    training, scores, model = (summary[key] for key in ("training", "evaluation", "registered_model"))
    score = with_interval(scores["scores"]["model"][PRIMARY])
    limit = f", limited to {scores['limit']}" if scores["limit"] else ""
    loss = f"{_number(training['first_loss'])} -> {_number(training['last_loss'])}"
    rows = [
        ("verdict", scores["verdict"]["text"]),
        (METRICS[PRIMARY].words, f"{score} on {scores['examples']:,} questions{limit}"),
        ("looking adds", _looking(scores["visual_reliance"])),
        ("training loss", f"{loss} in {training['steps']} steps, {training['seconds']:.0f} s"),
        ("champion", f"{'yes' if model['promotion']['promoted'] else 'no'}: {model['promotion']['reason']}"),
    ]
    lines = [line for name, value in rows for line in wrap(f"{name:<14} {value}", WIDTH, subsequent_indent=" " * 15)]
    width = max(map(len, lines))
    edge = f"+{'-' * (width + 2)}+"
    return "\n".join([summary["run_id"], edge, *(f"| {line:<{width}} |" for line in lines), edge])


def _looking(reliance: dict[str, Any] | None) -> str:
    """Returns how much of the score comes from seeing the right image."""
    if not reliance:
        return "not measured: evaluation.controls does not list shuffled"
    return f"{with_interval(reliance[PRIMARY], sign='+')} {METRICS[PRIMARY].words}, against another case's image"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def next_steps(summary: dict[str, Any], flow_run_url: str | None = None) -> str:
    """Returns links to the results, and a command that works from any directory as it is."""
    directory = Path(summary["checkpoint"]).parent
    model, run_id = summary["registered_model"], summary["mlflow_run_id"]
    links = [
        ("report", report_link(run_id, directory, EVALUATION)),
        ("MLflow", _mlflow_page(run_id)),
        ("Prefect", flow_run_url),
        ("model", f"{model['uri']} (version {model['version']})"),
        ("checkpoint", summary["checkpoint"]),
    ]
    lines = [f"{name:<10}  {link}" for name, link in links if link]
    return "\n".join([*lines, "", *_question(summary["checkpoint"], directory / EXAMPLE)])


def sweep_ending(result: dict[str, Any], flow_run_url: str | None = None) -> str:
    """Returns the last lines of a sweep by hand: its best trial, both scores, and the command that repeats it."""
    command = [f"MEDPIX_HOME={medpix_home()}", sys.executable, "-m", "pipelines.finetune", "--recipe", result["recipe"]]
    values = ", ".join(f"{key}={value}" for key, value in result["values"].items())
    lines = [f"trial {result['best_trial']} of {result['trials']} is the best: {values}"]
    lines += [
        f"{METRICS[metric].words}: {with_interval(found['selection'])} on the selection part, "
        f"{with_interval(found['held_back'])} on the held-back part, which decides"
        for metric, found in result["scores"].items()
    ]
    lines += ["", render(result["summary"]), "", next_steps(result["summary"], flow_run_url), ""]
    return "\n".join([*lines, "Train with its recipe:", f"  {shlex.join(command)}"])


def _mlflow_page(run_id: str) -> str:
    """Returns the run's page in MLflow, or the command that starts MLflow's UI."""
    store, program = mlflow.get_tracking_uri(), Path(sys.executable).parent / "mlflow"
    if without_secrets(store) != store:
        store = "$MLFLOW_TRACKING_URI"  # the shell has it; its password is not shown
    return mlflow_run_link(run_id) or f'{shlex.quote(str(program))} ui --backend-store-uri "{store}"'


def _question(checkpoint: str, example: Path) -> list[str]:
    """Returns a command that asks the model about an image of the validation split."""
    # The command names the home and stays on one line, so that it works when pasted in another directory.
    command = [
        f"MEDPIX_HOME={medpix_home()}",
        sys.executable,
        "-m",
        "vlm_core.generate",
        "--checkpoint-path",
        checkpoint,
    ]
    if not example.is_file():
        title = "Ask the model a question of yours (report.images=false: no example image was written):"
        return [title, f"  {shlex.join(command)} --prompt QUESTION --image FILE"]
    asked = read_json(example)
    command.append(f"--prompt={_one_line(asked['question'])}")
    if asked["images"]:
        command += ["--image", *asked["images"]]
    return [
        f"Ask the model a question of the validation split (reference answer: {_one_line(asked['answer'])}):",
        f"  {shlex.join(command)}",
    ]


def _one_line(text: str) -> str:
    """Returns a text of the dataset on one line, without control characters for the terminal."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())
