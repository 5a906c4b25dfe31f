"""The whole flow, as a user starts it, on real CT, MR and ultrasound images and from there to the registry."""

import ast
import base64
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.registry import __main__ as registry
from tasks.registry.arguments import registry_parser
from tests.conftest import tiny_directory
from tests.medical import FILES, write_medical_dataset
from tests.readme import ROOT, blocks, loading
from tests.wandb_files import wandb_runs
from vlm_core import generate
from vlm_core.arguments import generate_parser
from vlm_core.data.pseudonyms import FILE as CASE_KEY
from vlm_core.files import read_json_lines
from vlm_core.run_directory import METRICS

pytestmark = pytest.mark.slow

PREDICT = """
import json, sys, mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = pandas.DataFrame(json.loads(sys.stdin.read()))
print("ANSWERS" + json.dumps([*model.predict(rows, params={"max_new_tokens": 5})["answer"]]))
"""


def python(*arguments: str, home: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment | {"MEDPIX_HOME": str(home), "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1"},
        capture_output=True,
        text=True,
        timeout=550,
        **options,
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the `main` of a command in this process, in a home, and returns its output; imports take longer than it."""

    def call(main: Callable[[], None], *arguments: str, home: Path) -> str:
        monkeypatch.setenv("MEDPIX_HOME", str(home))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow/mlflow.db")
        monkeypatch.setattr("sys.argv", ["command", *arguments])
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    return call


def answer() -> None:
    """The command `python -m vlm_core.generate`."""
    generate.main(generate_parser(None).parse_args())


def change_registry() -> None:
    """The command `python -m tasks.registry`."""
    registry.main(registry_parser(None).parse_args())


def commit_of_the_checkout() -> str | None:
    """Returns git's own word, None where the tests lie in no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


@pytest.fixture(scope="module", params=["gemma3-nf4", "gemma3n-full"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The home and the summary of a run on the medical images, in a working directory that must stay empty."""
    directory = tmp_path_factory.mktemp("flow")
    write_medical_dataset(directory / "data")
    (directory / "work").mkdir()
    family, tuning = request.param.split("-")
    settings = {
        "dataset.path_or_dataset": directory / "data",
        "model.pretrained_model_name_or_path": tiny_directory(family),
        "step_scheduler.global_batch_size": 6,
        "step_scheduler.local_batch_size": 3,
        "step_scheduler.max_steps": 12,
        "optimizer.lr": 5e-3,
        "lr_scheduler.lr_warmup_steps": 0,
        "compute.nproc_per_node": 2 if tuning == "full" else 1,
        "evaluation.max_new_tokens": 8,
        "registry.model_name": f"medpix-{family}",
        "wandb.project": "medical",
        "wandb.mode": "offline",
    } | ({"peft.dim": 4, "model.quantization": "nf4"} if tuning == "nf4" else {"dataset.pseudonymise_case_ids": True})
    overrides = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = ["-m", "pipelines.finetune", "--recipe", "demo", *overrides]
    (directory / "command.json").write_text(json.dumps(command))
    result = python(*command, home=directory / "home", cwd=directory / "work")
    assert result.returncode == 0, result.stdout + result.stderr
    assert list((directory / "work").iterdir()) == []  # everything was written under the home
    assert "finetune 12/12 steps" in result.stderr + result.stdout  # the job's lines reached the flow run's log
    assert [line for line in result.stderr.splitlines() if len(re.findall(r"\d\d:\d\d:\d\d", line)) > 1] == []
    assert re.findall(r"== (\d+/\d+) ", result.stderr) == [f"{number}/9" for number in range(1, 10)]
    (directory / "stdout.txt").write_text(result.stdout)
    return directory / "home", json.loads((directory / "home" / "runs" / "latest" / "summary.json").read_text())


def test_the_summary_has_what_was_done(finished: tuple[Path, dict[str, Any]]) -> None:
    home, summary = finished
    assert (summary["dataset"]["rows"], summary["dataset"]["images"], summary["dataset"]["cases"]) == (33, 11, 8)
    assert summary["training"]["steps"] == 12
    assert summary["training"]["last_loss"] < summary["training"]["first_loss"]
    assert summary["evaluation"]["examples"] == 9
    assert summary["registered_model"]["alias"] == "challenger"
    assert Path(summary["checkpoint"]).name == "epoch_2_step_12"
    assert Path(summary["checkpoint"]).parent == (home / "runs" / "latest").resolve()
    predictions = pq.read_table(home / "runs" / "latest" / "evaluation" / "predictions.parquet").to_pylist()
    cases = {row["case_id"] for row in predictions}
    if (home / CASE_KEY).exists():
        written = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
        assert len(cases) == 3
        assert all(case.startswith("case-") and case.encode() in written for case in cases)
        assert not [name for name in FILES if name.removesuffix(".dcm").encode() in written]
    else:
        assert cases == {"MR_small", "examples_palette", "examples_ybr_color"}


def test_a_new_process_finds_the_version_and_asks_it(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    home, summary = finished
    data = pq.read_table(next((home.parent / "data" / "data").glob("validation-*"))).to_pylist()
    images = [base64.b64encode(row["image_id"]["bytes"]).decode() for row in data]
    rows = {"image": images, "question": [row["question"] for row in data]}
    code = f"import os; os.environ['MLFLOW_TRACKING_URI'] = 'sqlite:///{home}/mlflow/mlflow.db'\n{PREDICT}"
    result = python("-c", code, summary["registered_model"]["uri"], home=home, input=json.dumps(rows), cwd=tmp_path)
    assert "ANSWERS" in result.stdout, result.stderr
    answers = json.loads(result.stdout.partition("ANSWERS")[2])
    predictions = pq.read_table(home / "runs" / "latest" / "evaluation" / "predictions.parquet").to_pylist()
    by_id = {row["example_id"]: row["prediction"] for row in predictions}
    assert len(answers) == len(data)
    # Shorter answers than those of the evaluation, and the same from the start.
    assert all(by_id[f"validation-{i}"].startswith(answer.rstrip("\ufffd")) for i, answer in enumerate(answers))


def test_mlflow_has_the_run(finished: tuple[Path, dict[str, Any]]) -> None:
    import mlflow

    home, summary = finished
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow/mlflow.db")
    run = client.get_run(summary["mlflow_run_id"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", summary["run_id"])
    assert run.data.params["step_scheduler.max_steps"] == "12"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in losses] == list(range(1, 13))
    assert losses[-1].value == summary["training"]["last_loss"]
    assert run.data.metrics["evaluation/token_f1"] == summary["evaluation"]["scores"]["model"]["token_f1"]["value"]
    headlines = {"token_f1", "rouge_l", "exact_match", "closed_accuracy", "perplexity", "visual_reliance",
                 "clinical_agreement", "contradictions"}  # fmt: skip
    shown = {name.partition("/")[2] for name in run.data.metrics if name.startswith("evaluation/")}
    assert shown <= headlines  # a metric is a chart; intervals and controls are in the description and the report
    assert run.data.params["parameters.trainable"].isdecimal()
    assert (run.data.tags["kind"], run.data.tags["recipe"]) == ("training", "demo")
    assert run.data.tags["tuning"] == ("lora" if run.data.params.get("peft.dim") == "4" else "full")
    assert "prefect.flow_run_url" not in run.data.tags  # the flow's own server has ended
    page = run.data.tags["mlflow.note.content"]
    assert page.startswith(f"**Version {summary['registered_model']['version']} of ")
    assert (home / "runs" / summary["run_id"] / "evaluation" / "report.html").as_uri() in page
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "evaluation")}
    assert {f"evaluation/{name}" for name in ("report.html", "result.json", "predictions.parquet")} <= artifacts
    assert [i.dataset.digest for i in run.inputs.dataset_inputs] == [summary["dataset"]["fingerprint"]] * 2
    # What it was made with, and what the machine did meanwhile.
    packages = ("medpix-finetune", "torch", "transformers", "peft", "datasets", "prefect", "mlflow")
    assert {p: run.data.tags[f"version.{p}"] for p in packages} == {p: version_of(p) for p in packages}
    assert run.data.tags.get("mlflow.source.git.commit") == commit_of_the_checkout()
    loads = client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    assert sum(metric.value for metric in loads) > 0
    kept = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "loss.png", "data", "evaluation"} <= kept
    config = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.yaml")
    assert config == (home / "runs" / summary["run_id"] / "config.yaml").read_text()
    version = client.get_model_version_by_alias(summary["registered_model"]["name"], "challenger")
    assert f"| Token F1 | {summary['evaluation']['scores']['model']['token_f1']['value']:.3f} |" in version.description
    assert "- cases not seen in training: " in version.description
    # Three cases give no intervals, and the card promises none.
    assert "on 3 cases, too few cases for intervals;" in version.description
    assert f"**Verdict**: this model {summary['evaluation']['verdict']['text']}." in version.description
    assert "Base model: not stated" in version.description  # its directory has no card
    assert "None" not in version.tags.values()
    assert "limit" not in version.tags
    model = client.get_registered_model(summary["registered_model"]["name"])
    assert f'mlflow.pyfunc.load_model("models:/{model.name}@champion")' in model.description
    assert (str(version.version), version.run_id) == (summary["registered_model"]["version"], run.info.run_id)


def test_weights_and_biases_has_the_run_too(finished: tuple[Path, dict[str, Any]]) -> None:
    home, _ = finished
    (run,) = wandb_runs(home / "runs" / "latest")
    metrics = read_json_lines(home / "runs" / "latest" / METRICS)[0]
    logged = [(row["step"], row["train/loss"]) for row in run["history"] if "train/loss" in row]
    assert logged == [(record["step"], record["loss"]) for record in metrics]
    assert (run["project"], run["exit_code"]) == ("medical", 0)


@pytest.mark.parametrize("finished", ["gemma3n-full"], indirect=True)
def test_full_weights_are_not_copied_into_a_registry_on_the_same_disk(
    finished: tuple[Path, dict[str, Any]], here: Callable[..., str]
) -> None:
    """The version names them by path and sha256; loading it fails if they have changed."""
    home, summary = finished
    trained = Path(summary["checkpoint"]) / "model" / "model.safetensors"
    assert list((home / "mlflow").rglob("*.safetensors")) == []
    (kept,) = (home / "runs" / summary["run_id"]).glob("registered/*/model.safetensors")
    assert kept.stat().st_ino == trained.stat().st_ino  # the same bytes on disk
    content = kept.read_bytes()
    try:
        kept.unlink()
        kept.write_bytes(content[:-1])
        asked = ["--checkpoint-path", summary["registered_model"]["uri"], "--prompt", "What is shown?"]
        with pytest.raises(SystemExit, match=r"model.safetensors missing or changed. Restore it, or register the mod"):
            here(answer, *asked, home=home)
    finally:
        kept.unlink()
        os.link(trained, kept)


def test_the_checkpoint_answers_on_the_command_line(
    finished: tuple[Path, dict[str, Any]], here: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, summary = finished
    row = pq.read_table(next((home.parent / "data" / "data").glob("train-*"))).slice(0, 1).to_pylist()[0]
    (tmp_path / "image.png").write_bytes(row["image_id"]["bytes"])
    monkeypatch.chdir(tmp_path)
    words = ["--image", "image.png", "--prompt", row["question"], "--max-new-tokens", "5"]
    text = here(answer, "--checkpoint-path", summary["checkpoint"], *words, home=home)
    words += ["--output-format", "json", "--output-file", "answer.json"]
    assert here(answer, "--checkpoint-path", summary["registered_model"]["uri"], *words, home=home) == ""
    found = json.loads((tmp_path / "answer.json").read_text())
    assert (found["prompt"], found["images"]) == (row["question"], ["image.png"])
    assert text == found["response"] + "\n"


@pytest.mark.parametrize("finished", ["gemma3-nf4"], indirect=True)
def test_the_readme_loads_the_model_without_servers(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    home, _ = finished
    row = pq.read_table(next((home.parent / "data" / "data").glob("train-*"))).slice(0, 1).to_pylist()[0]
    (tmp_path / "image.png").write_bytes(row["image_id"]["bytes"])
    loaded = python("-c", loading(), home=home, cwd=tmp_path)
    assert loaded.returncode == 0, loaded.stderr
    (record,) = ast.literal_eval(loaded.stdout.splitlines()[-1])
    assert isinstance(record["answer"], str)
    assert set(record) == {"answer", "confidence"}


@pytest.mark.parametrize("finished", ["gemma3-nf4"], indirect=True)
def test_the_last_line_can_be_pasted(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """In a new shell, and in another directory."""
    home, summary = finished
    lines = (home.parent / "stdout.txt").read_text().splitlines()
    row = pq.read_table(next((home.parent / "data" / "data").glob("validation-*"))).slice(0, 1).to_pylist()[0]
    assert f"(reference answer: {row['answer']})" in lines[-2]
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(lines[-1], shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predictions = pq.read_table(home / "runs" / summary["run_id"] / "evaluation" / "predictions.parquet").to_pylist()
    assert done.stdout.startswith(predictions[0]["prediction"].rstrip("\ufffd"))
    box = [line for line in lines if line.startswith("| ")]
    names = [line[2:16].strip() for line in box]  # none in the second line of a long value
    assert [name for name in names if name] == ["verdict", "token F1", "looking adds", "training loss", "champion"]
    assert len({len(line) for line in box}) == 1


@pytest.mark.parametrize("finished", ["gemma3-nf4"], indirect=True)
def test_the_champion_answers_the_same_questions(finished: tuple[Path, dict[str, Any]]) -> None:
    """The next run is compared with the base model and with the champion, and neither is asked again."""
    home, summary = finished
    model = summary["registered_model"]
    verdict = summary["evaluation"]["verdict"]
    assert (verdict["learnt"], model["promotion"]["promoted"]) == (False, False)  # twelve steps are too few
    assert model["promotion"]["reason"].startswith(verdict["text"])
    promoted = python("-m", "tasks.registry", "promote", model["name"], model["version"], home=home)
    assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    command = json.loads((home.parent / "command.json").read_text())
    result = python(*command, "--step_scheduler.max_steps", "6", home=home, cwd=home.parent / "work")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "evaluate model" in result.stderr
    assert not re.search("evaluate (champion|base)", result.stderr)  # their answers of the first run are there
    second = json.loads((home / "runs" / "latest" / "summary.json").read_text())
    after, champion = second["evaluation"], f"models:/{model['name']}/{model['version']}"
    assert after["compared"] == {"base": "base", "champion": champion}
    before = summary["evaluation"]["scores"]
    assert (after["scores"]["champion"], after["scores"]["base"]) == (before["model"], before["base"])
    expected = after["scores"]["model"]["logprob"]["value"] - before["model"]["logprob"]["value"]
    assert after["differences"]["champion"]["logprob"]["value"] == pytest.approx(expected, abs=1e-4)
    promotion = second["registered_model"]["promotion"]
    assert (after["verdict"]["learnt"], promotion["promoted"]) == (False, False)
    assert promotion["reason"].startswith("has not learnt")


@pytest.mark.parametrize("finished", ["gemma3-nf4"], indirect=True)
def test_the_documented_commands_change_the_champion(
    finished: tuple[Path, dict[str, Any]], here: Callable[..., str]
) -> None:
    """The last test of its home: the champion is another one afterwards."""
    import mlflow

    home, summary = finished
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow/mlflow.db")
    name = summary["registered_model"]["name"]
    here(change_registry, "promote", name, "1", home=home)
    while client.create_model_version(name, source=home.as_uri()).version < 4:
        pass
    for line in blocks(ROOT / "docs" / "registry.md", "bash")[-1].splitlines():
        words = shlex.split(line)
        assert words[:2] == ["medpix", "registry"]
        shown = here(change_registry, *words[2:], home=home)
    *_, promoted, rolled_back = shown.splitlines()
    assert re.search(r"\+00:00 +\S+@\S+ +promoted by hand +1 +4 .*reviewed by hand$", promoted)
    assert re.search(r"rolled back +4 +1 +0\.\d+ .*misses small lesions$", rolled_back)  # with the scores of version 1
