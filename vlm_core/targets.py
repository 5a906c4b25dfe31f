"""Functions that a config names by a dotted path (`_target_`): which are allowed, and how they are loaded.

A config may come from a form or a repository, and a dotted path can name anything that is installed, `os.system` too.
So a function is called only when its module is one that the operator named in the environment.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any, Final

ALLOWED: Final = "MEDPIX_TARGETS"  # environment variable: modules or packages, separated by commas


def load_target(slot: str, target: str) -> Callable[..., Any]:
    """Returns the function at a dotted path; raises ValueError for a module that is not allowed, or lacks it."""
    module, _, name = target.rpartition(".")
    allowed = [entry.strip() for entry in os.environ.get(ALLOWED, "").split(",") if entry.strip()]
    if not any(module == entry or module.startswith(f"{entry}.") for entry in allowed):
        raise ValueError(
            f"{slot}._target_={target!r}: the module {module!r} is not allowed; whoever operates this machine names it "
            f"in {ALLOWED} (now {', '.join(allowed) or 'unset'}), or leave _target_ out"
        )
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{slot}._target_={target!r} cannot be loaded: {error}") from error
    if not callable(function):
        raise ValueError(f"{slot}._target_={target!r} is no function")
    return function
