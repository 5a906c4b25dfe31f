"""Looks at data, caches it, and writes a report about it; neither a model nor a GPU is needed.

    python -m vlm_core.prepare FOLDER                     # images and a table: csv, tsv, jsonl, json, parquet
    python -m vlm_core.prepare FOLDER --init my.yaml      # and writes a recipe that trains on it
    python -m vlm_core.prepare --config gemma3_4b_lora --dataset.split_by case

Later commands find the cache. The report says what is wrong with the data, and how many of the validation questions are
about cases that training has seen.
"""

from vlm_core.arguments import data_path_of, name_of, prepare_parser, read_config

if __name__ == "__main__":  # before the imports below, which take seconds
    ARGUMENTS = read_config(prepare_parser(__doc__), "pyarrow and datasets")
else:
    ARGUMENTS = None

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_core.config import Config
from vlm_core.data.new_recipe import share_for_intervals
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import fetch_splits, resolved_config
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json, write_text
from vlm_core.home import keep_private, require_writable
from vlm_core.hub import HubBusyError
from vlm_core.log import configure_logging
from vlm_core.pages.data_report import write_data_report
from vlm_core.run_directory import REPORT

logger = logging.getLogger(__name__)


def main(options: argparse.Namespace, config: Config) -> None:
    """Runs the command."""
    keep_private()
    configure_logging()  # again: an imported library may have changed it
    prepare(config, options.output, options.init, next_command(options.init, sys.argv[1:]))


def prepare(config: Config, output: Path, recipe: Path | None, then: str) -> None:
    """Builds the cache and the report of the data of `config`, writes a `recipe` for it, and prints what was found.

    `then` is the command to give next.
    """
    try:
        require_writable(output)
        if recipe is not None:
            require_new(recipe)
        splits = fetch_splits(config)
        config = resolved_config(config, splits)
        conversations, reused = prepare_conversations(config, splits)
        if recipe is not None and (share := share_for_intervals(config, splits, conversations)):
            logger.info("%.0f%% of the cases validate instead, so that an evaluation has intervals", 100 * share)
            config = config.model_copy(
                update={"dataset": config.dataset.model_copy(update={"validation_share": share})}
            )
            conversations, reused = prepare_conversations(config, replace(splits, validation_share=share))
    except (ValueError, HubBusyError) as error:
        raise SystemExit(f"error: {error}") from error
    write_data_report(config, conversations, output / REPORT)
    found = read_json(conversations / STATISTICS)
    logger.info("%s %s", "reused" if reused else "built", conversations)
    if recipe is not None:
        write_recipe(recipe, config, found)
    print("\n".join(summary(config, found)))
    print(f"report      open {(output / REPORT).resolve()} in a browser")
    print(f"next        {then}")


def require_new(recipe: Path) -> None:
    """Raises ValueError for a recipe that is there already, or that cannot be written."""
    if recipe.exists():
        raise ValueError(f"{recipe} exists and is not overwritten: give another name to --init, or delete it")
    require_writable(recipe.absolute().parent)


def write_recipe(path: Path, config: Config, found: dict[str, Any]) -> None:
    """Writes a recipe for the data of `config` whose model fits this machine."""
    import torch

    from vlm_core.data.new_recipe import recipe_text

    train, validation = (found["splits"][split] for split in ("train", "validation"))
    held = (
        f"{train['rows']:,} questions train and {validation['rows']:,} validate, on "
        f"{found['images']['count']:,} images of {train['cases']:,} + {validation['cases']:,} cases."
    )
    write_text(path, recipe_text(config, name_of(str(path)), held, gpu=torch.cuda.is_available()))
    logger.info("wrote %s", path)


def summary(config: Config, found: dict[str, Any]) -> list[str]:
    """Returns lines about what was found in the data: its size, splits, columns and rejects."""
    from vlm_core.pages.data_report import named_columns

    splits, data = found["splits"], config.dataset
    sizes = {
        split: f"{s['rows']:,} questions on {s['images']:,} images of {s['cases']:,} cases"
        for split, s in splits.items()
    }
    rejected = "; ".join(f"{reason}: {r['rows']} rows" for reason, r in found["rejects"].items())
    return [
        f"data        {data.path_or_dataset}",
        *(f"{split:<11} {size}" for split, size in sizes.items()),
        f"images      {found['images']['count']:,} different ones",
        f"divided     {'as published' if data.split_by == 'published' else f'by {data.split_by}'}",
        "columns     " + ", ".join(f"{key}={value}" for key, value in named_columns(config).items()),
        f"rejected    {rejected or 'none'}",
    ]


def next_command(recipe: Path | None, arguments: Sequence[str]) -> str:
    """Returns the command that makes sense now: training with a recipe, or writing one if there is none yet."""
    if recipe is not None:
        return shlex.join(["python", "-m", "pipelines.finetune", "--recipe", str(recipe)])
    data = data_path_of(arguments)
    if data is not None:
        return shlex.join(["python", "-m", "vlm_core.prepare", *arguments, "--init", f"{name_of(data)}.yaml"])
    return shlex.join(["python", "-m", "pipelines.finetune", *_without_output(arguments)])


def _without_output(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments without `--output DIRECTORY`, which training does not take."""
    after = [None, *arguments]
    return [
        word
        for word, before in zip(arguments, after, strict=False)
        if not word.startswith("--output") and before != "--output"
    ]


if ARGUMENTS:
    main(*ARGUMENTS)
