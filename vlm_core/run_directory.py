"""Names the files of a run directory, the interface between a job and the flow that waits for it.

config.yaml         the resolved config of the run
parameters.json     trainable and frozen parameters by part of the model
metrics.jsonl       one line per optimizer step, flushed
validation.jsonl    one line per validation: its loss, and scores of a few answers
epoch_E_step_S/     checkpoints; the links LATEST and LOWEST_VAL (the best) next to them point to two of them
samples.jsonl       the model's answers to the same few questions at each validation
loss.png            plot of training and validation loss, drawn when the run ends
result.json         the result of the job; written last
JOB.log             log of a job (encode, finetune, evaluate); only the flow writes this and the next files
JOB.progress.json   progress of the job
JOB.pid             process id of the job, while it runs on this machine
JOB.slurm.sh        batch script of the Slurm job; JOB.slurm.json has its id while it exists, and JOB.slurm.exit the
                    exit code of the script
mlflow_run.json     the MLflow run
registered/         hard links to the full weights of versions in a registry on this machine
data/               report.html and statistics.json of the data
example.json        a question to try the model with, its answer in the data, and its images (example_0.png, ...)
evaluation/         report.html, predictions.parquet, examples.png, and another result.json
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
    """Returns the parent of all run directories; its link `latest` points to the last successful flow run."""
    return medpix_home() / "runs"


def require_registered(weights: Path) -> None:
    """Raises ValueError unless `weights` is a directory of registered weights inside a run directory."""
    run = weights.resolve().parents[1] if len(weights.resolve().parents) > 1 else weights
    if weights.resolve().parent.name != REGISTERED or not (run / CONFIG).is_file():
        raise ValueError(
            f"{weights} is not a directory of registered weights, RUN/{REGISTERED}/...: the version was changed, or "
            "its run directory was moved. Register the model again"
        )
