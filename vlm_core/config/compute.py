"""The section `compute`: launcher, processes, memory, and the resources of a cluster."""

import shlex
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vlm_core.config.base import PositiveInt, Section, listed

# Patterns against shell injection: these values become lines of Slurm's batch script.
SlurmName = Annotated[str, Field(pattern=r"^[\w.,-]+$")]
ModuleName = Annotated[str, Field(pattern=r"^[\w./+-]+$")]
DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"  # RFC 1123
LongOption = Annotated[str, Field(pattern=r"^--[a-z][a-z-]*(=.*)?$")]


class ClusterConfig(Section):
    """The resources that a job requests from a cluster."""

    gpus_per_node: PositiveInt | None = Field(None, description="GPUs per node; null = none.")
    cpus_per_node: PositiveInt | None = Field(None, description="CPUs per node; null = the cluster's default.")
    memory_per_node: str | None = Field(
        None,
        pattern=r"^\d+[KMGT]?$",
        description="Memory per node, such as `64G`; null = the cluster's default.",
    )
    time_limit: str | None = Field(
        None,
        pattern=r"^(\d+-)?\d+(:\d+){0,2}$",
        description="Slurm's time limit of a job: `12:00:00` or `2-00`; null = the partition's. The run then requeues.",
    )
    partition: SlurmName | None = Field(None, description="Slurm's partition; null = the cluster's default.")
    account: SlurmName | None = Field(None, description="Slurm's account; null = your default account.")
    modules: Annotated[list[ModuleName], BeforeValidator(listed)] = Field(
        [], description="Environment modules to load on the nodes, such as `cuda/12.4`."
    )
    extra_arguments: Annotated[list[LongOption], BeforeValidator(listed)] = Field(
        [], description="Other options of sbatch, such as `--qos=high`."
    )
    container: str | None = Field(
        None,
        pattern=r"^[ -~]+$",
        description="Command that runs Slurm's jobs in a container, which has `python`: "
        "`apptainer exec --nv --bind /shared medpix.sif`.",
    )
    max_restarts: PositiveInt = Field(1, description="How often torchrun restarts the processes after a failure.")

    @field_validator("container")
    @classmethod
    def _container_is_words(cls, container: str | None) -> str | None:
        shlex.split(container or "")  # raises ValueError for an unclosed quotation mark
        return container


class KubernetesConfig(Section):
    """The image, volume and namespace of a job's pods."""

    image: str | None = Field(None, description="Image with this project, built from deployments/Dockerfile.")
    volume_claim: str | None = Field(
        None, description="Claim of a volume that all nodes can write to: MEDPIX_HOME in the pods and here."
    )
    namespace: str = Field("default", pattern=DNS_LABEL, description="Namespace of the jobs.")
    secret: str | None = Field(
        None, description="Name of a Secret whose entries become environment variables, such as HF_TOKEN."
    )


class ComputeConfig(Section):
    launcher: Literal["local", "slurm", "kubernetes"] = Field(
        "local", description="Where jobs run: on this machine, on Slurm or on Kubernetes."
    )
    nodes: PositiveInt = Field(1, description="Machines that share a job; more than one needs a cluster.")
    nproc_per_node: PositiveInt = Field(1, description="Processes per node, one per GPU.")
    strategy: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="ddp = each process has the full model; fsdp2 = weights and optimizer are sharded."
    )
    compile: bool = Field(
        False,
        description="Compile each decoder layer with torch.compile: takes minutes at the start, then steps are faster.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: far less memory, about a third more time."
    )
    skip_unused_positions: bool = Field(
        True, description="Compute in the last decoder layer only what predicts a token: exact, and faster."
    )
    cluster: ClusterConfig = Field(
        ClusterConfig(), description="Resources of a cluster's jobs; used by launcher=slurm and kubernetes."
    )
    kubernetes: KubernetesConfig = Field(KubernetesConfig(), description="Used by launcher=kubernetes.")

    @model_validator(mode="after")
    def _one_machine_is_one_node(self) -> "ComputeConfig":
        if self.launcher == "local" and self.nodes > 1:
            raise ValueError(
                f"compute.nodes={self.nodes} needs a cluster: set compute.launcher=slurm or kubernetes, or nodes=1"
            )
        return self

    @model_validator(mode="after")
    def _pods_have_image_and_volume(self) -> "ComputeConfig":
        missing = [name for name in ("image", "volume_claim") if getattr(self.kubernetes, name) is None]
        if self.launcher == "kubernetes" and missing:
            raise ValueError(
                "compute.launcher=kubernetes needs " + " and ".join(f"compute.kubernetes.{name}" for name in missing)
            )
        return self

    @property
    def processes(self) -> int:
        """The number of processes of a job on all nodes."""
        return self.nodes * self.nproc_per_node
