"""Checkpoints: `epoch_E_step_S/` directories, complete or absent, with the pointers LATEST and LOWEST_VAL beside them.

epoch_0_step_200/
    model/               weights or adapter in safetensors, with the processor: loads in transformers or peft
    training_state.pt    optimizer and schedule
    progress.json        steps done, their place in the epoch, lowest validation loss so far
    config.yaml          the resolved config, overrides included
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import ProcessorMixin

from vlm_core.config import Config
from vlm_core.files import point, published_directory, read_json, write_json, write_text
from vlm_core.models.load import save_weights
from vlm_core.run_directory import CONFIG, LATEST

# What must not change between the run that wrote a checkpoint and the one that goes on from it.
FIXED_SECTIONS = ("model", "dataset", "peft", "freeze_config", "optimizer", "lr_scheduler", "rng")
FIXED_SCHEDULE = ("global_batch_size",)


@dataclass
class Progress:
    """How far a run is. Steps are optimizer steps, counted from 1; `epoch` and `step_in_epoch` are the next ones."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    lowest_validation_loss: float | None = None


def checkpoint_name(progress: Progress, steps_per_epoch: int) -> str:
    """Returns `epoch_E_step_S` for the epoch that the last step belonged to."""
    return f"epoch_{(progress.step - 1) // steps_per_epoch}_step_{progress.step}"


def save_checkpoint(
    directory: Path, model: Any, processor: ProcessorMixin, state: dict[str, Any], progress: Progress, config: Config
) -> None:
    """Writes a checkpoint and lets LATEST point to it. `model` is the model itself, outside any wrapper."""
    with published_directory(directory) as aside:
        save_weights(model, aside / "model")
        processor.save_pretrained(aside / "model")
        torch.save(state, aside / "training_state.pt")
        write_json(aside / "progress.json", asdict(progress))
        write_text(aside / CONFIG, config.to_yaml())
    point(directory.parent / LATEST, directory)


def load_progress(checkpoint: Path) -> Progress:
    """Returns how far the run was when it wrote `checkpoint`."""
    return Progress(**read_json(checkpoint / "progress.json"))


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Returns the state dictionaries of optimizer and schedule, on the CPU."""
    return torch.load(checkpoint / "training_state.pt", map_location="cpu", weights_only=True)


def latest_checkpoint(run_directory: Path) -> Path | None:
    """Returns the checkpoint that LATEST points to, None in a fresh run directory."""
    pointer = run_directory / LATEST
    return pointer.resolve() if pointer.exists() else None


def require_compatible(checkpoint: Path, config: Config) -> None:
    """Raises ValueError that names what differs, where going on from `checkpoint` would not be the same run."""
    before = yaml.safe_load((checkpoint / CONFIG).read_text(encoding="utf-8"))
    now = config.model_dump(mode="json")
    pairs = {section: (before.get(section), now[section]) for section in FIXED_SECTIONS}
    pairs |= {
        f"step_scheduler.{key}": (before["step_scheduler"].get(key), now["step_scheduler"][key])
        for key in FIXED_SCHEDULE
    }
    changed = [f"{key} was {old}, is {new}" for key, (old, new) in pairs.items() if old != new]
    if changed:
        raise ValueError(
            f"{checkpoint.parent} holds another run ({'; '.join(changed)}); "
            "give checkpoint.checkpoint_dir another directory, or the settings of that run"
        )
