"""Errors of medical images, and of the packages that read them."""

import importlib
from typing import Any

EXTRA = "medpix-finetune[medical]"


class MedicalImageError(ValueError):
    """A medical image cannot be shown to a model. The message is the reason under which rejects are counted.

    `detail` describes this image. Neither contains a value from the file, because it may name a patient.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


class MissingPackageError(ValueError):
    """A package of the extra `medical` is not installed. The build stops, because no medical image can be read."""


def package(name: str) -> Any:
    """Returns a module of the extra `medical`. Raises MissingPackageError, which says how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise MissingPackageError(
            f"DICOM and NIfTI images need the package {name.partition('.')[0]}: pip install '{EXTRA}'"
        ) from None
