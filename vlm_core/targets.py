"""Functions that a config names by a dotted path (`_target_`): which are admitted, and where they are found.

A config may come from a form or a repository, and a dotted path can name anything that is installed, `os.system` too.
So a function is called only when its module is one that the operator named in the environment.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any, Final

ADMITTED: Final = "MEDPIX_TARGETS"  # environment variable: modules or packages, divided by commas

# What the guide's own functions do is what happens here without a `_target_`.
BUILT_IN: Final = {
    "dataset": ("make_medpix_vqa_dataset", "make_medpix_dataset"),
    "collate_fn": ("default_collate_fn", "qwen2_5_collate_fn"),
}
_OWN: Final = ("nemo_automodel.", "vlm_core.")


def is_built_in(slot: str, target: str | None) -> bool:
    """Returns whether `target` means what the slot does by itself: none, or the guide's own function for it.

    >>> is_built_in("dataset", "nemo_automodel.datasets.vlm.datasets.make_medpix_vqa_dataset")
    True
    """
    return target is None or (target.startswith(_OWN) and target.rpartition(".")[2] in BUILT_IN[slot])


def load_target(slot: str, target: str) -> Callable[..., Any]:
    """Returns the function at a dotted path; raises ValueError for a module that is not admitted, or lacks it."""
    module, _, name = target.rpartition(".")
    admitted = [entry.strip() for entry in os.environ.get(ADMITTED, "").split(",") if entry.strip()]
    if not any(module == entry or module.startswith(f"{entry}.") for entry in admitted):
        raise ValueError(
            f"{slot}._target_={target!r}: the module {module!r} is not admitted; whoever runs this machine names it in "
            f"{ADMITTED} (now {', '.join(admitted) or 'unset'}), or leave _target_ out"
        )
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{slot}._target_={target!r} cannot be loaded: {error}") from error
    if not callable(function):
        raise ValueError(f"{slot}._target_={target!r} is no function")
    return function
