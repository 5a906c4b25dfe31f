"""Interprets the settings in `dataset.images`, identifies them in cache keys, and saves them with a model."""

import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlm_core.config import ImagesConfig
from vlm_core.data.medical.windows import PRESETS, Window
from vlm_core.files import write_json

# Raise it if the same file and settings must give another picture.
MEDICAL_VERSION = 1
IMAGE_SETTINGS = "image_settings.json"
PACKAGES = ("pydicom", "nibabel", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")
LEVEL_WIDTH = re.compile(r"(-?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")


def window_of(setting: str) -> Window | None:
    """Returns the window in `dataset.images.window`: LEVEL/WIDTH or a preset; None for `auto` and the like."""
    if match := LEVEL_WIDTH.fullmatch(setting):
        return Window(float(match[1]), float(match[2]))
    return PRESETS.get(setting)


def identity(settings: ImagesConfig) -> list[Any]:
    """Returns what decides the pictures: the version of this code, the settings, and the packages that decode."""
    return [MEDICAL_VERSION, sorted(settings.model_dump().items()), [_version(name) for name in PACKAGES]]


def save_settings(settings: ImagesConfig, directory: Path) -> None:
    """Writes the settings beside the weights of a model, so that inference shows images as training did."""
    write_json(directory / IMAGE_SETTINGS, settings.model_dump())


def settings_of(directory: Path) -> ImagesConfig:
    """Returns the settings that the model in `directory` was trained with; the defaults if it has no such file."""
    path = directory / IMAGE_SETTINGS
    return ImagesConfig(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ImagesConfig()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
