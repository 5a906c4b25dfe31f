"""Looks at your images and table, and writes a commented recipe that trains on them.

    medpix init our-scans                          # writes our-scans.yaml and a report
    medpix init our-scans brain.yaml --dataset.images.window brain

PATH is a folder with images and one table (csv, tsv, jsonl, json, parquet), a table, or a hub id. The recipe says what
was found: columns, splits, kinds of images; and has a model that fits the memory of this machine's GPU. Look at it, at
the report, and then train: medpix train --recipe our-scans.yaml
"""

import argparse
import runpy
import sys

from vlm_core.arguments import name_of


def main() -> None:
    """Runs `vlm_core.prepare PATH --init FILE` with the user's other options."""
    parser = argparse.ArgumentParser(
        prog="medpix init",
        usage="%(prog)s PATH [FILE] [--output DIRECTORY] [--section.key VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", help="the data")
    parser.add_argument("file", metavar="FILE", nargs="?", help="the recipe to write; default: PATH's name, with .yaml")
    number = next((i for i, word in enumerate(sys.argv[1:], start=1) if word.startswith("--")), len(sys.argv))
    if set(sys.argv) & {"-h", "--help"}:
        parser.parse_args(["--help"])
    options = parser.parse_args(sys.argv[1:number])
    recipe = options.file or f"{name_of(options.path)}.yaml"
    sys.argv[1:] = [options.path, *sys.argv[number:], "--init", recipe]
    runpy.run_module("vlm_core.prepare", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
