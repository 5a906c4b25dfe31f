"""Checks data, caches it and writes a report about it. Needs no model and no GPU.

    python -m vlm_core.prepare FOLDER                     # images and a table: csv, tsv, jsonl, json, parquet
    python -m vlm_core.prepare FOLDER --init my.yaml      # also writes a recipe that trains on the data
    python -m vlm_core.prepare --config gemma3_4b_lora --dataset.split_by case
    python -m vlm_core.prepare FOLDER --explain 12        # shows how row 12 becomes the model's input

Later commands reuse the cache. The report lists problems of the data, and how many validation questions are about
cases that also occur in training.
"""

from vlm_core.arguments import data_path_of, name_of, prepare_parser, read_config

if __name__ == "__main__":  # before the imports below, which take seconds
    ARGUMENTS = read_config(prepare_parser(__doc__), "pyarrow and datasets")
else:
    ARGUMENTS = None

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_core.config import Config
from vlm_core.data.explained_row import explain_row, explain_some
from vlm_core.data.new_recipe import share_for_intervals
from vlm_core.data.prepare import prepare_conversations, rejects_to_show
from vlm_core.data.rejects import reject_lines
from vlm_core.data.splits import fetch_splits, resolved_config
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json, write_text
from vlm_core.home import keep_private, require_writable
from vlm_core.hub import HubBusyError
from vlm_core.log import configure_logging
from vlm_core.pages.data_report import write_data_report
from vlm_core.plain_text import printable
from vlm_core.program import as_called
from vlm_core.run_directory import REPORT

logger = logging.getLogger(__name__)


def main(options: argparse.Namespace, config: Config) -> None:
    """Runs the command."""
    keep_private()
    configure_logging()  # again: an imported library may have changed it
    if options.model is not None:
        named = config.model.model_copy(update={"pretrained_model_name_or_path": options.model, "revision": None})
        config = config.model_copy(update={"model": named})
    if options.explain is not None:
        explain(config, options.explain, options.output)
        return
    command = next_command(options.init, sys.argv[1:])
    prepare(config, options.output, options.init, command, with_model=options.model is not None)


def explain(config: Config, row: str, output: Path) -> None:
    """Prints how one row of the data becomes the model's input, and writes its images to `output`."""
    try:
        require_writable(output)
        found = explain_row(fetch_splits(config), row)
        logger.info("loading the processor of %s", config.model.pretrained_model_name_or_path)
        from vlm_core.explain import explanation, save_pictures, viewed  # lazy: imports torch, which takes seconds

        (found,) = viewed([found], config.model)
        pictures = save_pictures(found, output)
    except (ValueError, HubBusyError) as error:
        raise SystemExit(f"error: {printable(error)}") from error
    print(explanation(found, pictures, colours=sys.stdout.isatty() and "NO_COLOR" not in os.environ))


def prepare(config: Config, output: Path, recipe: Path | None, then: str, *, with_model: bool = False) -> None:
    """Builds the cache and the report of the data of `config`, writes a `recipe` for it, and prints a summary.

    `then` is the next command, which is printed last. The report explains a few rows; with `with_model`, it shows them
    as the config's model sees them.
    """
    try:
        require_writable(output)
        if recipe is not None:
            require_new(recipe)
        splits = fetch_splits(config)
        config = resolved_config(config, splits)
        conversations, reused = prepare_conversations(config, splits)
        if recipe is not None and (share := share_for_intervals(config, splits, conversations)):
            logger.info(
                "using %.0f%% of the cases for validation, so that an evaluation has confidence intervals", 100 * share
            )
            config = config.model_copy(
                update={"dataset": config.dataset.model_copy(update={"validation_share": share})}
            )
            conversations, reused = prepare_conversations(config, replace(splits, validation_share=share))
        rows = explain_some(splits) if config.report.images else []
        if rows and with_model:
            from vlm_core.explain import viewed  # lazy: imports torch, which takes seconds

            rows = viewed(rows, config.model)
    except (ValueError, HubBusyError) as error:
        raise SystemExit(f"error: {printable(error)}") from error
    write_data_report(config, conversations, output / REPORT, rows)
    found = read_json(conversations / STATISTICS)
    logger.info("%s %s", "reused" if reused else "built", conversations)
    if recipe is not None:
        write_recipe(recipe, config, found)
    print(printable("\n".join(summary(config, found, rejects_to_show(conversations, config)))))
    print(f"report      open {(output / REPORT).resolve()} in a browser")
    print(f"next        {as_called(then)}")


def require_new(recipe: Path) -> None:
    """Raises ValueError if the recipe exists already or cannot be written."""
    if recipe.exists():
        raise ValueError(f"{recipe} exists and is not overwritten: give --init another name, or delete the file")
    require_writable(recipe.absolute().parent)


def write_recipe(path: Path, config: Config, found: dict[str, Any]) -> None:
    """Writes a recipe for the data of `config`, with a model that fits this machine."""
    import torch

    from vlm_core.data.new_recipe import data_found, recipe_text

    cards = [torch.cuda.get_device_properties(i).total_memory / 1e9 for i in range(torch.cuda.device_count())]
    write_text(path, recipe_text(config, name_of(str(path)), data_found(found), card=min(cards, default=None)))
    logger.info("wrote %s", path)


def summary(config: Config, found: dict[str, Any], rejects: Mapping[str, Any]) -> list[str]:
    """Returns the lines of the summary: size, splits, columns, and the reasons of the `rejects`."""
    first, *others = reject_lines(rejects) or ["none"]
    return [
        *(_of_datasets(config, found) if "datasets" in found else _of_data(config, found["splits"])),
        f"images      {found['images']['count']:,} different ones",
        f"rejected    {first}",
        *(f"            {line}" for line in others),
    ]


def _of_data(config: Config, splits: Mapping[str, Any]) -> list[str]:
    """Returns the lines about one dataset."""
    from vlm_core.pages.data_report import named_columns

    data = config.dataset
    return [
        f"data        {data.path_or_dataset}",
        *(
            f"{split:<11} {s['rows']:,} questions on {s['images']:,} images of {s['cases']:,} cases"
            for split, s in splits.items()
        ),
        f"divided     {'as published' if data.split_by == 'published' else f'by {data.split_by}'}",
        "columns     " + ", ".join(f"{key}={value}" for key, value in named_columns(config).items()),
    ]


def _of_datasets(config: Config, found: Mapping[str, Any]) -> list[str]:
    """Returns the lines about each of several datasets."""
    from vlm_core.pages.data_report import of_datasets

    lines = []
    for dataset in of_datasets(config, found):
        share = "only validates" if dataset["share"] is None else f"{dataset['share']:.1%} of the training questions"
        lines += [f"dataset     {dataset['name']}: {share}", *_of_data(dataset["config"], dataset["splits"])]
    return lines


def next_command(recipe: Path | None, arguments: Sequence[str]) -> str:
    """Returns the command to run next: training if there is a recipe, else the command that writes one."""
    if recipe is not None:
        return shlex.join(["python", "-m", "pipelines.finetune", "--recipe", str(recipe)])
    data = data_path_of(arguments)
    if data is not None:
        return shlex.join(["python", "-m", "vlm_core.prepare", *arguments, "--init", f"{name_of(data)}.yaml"])
    return shlex.join(["python", "-m", "pipelines.finetune", *_without_own_options(arguments)])


def _without_own_options(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments without `--output DIRECTORY` and `--model MODEL`, which training does not take."""
    own = ("--output", "--model")
    return [
        word
        for word, before in zip(arguments, [None, *arguments], strict=False)
        if word.partition("=")[0] not in own and before not in own
    ]


if ARGUMENTS:
    main(*ARGUMENTS)
