"""Why a medical image cannot be shown, and what to say if the packages that read it are not installed."""

import importlib
from typing import Any

EXTRA = "medpix-finetune[medical]"


class MedicalImageError(ValueError):
    """A medical image cannot be shown to a model. The message is the reason that rejects are counted by.

    `detail` describes this image. Neither repeats a value of the file: it may name a patient.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


class MissingPackageError(ValueError):
    """A package of the extra `medical` is not installed: no row of the dataset can be read, so the build stops."""


def package(name: str) -> Any:
    """Returns a module of the extra `medical`; raises MissingPackageError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise MissingPackageError(
            f"DICOM and NIfTI images need the package {name.partition('.')[0]}: pip install '{EXTRA}'"
        ) from None
