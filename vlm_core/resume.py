"""Chooses the checkpoint that a run resumes from, and checks that it belongs to the same run."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vlm_core.config import Config
from vlm_core.files import file_sha256, read_json
from vlm_core.guide import translate
from vlm_core.models.model_directory import read_header
from vlm_core.run_directory import CHECKSUMS, CONFIG, LATEST, LOWEST_VAL, PROGRESS, WEIGHTS

logger = logging.getLogger(__name__)

# Sections that must not change between the run that wrote a checkpoint and the run that resumes from it.
FIXED_SECTIONS = (
    "model",
    "dataset",
    "more_datasets",
    "mixture",
    "peft",
    "freeze_config",
    "optimizer",
    "lr_scheduler",
    "rng",
)
# Single keys that must not change. The values apply to checkpoints that are older than the key.
FIXED_KEYS = {
    "step_scheduler.global_batch_size": 8,
    "packing.enabled": False,
    "dataloader.collate_fn": {"_target_": None},
}


def checkpoint_to_resume(run_directory: Path, restore_from: str | None, *, thorough: bool = False) -> Path | None:
    """Returns the checkpoint that a run resumes from; None for a fresh start.

    `restore_from` names a pointer or checkpoint of the run directory, or a path. None means LATEST or, if LATEST is
    broken or its checkpoint damaged, the newest intact checkpoint before it. `thorough` reads all of its files.
    Raises ValueError if the checkpoint of `restore_from` is missing or damaged, or if no checkpoint is intact.
    """
    if restore_from is not None:
        return _named(run_directory, restore_from, thorough=thorough)
    faults = []
    for checkpoint in _latest_first(run_directory):
        fault = fault_of(checkpoint, thorough=thorough)
        if fault is None:
            for found in faults:
                logger.warning("%s; the run resumes from %s instead", found, checkpoint.name)
            return checkpoint
        faults.append(fault)
    if faults:
        raise ValueError(
            f"{'; '.join(faults)}. No checkpoint of {run_directory} is intact: restore one from a backup, or set "
            "checkpoint.checkpoint_dir to another directory to start again"
        )
    return None


def fault_of(checkpoint: Path, *, thorough: bool) -> str | None:
    """Returns what is wrong with a checkpoint, None if it is intact. `thorough` checks the checksums of all files."""
    if not (checkpoint / PROGRESS).is_file():
        return f"{checkpoint} is not a checkpoint: it has no {PROGRESS}"
    try:
        step = read_json(checkpoint / PROGRESS)["step"]
        if not isinstance(step, int) or step < 1:
            return f"{checkpoint / PROGRESS} is damaged: its step is {step!r}"
        Config.model_validate(_stored(checkpoint))
        for file in sorted((checkpoint / WEIGHTS).glob("*.safetensors")):
            read_header(file)  # which finds a file that is cut off, without reading it
        # Older checkpoints have no checksums.
        written = dict(read_json(checkpoint / CHECKSUMS)) if (checkpoint / CHECKSUMS).is_file() else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        return f"{checkpoint} is damaged: {error}"
    checked = {name: digest for name, digest in written.items() if thorough or name in (PROGRESS, CONFIG)}
    damaged = [name for name, digest in checked.items() if not _has_checksum(checkpoint / name, digest)]
    return f"{checkpoint} is damaged: {', '.join(damaged)} missing or changed" if damaged else None


def _has_checksum(path: Path, digest: str) -> bool:
    return path.is_file() and file_sha256(path) == digest


def _named(run_directory: Path, restore_from: str, *, thorough: bool) -> Path:
    candidates = [run_directory / restore_from, Path(restore_from)]
    if restore_from == LOWEST_VAL:
        candidates += _lowest(run_directory)
    for candidate in candidates:
        if (candidate / PROGRESS).is_file():
            fault = fault_of(candidate.resolve(), thorough=thorough)
            if fault:
                raise ValueError(f"checkpoint.restore_from={restore_from!r}: {fault}; choose another checkpoint")
            return candidate.resolve()
    there = sorted(path.parent.name for path in run_directory.glob(f"*/{PROGRESS}"))
    raise ValueError(
        f"checkpoint.restore_from={restore_from!r} is not a checkpoint, neither as a path nor in {run_directory}, "
        f"which has {', '.join(there) or 'no checkpoint'}"
    )


def _latest_first(run_directory: Path) -> Iterator[Path]:
    """Yields the target of LATEST, then the older checkpoints of the run, newest first.

    LATEST may be missing, broken, circular, or a regular file, for example in a copy of the directory.
    """
    pointer = run_directory / LATEST
    named = pointer.readlink().name if pointer.is_symlink() else None
    newest = _step_of(named) if named else None
    pointed = Path(os.path.realpath(pointer))
    if os.path.lexists(pointer):
        yield pointed
    for checkpoint in sorted(_checkpoints(run_directory), key=lambda path: _step_of(path.name) or 0, reverse=True):
        if checkpoint != pointed and (newest is None or (_step_of(checkpoint.name) or 0) <= newest):
            yield checkpoint


def _lowest(run_directory: Path) -> list[Path]:
    """Returns the checkpoint with the lowest validation loss, found from the progress files; [] if there is none.

    Only those count that were compared by the same `checkpoint.best_metric` as the newest one.
    """
    found = []
    for checkpoint in _checkpoints(run_directory):
        if fault_of(checkpoint, thorough=False) is None:
            progress = read_json(checkpoint / PROGRESS)
            if progress["lowest_validation_loss"] is not None and not progress["validations_since_lowest"]:
                metric = progress.get("best_metric", "loss")
                found.append((progress["lowest_validation_loss"], progress["step"], metric, checkpoint))
    newest = max((step, metric) for _, step, metric, _ in found)[1] if found else None
    return [min(entry for entry in found if entry[2] == newest)[3]] if found else []


def _checkpoints(run_directory: Path) -> list[Path]:
    return [path.resolve() for path in run_directory.glob("epoch_*_step_*") if path.is_dir()]


def _step_of(name: str) -> int | None:
    """Returns the step in the name of a checkpoint, None for any other name.

    >>> _step_of("epoch_0_step_200"), _step_of("LATEST")
    (200, None)
    """
    step = name.rpartition("_step_")[2]
    return int(step) if name.startswith("epoch_") and step.isdecimal() else None


def with_original_length(config: Config, checkpoint: Path) -> Config:
    """Returns `config` with the batch size, epochs and warm-up of the checkpoint's run, unless `config` sets them.

    The run turned a warm-up share into steps when it started. Those steps stay.
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
    """Returns the config of a checkpoint. Keys that are newer than the checkpoint get the value from FIXED_KEYS."""
    stored = translate(yaml.safe_load((checkpoint / CONFIG).read_text(encoding="utf-8")) or {})
    for key, old_value in FIXED_KEYS.items():
        section, _, name = key.partition(".")
        stored.setdefault(section, {}).setdefault(name, old_value)
    return stored


def require_compatible(checkpoint: Path, config: Config) -> None:
    """Raises ValueError that names the differences if `checkpoint` belongs to another run than `config`."""
    began = Config.model_validate(_stored(checkpoint))  # validation adds defaults for keys that the checkpoint lacks
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
            "set checkpoint.checkpoint_dir to another directory, or use the settings of that run"
        )
