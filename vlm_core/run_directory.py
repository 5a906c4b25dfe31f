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
from typing import Any

import yaml

from vlm_core.config import Config
from vlm_core.guide import translate
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
CONSOLIDATED = "consolidated"  # below a checkpoint's model/ if that holds shards: a plain transformers directory
REGISTERED = "registered"
EVALUATION = "evaluation"
DATA = "data"
PREDICTIONS = "predictions.parquet"
EXAMPLES = "examples.png"
EXAMPLE = "example.json"
REPORT = "report.html"

# What must not change between the run that wrote a checkpoint and the one that resumes from it.
FIXED_SECTIONS = ("model", "dataset", "peft", "freeze_config", "optimizer", "lr_scheduler", "rng")
# The same for keys of other sections, each with the value that a checkpoint older than the key had.
FIXED_KEYS = {
    "step_scheduler.global_batch_size": 8,
    "packing.enabled": False,
    "dataloader.collate_fn": {"_target_": None},
}


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


def checkpoint_to_resume(run_directory: Path, restore_from: str | None) -> Path | None:
    """Returns the checkpoint that a run resumes from; None for a fresh start.

    `restore_from` is a pointer or a checkpoint of the run directory, or a path; without it LATEST is taken.
    Raises ValueError for a name that is none of these.
    """
    if restore_from is None:
        pointer = run_directory / LATEST
        return pointer.resolve() if pointer.exists() else None
    for candidate in (run_directory / restore_from, Path(restore_from)):
        if (candidate / PROGRESS).is_file():
            return candidate.resolve()
    there = sorted(path.parent.name for path in run_directory.glob(f"*/{PROGRESS}"))
    raise ValueError(
        f"checkpoint.restore_from={restore_from!r} is no checkpoint, neither as a path nor in {run_directory}, "
        f"which has {', '.join(there) or 'none'}"
    )


def as_it_began(config: Config, checkpoint: Path) -> Config:
    """Returns `config` with the batch size, epochs and warm-up that its run began with, unless it gives them itself.

    A share of warm-up became steps when the run began, and those steps stay.
    """
    began = Config.model_validate(_stored(checkpoint))
    schedule, lr = config.step_scheduler, config.lr_scheduler
    length = {
        name: getattr(began.step_scheduler, name)
        for name in ("global_batch_size", "num_epochs")
        if getattr(schedule, name) is None
    }
    update: dict[str, Any] = {"step_scheduler": schedule.model_copy(update=length)}
    if lr.lr_warmup_steps is None:
        warmup = {"lr_warmup_steps": began.lr_scheduler.lr_warmup_steps, "lr_warmup_share": None}
        update["lr_scheduler"] = lr.model_copy(update=warmup)
    return config.model_copy(update=update)


def _stored(checkpoint: Path) -> dict[str, Any]:
    """Returns the config of a checkpoint, with the values that older ones had for keys that they lack."""
    stored = translate(yaml.safe_load((checkpoint / CONFIG).read_text(encoding="utf-8")))
    for key, in_older_ones in FIXED_KEYS.items():
        section, _, name = key.partition(".")
        stored.setdefault(section, {}).setdefault(name, in_older_ones)
    return stored


def require_compatible(checkpoint: Path, config: Config) -> None:
    """Raises ValueError that names what differs, if `checkpoint` belongs to another run than `config`."""
    began = Config.model_validate(_stored(checkpoint))  # with the defaults of keys that the checkpoint is older than
    before = began.model_dump(mode="json")
    now = config.model_dump(mode="json")
    pairs = {section: (before[section], now[section]) for section in FIXED_SECTIONS}
    for key in FIXED_KEYS:
        section, _, name = key.partition(".")
        pairs[key] = (before[section][name], now[section][name])
    changed = [f"{key} was {old}, is {new}" for key, (old, new) in pairs.items() if old != new]
    if changed:
        raise ValueError(
            f"{checkpoint.parent} holds another run ({'; '.join(changed)}); "
            "give checkpoint.checkpoint_dir another directory, or the settings of that run"
        )
