"""Which launcher a config asks for, and whether it can have it."""

import logging
from importlib.util import find_spec

from tasks.launchers.allowed import require_allowed
from tasks.launchers.follow import Logger
from tasks.launchers.job import Launcher
from tasks.launchers.local import LocalLauncher
from tasks.launchers.slurm import SlurmLauncher, require_slurm
from vlm_core.config import ClusterConfig, ComputeConfig, KubernetesConfig

logger = logging.getLogger(__name__)

# What each launcher heeds of compute.cluster and compute.kubernetes.
HEEDED = {
    "local": frozenset[str](),
    "slurm": frozenset(f"cluster.{name}" for name in ClusterConfig.model_fields),
    "kubernetes": frozenset(f"kubernetes.{name}" for name in KubernetesConfig.model_fields)
    | {f"cluster.{name}" for name in ("gpus_per_node", "cpus_per_node", "memory_per_node", "max_restarts")},
}


def launcher_of(compute: ComputeConfig, logger: Logger) -> Launcher:
    """Returns the launcher of `compute`; it tells `logger` what its engine does."""
    if compute.launcher == "kubernetes":
        from tasks.launchers.kubernetes import KubernetesLauncher  # with the client, an extra

        return KubernetesLauncher(logger)
    return SlurmLauncher(logger) if compute.launcher == "slurm" else LocalLauncher()


def require_launchable(compute: ComputeConfig) -> None:
    """Raises ValueError if `compute` names what is not allowed, or an engine that is missing or lacks what it needs."""
    require_allowed(compute)
    if compute.launcher == "slurm":
        require_slurm(compute)
    if compute.launcher == "kubernetes":
        if find_spec("kubernetes") is None:
            raise ValueError("compute.launcher=kubernetes needs pip install 'medpix-finetune[kubernetes]'")
        from tasks.launchers.kubernetes import require_kubernetes

        require_kubernetes(compute)


def say_what_has_no_effect(compute: ComputeConfig) -> None:
    """Warns of settings that the launcher does not heed."""
    heeded = HEEDED[compute.launcher]
    sections = {"cluster": compute.cluster, "kubernetes": compute.kubernetes}
    given = [f"{name}.{key}" for name, part in sections.items() for key in part.model_dump(exclude_defaults=True)]
    names = ", ".join(f"compute.{name}" for name in given if name not in heeded)
    if names:
        logger.warning("%s: no effect with compute.launcher=%s", names, compute.launcher)
