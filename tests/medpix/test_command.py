"""The command `medpix`: quick help, suggestions, completion, and subcommands that equal the modules."""

import importlib.util
import subprocess
import sys

import pytest

from medpix.command import find, help_text, suggestion
from medpix.commands import COMMANDS, names_of_modules
from medpix.completion import script
from vlm_core import program

SLOW = ("torch", "pydantic", "prefect", "mlflow", "pyarrow", "yaml")


def medpix(*words: str, report: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs the command; with `report`, standard error ends with the slow packages that it imported."""
    if not report:
        return subprocess.run([sys.executable, "-m", "medpix", *words], capture_output=True, text=True)
    code = f"""
import sys
sys.argv = ["medpix", *{words!r}]
from medpix.command import main
try:
    main()
finally:
    print([name for name in {SLOW} if name in sys.modules], file=sys.stderr)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_every_row_names_a_module_once() -> None:
    names = [command.name for command in COMMANDS]
    assert len(set(names)) == len(names)
    assert all(importlib.util.find_spec(command.module) for command in COMMANDS)
    synonyms = [word for command in COMMANDS for word in command.also]
    assert len(set(synonyms)) == len(synonyms)
    assert not set(synonyms) & set(names)


def test_the_help_fits_a_screen() -> None:
    lines = help_text().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert {command.name for command in COMMANDS} <= set(help_text().split())


@pytest.mark.parametrize("words", [("--help",), ("trian",)])
def test_help_and_suggestions_import_nothing_slow(words: tuple[str, ...]) -> None:
    done = medpix(*words, report=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.returncode == (0 if words == ("--help",) else 2)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("trian", "medpix train?"),
        ("Evaluate", "medpix evaluate?"),
        ("evalaute", "medpix evaluate?"),
        ("fit", "medpix train?"),
        ("generate", "medpix ask?"),
        ("start", "medpix up?"),
        ("doctr", "medpix doctor?"),
        ("--recipe", "medpix train --recipe"),
        ("xyzzy", "medpix --help lists them"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(typed: str, meant: str) -> None:
    assert find(typed) is None
    assert suggestion(typed).endswith(meant)


def test_a_subcommand_speaks_of_itself_and_not_of_its_module() -> None:
    done = medpix("plan", "--recipe", "dem")
    assert done.returncode == 2
    assert "usage: medpix finetune --config RECIPE" in done.stderr
    assert "did you mean 'demo'?" in done.stderr
    helped = medpix("help", "registry")
    assert helped.returncode == 0
    assert "medpix registry rollback" in helped.stdout
    assert "python -m" not in helped.stdout


def test_a_reader_that_stops_gets_no_traceback() -> None:
    words = f"{sys.executable} -m medpix plan --help-all | head -1; {sys.executable} -m medpix help xyzzy"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        ["medpix: 'xyzzy' is not a command; medpix --help lists them"],
    )


def test_texts_have_the_way_in_which_the_user_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'run python -m vlm_core.review make, or `make up`, or eval "$(make env)"; python -m tasks.trackers.wandb_run'
    monkeypatch.setattr(program, "NAMES", {})
    assert program.as_called(text) == text
    monkeypatch.setattr(program, "NAMES", names_of_modules())
    asked = 'run medpix review make, or `medpix up`, or eval "$(medpix env)"; python -m tasks.trackers.wandb_run'
    assert program.as_called(text) == asked
    assert program.as_called("python -m tasks.services down, python -m tasks.registry list") == (
        "medpix down, medpix registry list"
    )


def test_a_shell_completes_commands_recipes_and_keys() -> None:
    asked = {"medpix tr": "train", "medpix train --recipe dem": "demo", "medpix plan --peft.di": "--peft.dim"}
    for typed, wanted in asked.items():
        words = typed.split()
        lines = f"COMP_WORDS=({typed}) COMP_CWORD={len(words) - 1}; _medpix; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", script() + lines], capture_output=True, text=True, check=True)
        assert wanted in done.stdout.split()
