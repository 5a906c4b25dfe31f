"""The cache of phantoms, by the settings in `builtin:phantom?images=N&seed=N&form=png|dicom|nifti&slices=N`."""

import logging
from pathlib import Path
from urllib.parse import parse_qsl

from vlm_core.cache import cached_directory
from vlm_core.data.phantom import FORMS, PHANTOM_VERSION, write_phantom
from vlm_core.home import medpix_home

logger = logging.getLogger(__name__)

PHANTOM = "builtin:phantom"
PHANTOM_DEFAULTS = {"images": "1000", "seed": "0", "image_size": "56", "form": "png", "slices": "1"}


def is_phantom(name: str) -> bool:
    """Returns whether `dataset.path_or_dataset` means the phantom, with or without settings."""
    return name.partition("?")[0] == PHANTOM


def phantom_directory(name: str) -> Path:
    """Returns the directory of a phantom, generated if it is missing; raises ValueError for a wrong setting."""
    settings = dict(PHANTOM_DEFAULTS)
    for key, value in parse_qsl(name.partition("?")[2]):
        if key not in settings or not (value in FORMS if key == "form" else value.isdecimal()):
            raise ValueError(
                f"{name!r}: {key}={value!r} is wrong; {PHANTOM} takes whole numbers for "
                f"{[known for known in settings if known != 'form']}, and form={'|'.join(FORMS)}"
            )
        settings[key] = value
    key = "-".join([f"v{PHANTOM_VERSION}", *(f"{key}{value}" for key, value in settings.items())])

    def build(directory: Path) -> dict[str, str]:
        images, seed, size, slices = (int(settings[key]) for key in ("images", "seed", "image_size", "slices"))
        write_phantom(directory, images, seed, size, settings["form"], slices)
        return settings

    directory, reused = cached_directory(medpix_home() / "cache" / "phantom", key, build)
    logger.info("phantom dataset %s %s", key, "reused" if reused else "generated")
    return directory
