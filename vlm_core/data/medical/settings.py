"""What `dataset.images` says, as the readers need it; and what identifies it in cache keys."""

import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlm_core.config import ImagesConfig
from vlm_core.data.medical.windows import PRESETS, Window
from vlm_core.files import write_json

# Raise it whenever the same file and settings must give another picture.
MEDICAL_VERSION = 1
IMAGE_SETTINGS = "image_settings.json"
PACKAGES = ("pydicom", "nibabel", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")
LEVEL_WIDTH = re.compile(r"(-?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")


def window_of(setting: str) -> Window | None:
    """Returns the window that `dataset.images.window` names by LEVEL/WIDTH or as a preset; None for the other words."""
    if match := LEVEL_WIDTH.fullmatch(setting):
        return Window(float(match[1]), float(match[2]))
    return PRESETS.get(setting)


def identity(settings: ImagesConfig) -> list[Any]:
    """Returns what decides which picture a medical image becomes: settings, this code, and the packages that decode."""
    return [MEDICAL_VERSION, sorted(settings.model_dump().items()), [_version(name) for name in PACKAGES]]


def save_settings(settings: ImagesConfig, directory: Path) -> None:
    """Writes the settings beside the weights of a model, so that it is asked about images as it learnt from them."""
    write_json(directory / IMAGE_SETTINGS, settings.model_dump())


def settings_of(directory: Path) -> ImagesConfig:
    """Returns the settings that a model in `directory` learnt with; the defaults if they are not there."""
    path = directory / IMAGE_SETTINGS
    return ImagesConfig(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ImagesConfig()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
