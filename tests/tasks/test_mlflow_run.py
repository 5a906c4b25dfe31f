"""Each metric reaches MLflow once, also after a resume, and a tracker that is down stops no training."""

import logging
from pathlib import Path

import mlflow
import pytest

from tasks.trackers.mlflow_run import (
    EXPERIMENT,
    MetricsFollower,
    log_evaluation,
    log_parameters,
    run_tags,
    start_mlflow_run,
)
from tests.conftest import new_mlflow_store, small_config
from vlm_core.evaluation.metrics import Use, names
from vlm_core.files import read_json, write_json
from vlm_core.run_directory import METRICS, PARAMETERS
from vlm_core.training.reporter import Reporter

pytestmark = pytest.mark.slow


@pytest.fixture
def run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_mlflow_store(tmp_path))
    client = mlflow.MlflowClient()
    return client.create_run(client.create_experiment("test", f"file://{tmp_path}/artifacts")).info.run_id


def report(directory: Path, first: int, last: int) -> None:
    """Writes the metrics of a job that resumes after step `first - 1`."""
    reporter = Reporter(directory, total_steps=9, first_step=first - 1, enabled=True)
    for step in range(first, last + 1):
        record = {"step": step, "loss": float(step), "lr": 0.1, "grad_norm": 1.0, "samples_per_second": 3.0}
        record |= {"elapsed_seconds": 1.0 * step, "peak_memory_mb": 900.0}
        reporter.step(record)


def steps(run_id: str) -> list[int]:
    return [metric.step for metric in mlflow.MlflowClient().get_metric_history(run_id, "train/loss")]


def test_each_step_is_sent_once_despite_a_resume(run_id: str, tmp_path: Path) -> None:
    follower = MetricsFollower(run_id, tmp_path)
    follower.poll()
    report(tmp_path, 1, 5)
    with (tmp_path / METRICS).open("a") as stream:
        stream.write('{"step": 6, "lo')  # killed while it wrote
    follower.poll()
    assert steps(run_id) == [1, 2, 3, 4, 5]
    assert sorted(mlflow.MlflowClient().get_run(run_id).data.metrics) == [
        "train/grad_norm",
        "train/loss",
        "train/lr",
        "train/peak_memory_mb",
        "train/samples_per_second",
    ]
    (tmp_path / METRICS).write_text((tmp_path / METRICS).read_text().rpartition("\n")[0] + "\n")
    report(tmp_path, 4, 9)  # resumed from step 3, so the file is shorter for a while
    follower.poll()
    assert steps(run_id) == list(range(1, 10))
    follower.poll()
    assert steps(run_id) == list(range(1, 10))


def test_an_experiment_whose_files_a_server_stores_is_refused_without_it(run_id: str) -> None:
    mlflow.create_experiment(EXPERIMENT, "mlflow-artifacts:/1")
    with pytest.raises(ValueError, match=r"`make up`.*MEDPIX_HOME"):
        start_mlflow_run(small_config(), "run", Path("conversations"), {})


def test_trainable_and_frozen_parameters_are_parameters_and_a_table(run_id: str, tmp_path: Path) -> None:
    table = {"language_model": {"trainable": 3, "frozen": 4}, "total": {"trainable": 3, "frozen": 4}}
    write_json(tmp_path / PARAMETERS, table)
    log_parameters(run_id, tmp_path)
    client = mlflow.MlflowClient()
    log_parameters(run_id, tmp_path)  # a run that resumes logs them again
    assert client.get_run(run_id).data.params == {"parameters.trainable": "3", "parameters.frozen": "4"}
    assert client.get_run(run_id).data.metrics == {}  # as metrics they would be two bars before the curves
    assert read_json(Path(client.download_artifacts(run_id, PARAMETERS, str(tmp_path.parent)))) == table


def test_an_evaluation_logs_a_few_headlines_without_intervals(run_id: str, tmp_path: Path) -> None:
    scored = {
        metric: {"value": 0.5, "low": 0.4, "high": 0.6} for metric in (*names(Use.CHART), "bleu_1", "mean_tokens")
    }
    scored["closed_accuracy"] = {"value": None, "low": None, "high": None}
    reliance = {"token_f1": {"value": 0.25, "low": 0.1, "high": 0.3}, "closed_examples": 3}
    for name in ("report.html", "result.json"):
        (tmp_path / name).write_text("{}")
    result = {"scores": {"model": scored, "shuffled": scored}, "visual_reliance": reliance}
    log_evaluation(run_id, result, tmp_path, with_texts=False)
    expected = dict.fromkeys(set(names(Use.CHART)) - {"closed_accuracy"}, 0.5) | {"visual_reliance": 0.25}
    found = mlflow.MlflowClient().get_run(run_id).data.metrics
    assert found == {f"evaluation/{name}": value for name, value in expected.items()}


def test_runs_are_found_by_kind_model_data_and_tuning() -> None:
    trained = run_tags(small_config(**{"peft.dim": 4}), None)
    assert trained == {
        "kind": "training", "recipe": "demo", "model": "builtin:tiny-gemma3", "tuning": "lora",
        "dataset": "builtin:phantom?images=40",
    }  # fmt: skip
    evaluated = run_tags(small_config(), "models:/m@champion")
    assert (evaluated["kind"], evaluated["model"]) == ("evaluation", "models:/m@champion")
    assert "tuning" not in evaluated


def test_a_tracker_that_is_down_gets_the_records_later(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    follower = MetricsFollower(run_id, tmp_path)
    report(tmp_path, 1, 2)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(follower, "run_id", "f" * 32)  # the store rejects an unknown run
        follower.poll()
    assert "MLflow did not accept 2 records" in caplog.text
    follower.poll()
    assert steps(run_id) == [1, 2]


def test_a_resumed_run_sends_no_step_twice(run_id: str, tmp_path: Path) -> None:
    report(tmp_path, 1, 5)
    MetricsFollower(run_id, tmp_path).poll()
    report(tmp_path, 4, 7)  # killed, and resumed from step 3
    MetricsFollower(run_id, tmp_path).poll()
    assert steps(run_id) == list(range(1, 8))
