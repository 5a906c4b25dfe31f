"""Writes the pages that follow from the code: docs/configuration.md and docs/commands.md.

python -m docs.site.generate            writes them
python -m docs.site.generate --check    exits with status 1 if one is not current
"""

import argparse
import contextlib
import io
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from medpix.command import help_text, run
from medpix.commands import COMMANDS, Command
from vlm_core.cli import kind_of, written
from vlm_core.config import Config
from vlm_core.recipe import config_keys, section_of

DOCS = Path(__file__).parents[1]
COLUMNS = "110"  # of the help texts
ESCAPED = {"](": "]&#40;", " | ": " or ", "|": "\\|", "<": "&lt;", "*": "\\*", "_target_": "\\_target\\_"}
CONFIGURATION = """\
# Configuration

After this page you know every setting, what it may be, and what it is by default.

<!-- Written by python -m docs.site.generate from the classes in vlm_core/config/. -->

A recipe is a YAML file with these sections; it has only what differs from the defaults. Each key can be given on the
command line too, as `--section.key VALUE`, or in the forms and `overrides` of Prefect. `medpix train --recipe NAME
--print-config` prints the result. An unknown key is an error that names the nearest one. `base_recipe: NAME` takes the
values of a shipped recipe that a file leaves out. The blocks of NeMo Automodel's Gemma 3 guide load as they are.
"""
COMMANDS_PAGE = """\
# Commands

After this page you know every command and its options.

<!-- Written by python -m docs.site.generate from the commands' own help. -->

`pip install` makes one command, `medpix`. Each of its subcommands runs a module: `medpix train` is
`python -m pipelines.finetune`.
[Get started](start.md#completion) says how a shell completes names and settings.
"""


def configuration() -> str:
    """Returns the page with every key of the config, by section."""
    plain = [(key, field) for key, field in config_keys() if "." not in key and section_of(field.annotation) is None]
    parts = [CONFIGURATION, "## Top level\n", *_table(plain)]
    for name, field in Config.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            about = " ".join((field.description or section.__doc__ or "").split("\n\n")[0].split())
            parts += [
                f"\n## {name}\n",
                *([f"{_cell(about)}\n"] if about else []),
                *_table(config_keys(section, f"{name}.")),
            ]
    return "\n".join(parts) + "\n"


def _table(keys: Iterable[tuple[str, Any]]) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for key, field in keys:
        default = "required" if field.is_required() else f"`{written(field.default) or chr(39) * 2}`"
        kind = kind_of(field.annotation, field.metadata)
        yield f"| `{key}` | {_cell(kind)} | {default} | {_cell(field.description or '')} |"


def _cell(text: str) -> str:
    """Returns a text for a cell of a table, without the characters that Markdown and HTML would read."""
    for character, instead in ESCAPED.items():
        text = text.replace(character, instead)
    return text


def commands() -> str:
    """Returns the page with the help of every command."""
    names = defaultdict(list)
    for command in COMMANDS:
        names[_help_of(command)].append(command.name)
    sections = (f"## {', '.join(shared)}\n\n```text\n{text}```\n" for text, shared in names.items())
    return "\n".join([COMMANDS_PAGE, f"```text\n{help_text()}\n```\n", *sections])


def _help_of(command: Command) -> str:
    """Returns what `medpix COMMAND --help` prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        run(command, ["--help"])
    return output.getvalue()


PAGES: dict[str, Callable[[], str]] = {"configuration.md": configuration, "commands.md": commands}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    os.environ["COLUMNS"] = COLUMNS
    stale = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and stale:
        sys.exit(f"not current: {', '.join(stale)}; run python -m docs.site.generate")


if __name__ == "__main__":
    main()
