"""The section about what runs a job: processes, memory, and the cluster where there is one."""

import shlex
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vlm_core.config.base import PositiveInt, Section, listed

# They become lines of a script: none of them may say more there than it is.
SlurmName = Annotated[str, Field(pattern=r"^[\w.,-]+$")]
ModuleName = Annotated[str, Field(pattern=r"^[\w./+-]+$")]
DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"  # RFC 1123
LongOption = Annotated[str, Field(pattern=r"^--[a-z][a-z-]*(=.*)?$")]


class ClusterConfig(Section):
    """What a job asks a cluster for."""

    gpus_per_node: PositiveInt | None = Field(None, description="GPUs to ask for on each node; null = none.")
    cpus_per_node: PositiveInt | None = Field(None, description="CPUs to ask for on each node; null = the cluster's.")
    memory_per_node: str | None = Field(
        None,
        pattern=r"^\d+[KMGT]?$",
        description="Memory to ask for on each node, `64G`; null = the cluster's default.",
    )
    time_limit: str | None = Field(
        None,
        pattern=r"^(\d+-)?\d+(:\d+){0,2}$",
        description="Slurm's, `12:00:00` or `2-00`; null = the partition's. A run outlives it.",
    )
    partition: SlurmName | None = Field(None, description="Slurm's partition; null = the cluster's default.")
    account: SlurmName | None = Field(None, description="Slurm's account; null = yours.")
    modules: Annotated[list[ModuleName], BeforeValidator(listed)] = Field(
        [], description="Environment modules to load on the nodes: `cuda/12.4`."
    )
    extra_arguments: Annotated[list[LongOption], BeforeValidator(listed)] = Field(
        [], description="Any other options of sbatch: `--qos=high`."
    )
    container: str | None = Field(
        None,
        pattern=r"^[ -~]+$",
        description="What Slurm's jobs run in, and as `python` there: `apptainer exec --nv --bind /shared medpix.sif`.",
    )
    max_restarts: PositiveInt = Field(
        1, description="How often torchrun starts the processes anew when one has failed."
    )

    @field_validator("container")
    @classmethod
    def _container_is_words(cls, container: str | None) -> str | None:
        shlex.split(container or "")  # raises ValueError for a quotation without end
        return container


class KubernetesConfig(Section):
    """Where a job's pods come from, and what they share."""

    image: str | None = Field(None, description="Image with this project, as deployments/Dockerfile makes it.")
    volume_claim: str | None = Field(
        None, description="Claim of a volume that all nodes can write to; it is MEDPIX_HOME in the pods and here."
    )
    namespace: str = Field("default", pattern=DNS_LABEL, description="Namespace of the jobs.")
    secret: str | None = Field(
        None, description="Name of a Secret whose entries become variables of the environment: HF_TOKEN."
    )


class ComputeConfig(Section):
    launcher: Literal["local", "slurm", "kubernetes"] = Field(
        "local", description="What the flow has its jobs run by: this machine, Slurm or Kubernetes."
    )
    nodes: PositiveInt = Field(1, description="Machines that share a job; more than one takes a cluster's launcher.")
    nproc_per_node: PositiveInt = Field(1, description="Processes on each node, one for each GPU.")
    strategy: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="ddp = each process has the whole model; fsdp2 = weights and optimizer are divided."
    )
    compile: bool = Field(False, description="torch.compile each decoder layer: minutes at the start, faster steps.")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: far less memory, about a third more time."
    )
    cluster: ClusterConfig = Field(ClusterConfig(), description="What to ask a cluster for; heeded by its launcher.")
    kubernetes: KubernetesConfig = Field(KubernetesConfig(), description="Heeded by launcher=kubernetes.")

    @model_validator(mode="after")
    def _one_machine_is_one_node(self) -> "ComputeConfig":
        if self.launcher == "local" and self.nodes > 1:
            raise ValueError(
                f"compute.nodes={self.nodes} takes a cluster: set compute.launcher=slurm or kubernetes, or nodes=1"
            )
        return self

    @model_validator(mode="after")
    def _pods_are_made_of_something(self) -> "ComputeConfig":
        missing = [name for name in ("image", "volume_claim") if getattr(self.kubernetes, name) is None]
        if self.launcher == "kubernetes" and missing:
            raise ValueError(
                "compute.launcher=kubernetes needs " + " and ".join(f"compute.kubernetes.{name}" for name in missing)
            )
        return self

    @property
    def processes(self) -> int:
        """The processes of a job, over all nodes."""
        return self.nodes * self.nproc_per_node
