"""Defines and reads the command-line arguments of all commands.

A command reads its arguments before it imports torch and similar packages, which takes ten seconds or more. `--help`
and errors in options are therefore immediate. This module must not import more than the config does.
"""

import argparse
import atexit
import gc
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm_core.cli import ConfigParser
from vlm_core.config import Config
from vlm_core.guide import GENERATE_FLAGS
from vlm_core.log import configure_logging
from vlm_core.program import as_called
from vlm_core.search_space import parse_space, read_space

logger = logging.getLogger(__name__)

DATA_RECIPE = "demo"  # used by `prepare PATH`, which needs a recipe but not its model

DATA_KEYS = ("dataset.path_or_dataset", "dataset.split")
TRAINING_KEYS = (
    "dataset.path_or_dataset",
    "model.pretrained_model_name_or_path",
    "optimizer.lr",
    "step_scheduler.num_epochs",
    "step_scheduler.max_steps",
    "step_scheduler.global_batch_size",
    "peft.dim",
    "rng.seed",
    "checkpoint.checkpoint_dir",
    "compute.nproc_per_node",
)
PREPARE_KEYS = (
    *DATA_KEYS,
    "dataset.image_column",
    "dataset.question_column",
    "dataset.answer_column",
    "dataset.case_column",
    "dataset.mode_column",
    "dataset.split_by",
    "dataset.max_reject_share",
    "report.images",
)
ENCODE_KEYS = (*DATA_KEYS, "model.pretrained_model_name_or_path", "model.torch_dtype")
EVALUATION_KEYS = (
    "dataset.path_or_dataset",
    "validation_dataset.split",
    "model.pretrained_model_name_or_path",
    "evaluation.limit",
    "evaluation.batch_size",
    "evaluation.max_new_tokens",
    "evaluation.controls",
    "evaluation.compare_with",
    "report.images",
    "rng.seed",
)


def read_arguments(parser: argparse.ArgumentParser, loaded: str) -> argparse.Namespace:
    """Returns the arguments of a command without a recipe, and logs that slow imports (`loaded`) follow.

    Exits with an error message if an argument is wrong.
    """
    with _slow_imports_after(loaded):
        return parser.parse_args()


def read_config(parser: ConfigParser, loaded: str) -> tuple[argparse.Namespace, Config]:
    """Like `read_arguments`, for a command with a recipe: returns its options and its config."""
    with _slow_imports_after(loaded):
        return parser.parse_config()


@contextmanager
def _slow_imports_after(loaded: str) -> Iterator[None]:
    is_main = os.environ.get("RANK", "0") == "0"  # only one of torchrun's processes logs
    configure_logging(quiet=not is_main)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' too: in a file, bars are unreadable
    atexit.register(gc.freeze)  # Python's last search for garbage among the objects of torch would take two seconds
    yield
    logger.info("loading %s", loaded)


def flow_parser(description: str | None) -> ConfigParser:
    """Returns the parser of `python -m pipelines.finetune`."""
    return ConfigParser(prog="python -m pipelines.finetune", description=description, common=TRAINING_KEYS)


class _SweepParser(ConfigParser):
    """Checks the space of a sweep too; `options.space` is what `read_space` returns."""

    def parse_config(self, arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Config]:
        options, config = super().parse_config(arguments)
        try:
            options.space = read_space(options.space)
            parse_space(options.space, options.recipe, options.overrides)
        except ValueError as error:
            self.error(str(error))
        return options, config


def sweep_parser(description: str | None) -> ConfigParser:
    """Returns the parser of `python -m pipelines.sweep`."""
    parser = _SweepParser(prog="python -m pipelines.sweep", description=description, common=TRAINING_KEYS)
    add = parser.add_argument
    add("--space", required=True, help="config keys and their values, as YAML or the path of a YAML file")
    add(
        "--trials",
        type=int,
        default=12,
        help="how many trials to propose; 0: as many as finish in --hours; default: 12",
    )
    add("--hours", type=float, default=0, help="how long to search; default: until all trials are done")
    add("--metric", default="loss", help="score that ranks the trials: loss, token_f1, ...; default: loss")
    add("--parallel-trials", type=int, default=1, help="how many trials train at once, on a cluster; default: 1")
    add(
        "--sweep-name",
        default="",
        help="name of the sweep's directory; a sweep with this name resumes; default: a new sweep",
    )
    return parser


def data_path_of(arguments: Sequence[str]) -> str | None:
    """Returns the PATH argument of `python -m vlm_core.prepare PATH`, None if the first argument is an option."""
    return arguments[0] if arguments and not arguments[0].startswith("-") else None


def name_of(path: str) -> str:
    """Returns the name of a run on the data at `path`."""
    return re.sub(r"[^\w.-]+", "-", Path(path.partition("?")[0]).absolute().stem).strip("-") or "data"


class _DataParser(ConfigParser):
    """Accepts a path as first argument, which sets dataset.path_or_dataset and makes a recipe unnecessary."""

    def parse_with_overrides(self, arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
        given = sys.argv[1:] if arguments is None else [*arguments]
        path = data_path_of(given)
        if path is None:
            return super().parse_with_overrides(given)
        default = ["--config", DATA_RECIPE, f"--name={name_of(path)}"]
        return super().parse_with_overrides([*default, "--dataset.path_or_dataset", path, *given[1:]])


def prepare_parser(description: str | None) -> ConfigParser:
    """Returns the parser of `python -m vlm_core.prepare`."""
    parser = _DataParser(
        prog="python -m vlm_core.prepare",
        usage="%(prog)s [PATH] [--config RECIPE] [--init FILE] [--explain ROW] [options] [--section.key VALUE ...]",
        description=description,
        common=PREPARE_KEYS,
    )
    parser.add_argument("--init", type=Path, metavar="FILE", help="write a recipe for this data into a new file")
    parser.add_argument("--output", type=Path, default=Path("data-report"), help="directory of the report")
    parser.add_argument(
        "--explain",
        metavar="ROW",
        help="show how one row becomes what the model sees, and stop; ROW is 12 or train-12, counted from 0",
    )
    parser.add_argument(
        "--model",
        help="hub id or directory of the model whose view of the rows is shown; loads no weights; default for "
        "--explain: the recipe's model",
    )
    return parser


def encode_parser(description: str | None) -> ConfigParser:
    """Returns the parser of `python -m vlm_core.encode`."""
    parser = ConfigParser(prog="python -m vlm_core.encode", description=description, common=ENCODE_KEYS)
    _add_conversations(parser)
    return parser


def finetune_parser(description: str | None) -> ConfigParser:
    """Returns the parser of `python -m vlm_core.finetune`."""
    parser = ConfigParser(prog="python -m vlm_core.finetune", description=description, common=TRAINING_KEYS)
    parser.add_argument("--plan", action="store_true", help="print the plan of the run and whether it fits, and stop")
    parser.add_argument(
        "--pause-after",
        type=int,
        metavar="STEP",
        help="validate, save and stop after this step; the same command without it resumes",
    )
    _add_conversations(parser)
    return parser


def evaluate_parser(description: str | None) -> ConfigParser:
    """Returns the parser of `python -m vlm_core.evaluate`."""
    parser = ConfigParser(
        prog="python -m vlm_core.evaluate",
        description=description,
        common=EVALUATION_KEYS,
        config_of="checkpoint_path",
    )
    parser.add_argument(
        "--checkpoint-path",
        help="epoch_E_step_S, a model or adapter directory, a hub id or models:/name@alias; default: the base model",
    )
    parser.add_argument("--output-dir", type=Path, help="default: evaluation/ next to the checkpoint")
    _add_conversations(parser)
    return parser


class _NotNeeded(argparse.Action):
    """A flag that is accepted but has no effect. A warning gives the reason."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, flag: str | None = None) -> None:
        logger.warning("%s has no effect: %s", flag, self.const)


def generate_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of `python -m vlm_core.generate`."""
    parser = _plain_parser("python -m vlm_core.generate", description)
    add = parser.add_argument
    add("--checkpoint-path", help="epoch_E_step_S, a model or adapter directory, a hub id, or models:/name@alias")
    add("--base-model", help="hub id or directory; default: the base model that the checkpoint names")
    add("--prompt", help="the question; - reads it from standard input")
    add("--image", nargs="*", default=[], help="image files, in the order of the prompt")
    add("--image-url", nargs="*", default=[], help="https URLs of images, or paths")
    add("--allow-any-url", action="store_true", help="also allow http and private addresses for images")
    add("--input-file", help="file with one question per line, as JSON; - reads standard input")
    add("--max-new-tokens", type=int, default=128, help="maximum length of an answer in tokens")
    add("--temperature", type=float, default=0.0, help="0: greedy decoding; above 0: sampling")
    add(
        "--top-p",
        type=float,
        default=1.0,
        help="sample from the most likely tokens that together have this probability",
    )
    add("--seed", type=int, default=42, help="random seed for sampling")
    add("--output-format", choices=("text", "json"), help="default: text")
    add("--output-file", type=Path, help="write the answer to this file instead of standard output")
    for flag, reason in GENERATE_FLAGS.items():
        add(flag, nargs="*", action=_NotNeeded, const=reason, dest=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def export_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of `python -m vlm_core.export`."""
    parser, commands = _parser_with_commands("python -m vlm_core.export", description)
    command = commands.add_parser("merge", help="merge base model and adapter into one transformers directory")
    add = command.add_argument
    add("--checkpoint-path", required=True, help="epoch_E_step_S, a directory, a hub id, or models:/name@alias")
    add("--output-dir", type=Path, required=True, help="a new or empty directory")
    add("--base-model", help="hub id or directory; default: the base model that the checkpoint names")
    return parser


def review_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of `python -m vlm_core.review`."""
    parser, commands = _parser_with_commands("python -m vlm_core.review", description)
    command = commands.add_parser("make", help="draw questions of an evaluation and write the page for readers")
    add = command.add_argument
    add("evaluation", type=Path, help="directory of an evaluation: it has predictions.parquet")
    add("--against", default="base", help="a model of evaluation.compare_with, or reference; default: base")
    add("--questions", type=int, default=60, help="default: 60, about half an hour")
    add("--seed", type=int, default=0)
    add("--output-dir", type=Path, required=True)
    command = commands.add_parser("score", help="score the files that readers saved")
    command.add_argument("key", type=Path, help="key.json of the study")
    command.add_argument("readings", type=Path, nargs="+", help="files that readers saved")
    command.add_argument("--output", type=Path, help="file to write the scores to, as JSON")
    return parser


def judge_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of `python -m vlm_core.judge`."""
    parser = _plain_parser("python -m vlm_core.judge", description)
    add = parser.add_argument
    add("evaluation", type=Path, help="directory of an evaluation: it has predictions.parquet")
    add("--model", required=True, help="name of the judge at the endpoint")
    add("--url", required=True, help="address of the endpoint; it has to be in MEDPIX_JUDGES")
    add("--also", nargs="+", default=[], metavar="NAME", help="also judge these models of evaluation.compare_with")
    add("--questions", type=int, default=200, help="questions to judge, spread over the split; default: 200")
    add("--labels", type=Path, help="CSV file with the columns example_id and verdict")
    return parser


def _parser_with_commands(prog: str, description: str | None) -> tuple[argparse.ArgumentParser, Any]:
    """Returns (the parser of a program that has commands, the object that adds them)."""
    parser = _plain_parser(prog, description)
    return parser, parser.add_subparsers(dest="command", required=True)


def _plain_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    formatter: Any = argparse.RawDescriptionHelpFormatter
    words = as_called(description or "")
    return argparse.ArgumentParser(prog=as_called(prog), description=words, formatter_class=formatter)


def _add_conversations(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--conversations", type=Path, help="conversation cache to use; default: find or build it")
