"""The generated dataset, `builtin:phantom?images=N&seed=N`: written once, into the cache."""

import logging
from pathlib import Path
from urllib.parse import parse_qsl

from vlm_core.cache import cached_directory
from vlm_core.data.phantom import FORMS, PHANTOM_VERSION, write_phantom
from vlm_core.home import medpix_home

logger = logging.getLogger(__name__)

PHANTOM = "builtin:phantom"
PHANTOM_DEFAULTS = {"images": "1000", "seed": "0", "image_size": "56", "form": "png", "slices": "1"}


def generated_phantom(name: str) -> Path:
    """Returns the directory of the phantom that `name` describes; raises ValueError for an unknown setting."""
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
