"""The Makefile as users see it: its help, and the environment that a shell evaluates."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_help_lists_every_target_in_one_column() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split())
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [re.fullmatch(r"(\S+) +(\S.*)", line) for line in done.stdout.splitlines()]
    assert {line[1] for line in lines if line} == phony >= {"bench-quick", "env"}
    assert len({line.start(2) for line in lines if line}) == 1
    assert None not in lines


def test_the_setup_of_make_env_prints_nothing_for_the_shell() -> None:
    """A shell evaluates the output of `make env`, so a setup that runs first must write to standard error."""
    words = ["make", "--no-print-directory", "--dry-run", "--always-make", "env"]
    planned = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    steps = [line for line in planned.splitlines() if "setup" in line]
    assert steps
    assert all(step.endswith(">&2") for step in steps)
