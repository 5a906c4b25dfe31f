"""Checks that the operator has allowed the commands, modules, options and images that a config sends to a cluster.

A config may come from a form or a repository. Its container command and its pods' image run as the user of the flow, so
they need the operator's consent, as functions named by `_target_` do (`vlm_core/targets.py`).
"""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Final

from vlm_core.config import ComputeConfig

# Environment variable: `key=value` entries, separated by ;. In them * stands for any text.
ALLOWED: Final = "MEDPIX_CLUSTER_ALLOWS"
SLURM = ("container", "modules", "extra_arguments")  # of compute.cluster
KUBERNETES = ("image", "volume_claim", "namespace", "secret")  # of compute.kubernetes


def require_allowed(compute: ComputeConfig) -> None:
    """Raises ValueError for a value that its launcher would use and that the operator has not allowed."""
    entries = [entry.strip() for entry in os.environ.get(ALLOWED, "").split(";") if entry.strip()]
    for key, value in _requested(compute):
        if not any(fnmatchcase(f"{key}={value}", entry) for entry in entries):
            raise ValueError(
                f"compute.{key}={value!r} is not allowed on this machine: it decides what the cluster runs. The "
                f"machine's operator adds `{key}={value}` to {ALLOWED} (now {'; '.join(entries) or 'unset'})"
            )


def _requested(compute: ComputeConfig) -> Iterator[tuple[str, str]]:
    """Yields the keys and values that need consent; defaults need none."""
    if compute.launcher == "slurm":
        names, section, prefix = SLURM, compute.cluster, "cluster"
    elif compute.launcher == "kubernetes":
        names, section, prefix = KUBERNETES, compute.kubernetes, "kubernetes"
    else:
        return
    given = section.model_dump(exclude_defaults=True)
    for name in names:
        values = given.get(name, [])
        yield from ((f"{prefix}.{name}", value) for value in (values if isinstance(values, list) else [values]))
