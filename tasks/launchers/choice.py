"""Chooses the launcher that a config asks for, and checks that it can run here."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from tasks.launchers.allowed import require_allowed
from tasks.launchers.follow import Logger
from tasks.launchers.job import Launcher
from tasks.launchers.local import LocalLauncher
from tasks.launchers.slurm import SlurmLauncher, require_slurm
from vlm_core.config import ClusterConfig, ComputeConfig, KubernetesConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LauncherRow:
    """Everything that differs between launchers before a job is submitted."""

    create: Callable[[Logger], Launcher]  # the launcher logs the state of its jobs
    require: Callable[[ComputeConfig], None]  # raises ValueError if no job could run
    settings: frozenset[str] = frozenset()  # the keys of compute.cluster and compute.kubernetes that it uses


def _kubernetes(logger: Logger) -> Launcher:
    from tasks.launchers.kubernetes import KubernetesLauncher  # lazy: its client is an optional dependency

    return KubernetesLauncher(logger)


def _require_kubernetes(compute: ComputeConfig) -> None:
    if find_spec("kubernetes") is None:
        raise ValueError("compute.launcher=kubernetes needs pip install 'medpix-finetune[kubernetes]'")
    from tasks.launchers.kubernetes import require_kubernetes  # lazy: its client is an optional dependency

    require_kubernetes(compute)


def _keys(section: str, names: list[str]) -> frozenset[str]:
    return frozenset(f"{section}.{name}" for name in names)


LAUNCHERS = {
    "local": LauncherRow(lambda logger: LocalLauncher(), lambda compute: None),
    "slurm": LauncherRow(SlurmLauncher, require_slurm, _keys("cluster", list(ClusterConfig.model_fields))),
    "kubernetes": LauncherRow(
        _kubernetes,
        _require_kubernetes,
        _keys("kubernetes", list(KubernetesConfig.model_fields))
        | _keys("cluster", ["gpus_per_node", "cpus_per_node", "memory_per_node", "max_restarts"]),
    ),
}


def launcher_of(compute: ComputeConfig, logger: Logger) -> Launcher:
    """Returns the launcher that `compute` names; it logs the state of its jobs to `logger`."""
    return LAUNCHERS[compute.launcher].create(logger)


def require_launchable(compute: ComputeConfig) -> None:
    """Raises ValueError if `compute` has a value that is not allowed, or that this machine cannot run."""
    require_allowed(compute)
    LAUNCHERS[compute.launcher].require(compute)


def warn_of_unused_settings(compute: ComputeConfig) -> None:
    """Warns about settings that the chosen launcher does not use."""
    used = LAUNCHERS[compute.launcher].settings
    sections = {"cluster": compute.cluster, "kubernetes": compute.kubernetes}
    given = [f"{name}.{key}" for name, part in sections.items() for key in part.model_dump(exclude_defaults=True)]
    names = ", ".join(f"compute.{name}" for name in given if name not in used)
    if names:
        logger.warning("%s: no effect with compute.launcher=%s", names, compute.launcher)
