"""The contract between a heavy job and whoever waits for it: the files of a run directory, by name.

config.yaml         the resolved config of the run
parameters.json     trainable and frozen parameters by part of the model
metrics.jsonl       a line for each optimizer step, flushed
validation.jsonl    a line for each validation loss
epoch_E_step_S/     checkpoints, with the pointers LATEST and LOWEST_VAL beside them
samples.jsonl       at each validation, what the model answers to the same few questions
loss.png            both of them, drawn when the run ends
result.json         what the job returns; written last
JOB.log             what a job said (encode, finetune, evaluate); under the flow alone, as are
JOB.progress.json   how far it is
JOB.pid             its process, while it runs on this machine
JOB.slurm.sh        the script that Slurm got; while the job is there, JOB.slurm.json has its id, and JOB.slurm.exit
                    the exit code that the script left
mlflow_run.json     the MLflow run
registered/         full weights that a version in a registry on this machine refers to, as hard links
data/               report.html and statistics.json of the data
example.json        a question to try the model on, its answer in the data, and its images (example_0.png, ...)
evaluation/         report.html, predictions.parquet, examples.png, and a result.json of its own
"""

from pathlib import Path

from vlm_core.home import medpix_home

CONFIG = "config.yaml"
PARAMETERS = "parameters.json"
METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
LATEST = "LATEST"
LOWEST_VAL = "LOWEST_VAL"
RESULT = "result.json"
LOSS_PLOT = "loss.png"
SAMPLES = "samples.jsonl"
PROGRESS = "progress.json"  # of a checkpoint
WEIGHTS = "model"  # directory of a checkpoint: adapter or full weights, with the processor
TRAINING_STATE = "training_state.pt"  # of a checkpoint: optimizer and schedule
CHECKSUMS = "checksums.json"  # of a checkpoint: the sha256 of its other files, by relative path
CONSOLIDATED = "consolidated"  # below a checkpoint's model/ if that holds shards: a plain transformers directory
REGISTERED = "registered"
EVALUATION = "evaluation"
DATA = "data"
PREDICTIONS = "predictions.parquet"
EXAMPLES = "examples.png"
EXAMPLE = "example.json"
REPORT = "report.html"


def run_root() -> Path:
    """Returns where runs have their directories; `latest` in it points to the last flow run that ended well."""
    return medpix_home() / "runs"


def require_registered(weights: Path) -> None:
    """Raises ValueError unless `weights` is a directory of registered weights inside a run directory."""
    run = weights.resolve().parents[1] if len(weights.resolve().parents) > 1 else weights
    if weights.resolve().parent.name != REGISTERED or not (run / CONFIG).is_file():
        raise ValueError(
            f"{weights} is not a directory of registered weights, RUN/{REGISTERED}/...: the version was changed, or "
            "its run directory was moved; register the model again"
        )
