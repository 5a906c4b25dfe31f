"""Commands read their arguments before slow imports, and their help and errors are useful."""

import subprocess
import sys

import pytest

from vlm_core import arguments
from vlm_core.cli import ConfigParser
from vlm_core.recipe import config_keys

SLOW = ("torch", "peft", "transformers", "datasets", "mlflow", "prefect", "matplotlib", "pyarrow", "spacy")
# Runs a command as `python -m` does; at its end, writes the slow packages that it imported to standard error.
RUN = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print("imported:", [name for name in {SLOW} if name in sys.modules], file=sys.stderr)
"""
FROM_RECIPES = ["pipelines.finetune", *(f"vlm_core.{name}" for name in ("prepare", "encode", "finetune", "evaluate"))]
OTHERS = [
    *(f"vlm_core.{name}" for name in ("generate", "export", "caches", "review", "judge")),
    *(f"tasks.{name}" for name in ("registry", "services", "ownership", "playground")),
    "pipelines.sweep",
    "deployments.scaling",
    "benchmarks.run",
]
PARSERS = {
    "pipelines.finetune": arguments.flow_parser,
    "vlm_core.prepare": arguments.prepare_parser,
    "vlm_core.encode": arguments.encode_parser,
    "vlm_core.finetune": arguments.finetune_parser,
    "vlm_core.evaluate": arguments.evaluate_parser,
}
WRONG = [
    (["--recipe", "dem"], "did you mean 'demo'?"),
    (["--config", "demo", "--optimizer.lrr", "1"], "nearest: 'optimizer.lr'"),
    (["--recipe", "demo", "--optimizer.lr", "-1"], "should be greater than 0"),
    (["--recipee", "demo"], "unknown option --recipee; nearest: --recipe"),
    (["--optimizer.lr", "1"], "--config is missing"),
    (["--config", "demo", "--print-confg"], "unknown option --print-confg; nearest: --print-config"),
]


@pytest.mark.parametrize(
    ("space", "message"),
    [("optimizer.lrr: [1, 2]", "nearest: 'optimizer.lr'"), ("missing.yaml", "neither YAML such as"), (None, "--space")],
)
def test_a_wrong_space_is_reported_before_slow_imports(space: str | None, message: str) -> None:
    done = run("pipelines.sweep", "--recipe", "demo", *(("--space", space) if space else ()))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "imported: []")
    assert message in done.stderr


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True)


@pytest.mark.parametrize("module", [*FROM_RECIPES, *OTHERS])
def test_help_comes_before_slow_imports(module: str) -> None:
    done = run(module, "--help")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "imported: []")
    assert f"usage: python -m {module}" in done.stdout


@pytest.mark.parametrize("module", FROM_RECIPES)
@pytest.mark.parametrize(("words", "message"), WRONG)
def test_a_wrong_argument_is_reported_before_slow_imports(module: str, words: list[str], message: str) -> None:
    done = run(module, *words)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "imported: []")
    assert message in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("vlm_core.generate", "--promt", "x"),
        ("vlm_core.export", "merg"),
        ("vlm_core.caches", "lst"),
        ("vlm_core.review", "mak"),
        ("vlm_core.judge", "evaluation", "--modell", "x"),
        ("tasks.registry", "promot"),
        ("tasks.services", "dwn"),
        ("tasks.ownership", "--dry"),
        ("deployments.scaling", "--image", "x"),
        ("benchmarks.run", "ful"),
    ],
)
def test_a_wrong_argument_without_a_recipe_is_reported_before_slow_imports(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "imported: []")
    assert words[1] in done.stderr


def test_a_command_ends_without_a_last_search_for_garbage() -> None:
    """With torch and transformers loaded, it would take two seconds, also after a training was cancelled."""
    read = "arguments.read_arguments(arguments.generate_parser(None), 'torch')"
    at_exit = "atexit.register(lambda: print('frozen:', gc.get_freeze_count() > 0))"  # the first one runs last
    program = f"import atexit, gc; {at_exit}; from vlm_core import arguments; {read}"
    words = [sys.executable, "-c", program, "--checkpoint-path", "model", "--prompt", "?"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "frozen: True\n"), done.stderr


@pytest.mark.slow
def test_a_correct_command_reports_what_it_loads() -> None:
    done = run("vlm_core.generate", "--checkpoint-path", "nowhere")
    assert done.stderr.splitlines()[0].endswith("loading torch and transformers")
    assert "give --prompt for one question" in done.stderr


@pytest.mark.parametrize("module", FROM_RECIPES)
def test_help_is_short_and_the_full_help_is_available(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            PARSERS[module]("What it does.").parse_args([option])
        assert stop.value.code == 0
        texts.append(capsys.readouterr().out)
    short, complete = texts
    keys = [key for key, _ in config_keys()]
    assert 4 <= sum(f"  --{key}  " in short for key in keys) <= 10
    assert sum(f"  --{key}  " in complete for key in keys) == len(keys)
    for text in texts:
        assert "usage: python -m" in text
        assert "--print-config" in text


@pytest.mark.parametrize("option", ["--recipe", "--config"])
def test_recipe_and_config_are_the_same_option(option: str) -> None:
    for parser in PARSERS.values():
        assert parser(None).parse_config([option, "demo"])[1].name == "demo"


def test_similar_options_are_suggested_but_keys_are_not_taken_for_options() -> None:
    parser = ConfigParser(prog="test")
    parser.add_argument("--compute-all", action="store_true")
    assert parser.parse_config(["--config", "demo", "--compute", "{}"])[1].name == "demo"
