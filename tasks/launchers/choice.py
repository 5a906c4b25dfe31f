"""Which launcher a config asks for, and whether it can have it."""

import logging

from tasks.launchers.follow import Logger
from tasks.launchers.job import Launcher
from tasks.launchers.local import LocalLauncher
from tasks.launchers.slurm import SlurmLauncher, require_slurm
from vlm_core.config import ComputeConfig

logger = logging.getLogger(__name__)


def launcher_of(compute: ComputeConfig, logger: Logger) -> Launcher:
    """Returns the launcher of `compute`; it tells `logger` what its engine does."""
    return SlurmLauncher(logger) if compute.launcher == "slurm" else LocalLauncher()


def require_launchable(compute: ComputeConfig) -> None:
    """Raises ValueError where the engine that `compute` names is not there, or has not what it asks for."""
    if compute.launcher == "slurm":
        require_slurm(compute)


def say_what_has_no_effect(compute: ComputeConfig) -> None:
    """Warns of settings that the launcher does not heed."""
    given = compute.cluster.model_dump(exclude_defaults=True)
    if compute.launcher == "local" and given:
        names = ", ".join(f"compute.cluster.{name}" for name in given)
        logger.warning("%s: no effect with compute.launcher=local", names)
