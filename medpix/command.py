"""Runs the subcommands. Imports next to nothing, so that help and suggestions come at once."""

import difflib
import os
import runpy
import sys
from collections.abc import Iterator
from importlib.metadata import version

from medpix.commands import COMMANDS, Command, names_of_modules
from vlm_core import program

HELP = ("-h", "--help", "help")
VERSION = ("-V", "--version", "version")


def main() -> None:
    """Runs the command line `medpix COMMAND ...`; exits with status 2 and a suggestion for an unknown command."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in HELP and words:
        name, words = words[0], ["--help"]
    if name in HELP:
        print(help_text())
    elif name in VERSION:
        print(f"medpix-finetune {version('medpix-finetune')}")
    elif command := find(name):
        run(command, words)
    else:
        print(suggestion(name), file=sys.stderr)
        raise SystemExit(2)


def find(name: str) -> Command | None:
    """Returns the command of this name, or None."""
    return next((command for command in COMMANDS if command.name == name), None)


def run(command: Command, words: list[str]) -> None:
    """Runs the command's module in this process, as `python -m MODULE` does.

    The processes that it starts do not import from the working directory either: a user's `tasks.py` there would be
    taken for this project's package.
    """
    program.NAMES.update(names_of_modules())
    sys.argv[1:] = [*command.words, *words]
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads must not spin: two runs would slow each other
    try:
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    except BrokenPipeError:  # the reader has seen enough: `medpix caches list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        raise SystemExit(1) from None


def help_text() -> str:
    """Returns the help, with the commands by group."""
    return "\n".join(["usage: medpix COMMAND ...      medpix COMMAND --help shows its options", *_rows()])


def _rows() -> Iterator[str]:
    shown = ""
    for command in COMMANDS:
        group = "" if command.group == shown else command.group
        shown = command.group
        yield f"{group:<9} {command.name:<11} {command.help}"


def suggestion(name: str) -> str:
    """Returns the error for an unknown command, with the nearest known one."""
    wrong = f"medpix: {name!r} is not a command"
    if name.startswith("-"):
        return f"{wrong}; a command comes first, for example: medpix train {name}"
    meant = [command.name for command in COMMANDS if name.lower() in command.also]
    near = meant or difflib.get_close_matches(name.lower(), [command.name for command in COMMANDS], n=1, cutoff=0.4)
    return f"{wrong}; did you mean: medpix {near[0]}?" if near else f"{wrong}; medpix --help lists them"


if __name__ == "__main__":
    main()
