"""Loads functions that a config names by a dotted path (`_target_`), if the operator allows their modules.

A config may come from a form or a repository, and a dotted path can name anything that is installed, even `os.system`.
Therefore the operator must list the allowed modules in an environment variable.
"""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, Final

ALLOWED: Final = "MEDPIX_TARGETS"  # environment variable: modules or packages, separated by commas


def load_target(slot: str, target: str) -> Callable[..., Any]:
    """Returns the function at a dotted path; raises ValueError if its module is not allowed or does not have it."""
    module, _, name = target.rpartition(".")
    allowed = [entry.strip() for entry in os.environ.get(ALLOWED, "").split(",") if entry.strip()]
    if not any(module == entry or module.startswith(f"{entry}.") for entry in allowed):
        raise ValueError(
            f"{slot}._target_={target!r}: the module {module!r} is not allowed; the operator of this machine can add "
            f"it to {ALLOWED} (now {', '.join(allowed) or 'unset'}), or remove _target_"
        )
    if "" not in sys.path:
        sys.path.append("")  # the working directory, searched last: no file in it hides an installed package
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{slot}._target_={target!r} cannot be loaded: {error}") from error
    if not callable(function):
        raise ValueError(f"{slot}._target_={target!r} is not a function")
    return function
