"""Records a run in MLflow: its parameters, its dataset, its metrics while it trains, and its final state."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from prefect.runtime import flow_run

from tasks.links import flow_run_link
from tasks.services.environment import default_tracking_uri
from tasks.trackers.metrics_files import PREFIXES, RecordReader, metrics_of
from tasks.trackers.provenance import provenance
from vlm_core.cache import read_manifest
from vlm_core.config import Config, DatasetConfig
from vlm_core.evaluation.metrics import PRIMARY, Use, metrics_in
from vlm_core.evaluation.result_names import MODEL, VISUAL_RELIANCE
from vlm_core.files import read_json
from vlm_core.home import medpix_home
from vlm_core.run_directory import EVALUATION, EXAMPLES, PARAMETERS, PREDICTIONS, REPORT, RESULT

logger = logging.getLogger(__name__)

EXPERIMENT = "medpix-finetune"
CURVES = (
    "loss", "lr", "grad_norm", "samples_per_second", "tokens_per_second", "peak_memory_mb", "model_flops_utilisation",
)  # fmt: skip


def start_mlflow_run(
    config: Config, run_name: str, conversations: Path, tags: dict[str, str], known: str | None = None
) -> str:
    """Starts an MLflow run with the resolved parameters and the dataset's digest, and returns its id.

    With `known`, it resumes that run instead, and logs only what the run does not have yet.
    """
    experiment = None if known else _experiment_id()
    tags = tags | provenance()  # MLflow's page shows them in this order
    with mlflow.start_run(known, experiment, None if known else run_name, tags=tags, log_system_metrics=False) as run:
        _log_params(run.info.run_id, _flatten(config.model_dump(mode="json")), run.data.params)
        for context, dataset in [] if known else _inputs(config):
            source = HuggingFaceDatasetSource(dataset.path_or_dataset, split=dataset.split, revision=dataset.revision)
            # The name has the split: MLflow treats equal names with equal digests as one dataset.
            name = f"{dataset.path_or_dataset} {dataset.split}"
            mlflow.log_input(MetaDataset(source, name, read_manifest(conversations)["fingerprint"]), context)
    # The end of the block marked the run as finished, but it runs until `end_mlflow_run`.
    mlflow.MlflowClient().update_run(run.info.run_id, status="RUNNING")
    return run.info.run_id


def _inputs(config: Config) -> Iterator[tuple[str, DatasetConfig]]:
    """Yields (training or validation, dataset) for each split with a source of its own."""
    for name in config.datasets:
        alone = config.only(name)
        if alone.dataset.split is not None:
            yield "training", alone.dataset
        if alone.validation_source is not None:  # else this split is part of the other one
            yield "validation", alone.validation_source


def run_tags(config: Config, evaluated: str | None) -> dict[str, str]:
    """Returns the tags by which people search for a run; `evaluated` is the evaluated model, or None for a training."""
    link = flow_run_link()
    trained = {"tuning": "lora" if config.peft else "full"} if evaluated is None else {}
    prefect = {"prefect.flow_run_id": flow_run.id or "", "prefect.flow_run_url": link or ""}
    page = f"Flow run in Prefect: [{link}]({link})" if link else ""
    tags = {
        "kind": "training" if evaluated is None else "evaluation",
        "recipe": config.name,
        "model": evaluated or config.model.pretrained_model_name_or_path,
        "dataset": ", ".join(dataset.path_or_dataset for dataset in config.datasets.values()),
        **trained,
        **prefect,
        MLFLOW_RUN_NOTE: page,  # the description, until the results replace it
    }
    return {key: value for key, value in tags.items() if value}


def describe_run(run_id: str, page: str) -> None:
    """Sets `page`, in Markdown, as the description of a run."""
    mlflow.MlflowClient().set_tag(run_id, MLFLOW_RUN_NOTE, page)


def _log_params(run_id: str, params: dict[str, Any], logged: dict[str, str]) -> None:
    """Logs the parameters that are not `logged` yet: MLflow never changes one. The artifact config.yaml is current."""
    new = [Param(key, str(value)) for key, value in params.items() if key not in logged]
    mlflow.MlflowClient().log_batch(run_id, params=new)
    changed = [key for key, value in logged.items() if key in params and str(params[key]) != value]
    if changed:
        logger.warning("MLflow keeps the first values of %s of run %s", ", ".join(sorted(changed)), run_id)


def end_mlflow_run(run_id: str, status: str) -> None:
    """Sets the final state: FINISHED, FAILED or KILLED."""
    try:
        mlflow.MlflowClient().set_terminated(run_id, status=status)
    except MlflowException as error:  # Log it only, so that the error that ended the run stays visible.
        logger.warning("MLflow did not accept the final state %s of run %s: %s", status, run_id, error)


def log_evaluation(run_id: str, result: dict[str, Any], directory: Path, *, with_texts: bool) -> None:
    """Logs the headline scores as metrics `evaluation/...`, the report, and with `with_texts` also the answers."""
    mlflow.MlflowClient().log_batch(run_id, metrics=_metrics(_headlines(result), EVALUATION, step=0))
    names = (REPORT, RESULT, *((EXAMPLES, PREDICTIONS) if with_texts else ()))
    log_files(run_id, [directory / name for name in names], EVALUATION)


def log_parameters(run_id: str, directory: Path) -> None:
    """Logs how many parameters are trainable and frozen: the totals as MLflow parameters, the whole table as a file."""
    client, total = mlflow.MlflowClient(), read_json(directory / PARAMETERS)["total"]
    counts = {f"parameters.{kind}": count for kind, count in total.items()}
    _log_params(run_id, counts, client.get_run(run_id).data.params)
    log_files(run_id, [directory / PARAMETERS])


def log_files(run_id: str, files: Sequence[Path], artifact_directory: str | None = None) -> None:
    """Logs files as artifacts of a run."""
    for path in files:
        mlflow.MlflowClient().log_artifact(run_id, str(path), artifact_directory)


def _headlines(result: dict[str, Any]) -> dict[str, float]:
    """Returns the few scores for comparing runs; the report and the description have all scores, with intervals."""
    model, reliance = result["scores"][MODEL], result["visual_reliance"]
    found = {metric.name: model[metric.name]["value"] for metric in metrics_in(model, Use.CHART)}
    found[VISUAL_RELIANCE] = reliance and reliance[PRIMARY]["value"]
    return {key: value for key, value in found.items() if value is not None}


@contextmanager
def system_metrics(run_id: str) -> Iterator[None]:
    """Logs this machine's CPU, memory, disk and network as `system/...` every ten seconds, and GPUs with nvidia-ml-py.

    MLflow's monitor catches its own errors, so it cannot stop a training.
    """
    monitor = SystemMetricsMonitor(run_id, resume_logging=True)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


class MetricsFollower:
    """Sends each record that a training job appends to its files to MLflow, once and in batches."""

    def __init__(self, run_id: str, directory: Path) -> None:
        # A resumed run repeats the steps after its checkpoint, and MLflow has some of them already.
        sent = {name: _last_step(run_id, prefix) for name, prefix in PREFIXES.items()}
        self.run_id, self.reader = run_id, RecordReader(directory, sent)

    def poll(self) -> None:
        """Sends the new records. If MLflow is down, the training continues, and a later poll sends them."""
        for name, prefix in PREFIXES.items():
            new, position = self.reader.new_records(name)
            metrics = [m for record in new for m in _metrics(_curves(record), prefix, record["step"])]
            try:
                for start in range(0, len(metrics), 1000):  # MLflow's limit for one request
                    mlflow.MlflowClient().log_batch(self.run_id, metrics=metrics[start : start + 1000])
            except MlflowException as error:
                logger.warning("MLflow did not accept %d records of %s: %s", len(new), name, error)
            else:
                self.reader.positions[name] = position


def _curves(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a record that MLflow shows as curves; `metrics.jsonl` has all of them."""
    return {key: value for key, value in record.items() if key in CURVES}


def _last_step(run_id: str, prefix: str) -> int:
    """Returns the last step whose record MLflow has, or 0."""
    try:
        history = mlflow.MlflowClient().get_metric_history(run_id, f"{prefix}/loss")
    except MlflowException as error:  # A tracker that is down must not stop the training.
        logger.warning("MLflow did not answer which steps of run %s it has: %s", run_id, error)
        return 0
    return max((metric.step for metric in history), default=0)


def _experiment_id() -> str:
    """Returns the experiment's id, and creates it if needed; with our default store, artifacts go to the home too.

    Raises ValueError if only a server can store the experiment's artifacts, and none is used.
    """
    known = mlflow.get_experiment_by_name(EXPERIMENT)
    if known is not None:
        served = known.artifact_location.startswith("mlflow-artifacts:")
        if served and not mlflow.get_tracking_uri().startswith("http"):
            raise ValueError(
                f"the experiment {EXPERIMENT} was made with MLflow's server, which stores its files: start it and set "
                'its address (`make up`, then eval "$(make env)"), or set MEDPIX_HOME to another directory'
            )
        return known.experiment_id
    default_store = mlflow.get_tracking_uri() == default_tracking_uri()
    location = (medpix_home() / "mlflow" / "artifacts").as_uri() if default_store else None
    return mlflow.create_experiment(EXPERIMENT, artifact_location=location)


def _metrics(record: dict[str, Any], prefix: str, step: int) -> list[Metric]:
    now = int(time.time() * 1000)
    return [
        # MLflow allows only this punctuation in names, but the label of a compared model may have more.
        Metric("".join(c if c.isalnum() or c in "_-. /" else "_" for c in name), value, now, step)
        for name, value in metrics_of(record, prefix).items()
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
