"""The typed config of a run, used by YAML recipes, the command line and the flow's parameters alike.

Sections and keys have the names of NeMo Automodel's Gemma 3 guide; `vlm_core.guide` translates the guide's other
spellings. An unknown key is an error, for which `vlm_core.recipe` suggests the right key.
"""

from typing import Any

import yaml
from pydantic import Field, model_validator

from vlm_core.config.base import Section
from vlm_core.config.compute import ClusterConfig, ComputeConfig, KubernetesConfig
from vlm_core.config.data import AUTO, DataloaderConfig, DatasetConfig, ImagesConfig, ValidationDatasetConfig
from vlm_core.config.evaluation import BASE, EvaluationConfig, RegistryConfig, ReportConfig
from vlm_core.config.mixture import (
    MixtureConfig,
    MoreDatasetConfig,
    MoreDatasets,
    name_of,
    require_mixable,
    with_main_dataset,
)
from vlm_core.config.peft import PeftConfig
from vlm_core.config.training import (
    CheckpointConfig,
    ClipGradNormConfig,
    FreezeConfig,
    LossConfig,
    LRSchedulerConfig,
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    RngConfig,
    StepSchedulerConfig,
    VisionCacheConfig,
    WandbConfig,
)

__all__ = [
    "AUTO",
    "BASE",
    "CheckpointConfig",
    "ClipGradNormConfig",
    "ClusterConfig",
    "ComputeConfig",
    "Config",
    "DataloaderConfig",
    "DatasetConfig",
    "EvaluationConfig",
    "FreezeConfig",
    "ImagesConfig",
    "KubernetesConfig",
    "LRSchedulerConfig",
    "MixtureConfig",
    "ModelConfig",
    "MoreDatasetConfig",
    "OptimizerConfig",
    "PackingConfig",
    "PeftConfig",
    "RegistryConfig",
    "ReportConfig",
    "RngConfig",
    "Section",
    "StepSchedulerConfig",
    "ValidationDatasetConfig",
    "VisionCacheConfig",
    "WandbConfig",
]


class Config(Section):
    """The config of a whole run. `yaml.safe_load(config.to_yaml())` builds an equal one."""

    name: str = Field("medpix", pattern=r"^[\w.-]+$", description="Name of the run; by default the recipe's.")
    model: ModelConfig
    dataset: DatasetConfig
    validation_dataset: ValidationDatasetConfig = ValidationDatasetConfig()
    more_datasets: MoreDatasets = Field(
        {}, description="Other datasets by name, with the keys of `dataset` and `validation_split`."
    )
    mixture: MixtureConfig = MixtureConfig()
    dataloader: DataloaderConfig = DataloaderConfig()
    step_scheduler: StepSchedulerConfig = StepSchedulerConfig()
    packing: PackingConfig = PackingConfig()
    vision_cache: VisionCacheConfig = VisionCacheConfig()
    loss_fn: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_scheduler: LRSchedulerConfig = LRSchedulerConfig()
    clip_grad_norm: ClipGradNormConfig = ClipGradNormConfig()
    freeze_config: FreezeConfig = FreezeConfig()
    peft: PeftConfig | None = Field(None, description="LoRA; null = full fine-tuning.")
    checkpoint: CheckpointConfig = CheckpointConfig()
    wandb: WandbConfig | None = Field(None, description="Weights & Biases; null = off.")
    rng: RngConfig = RngConfig()
    compute: ComputeConfig = ComputeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    registry: RegistryConfig = RegistryConfig()

    @model_validator(mode="before")
    @classmethod
    def _main_dataset(cls, tree: Any) -> Any:
        return with_main_dataset(tree) if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _batch_divides(self) -> "Config":
        self.require_divisible_batch(self.compute.processes)
        return self

    @model_validator(mode="after")
    def _validates_on_something(self) -> "Config":
        if self.validation_dataset.split is None and self.dataset.split_by == "published":
            train = [dataset for dataset in self.more_datasets.values() if dataset.split is not None]
            if any(other.validation_split is not None or other.split_by != "published" for other in train):
                return self  # that dataset has rows to validate on
            raise ValueError(
                "validation_dataset.split=null leaves nothing to validate on; name a split, or set "
                "dataset.split_by=case to hold out cases of dataset.split"
            )
        return self

    @model_validator(mode="after")
    def _mixes(self) -> "Config":
        if (name := name_of(self.dataset)) in self.more_datasets:
            raise ValueError(
                f"dataset ({self.dataset.path_or_dataset}) and more_datasets.{name} "
                f"({self.more_datasets[name].path_or_dataset}) are both named {name!r}; give one of them another name"
            )
        require_mixable(self.datasets, self.mixture)
        return self

    @model_validator(mode="after")
    def _scores_what_decides(self) -> "Config":
        if self.checkpoint.best_metric != "loss" and not self.step_scheduler.val_questions:
            raise ValueError(
                f"checkpoint.best_metric={self.checkpoint.best_metric} is a score of answers, and "
                "step_scheduler.val_questions=0 asks no questions; set that to 64, or set checkpoint.best_metric=loss"
            )
        return self

    @model_validator(mode="after")
    def _trains_something(self) -> "Config":
        frozen = self.freeze_config.model_dump(exclude={"freeze_audio_tower"})  # no family trains only this tower
        if self.peft is None and all(frozen.values()):
            raise ValueError(f"nothing is left to train: {', '.join(frozen)} are all true; set one of them to false")
        return self

    @model_validator(mode="after")
    def _trains_what_is_not_quantized(self) -> "Config":
        quantization, peft = self.model.quantization, self.peft
        if quantization == "none":
            return self
        if peft is None:
            raise ValueError(
                f"model.quantization={quantization}: quantised weights cannot train; add LoRA (--peft.dim 8), or set "
                "model.quantization=none"
            )
        if peft.init_lora_weights not in ("true", "gaussian", "eva"):
            raise ValueError(
                f"peft.init_lora_weights={peft.init_lora_weights} needs full-precision weights, and "
                f"model.quantization={quantization} has none; use true, gaussian or eva, or set model.quantization=none"
            )
        return self

    @model_validator(mode="after")
    def _starts_before_it_is_sharded(self) -> "Config":
        if self.peft is not None and self.peft.starts_from_data and self.compute.strategy == "fsdp2":
            raise ValueError(
                "peft.init_lora_weights=eva runs the full model before the first step, and compute.strategy=fsdp2 "
                "shards it; use compute.strategy=ddp, or peft.init_lora_weights=true"
            )
        return self

    @property
    def datasets(self) -> dict[str, DatasetConfig]:
        """All datasets of the run by name, the main one first."""
        return {name_of(self.dataset): self.dataset, **self.more_datasets}

    def key_of(self, name: str) -> str:
        """Returns the config key of one of `datasets`."""
        return f"more_datasets.{name}" if name in self.more_datasets else "dataset"

    def only(self, name: str) -> "Config":
        """Returns the config of a run on one of `datasets` alone."""
        other = self.more_datasets.get(name)
        changes: dict[str, Any] = {"more_datasets": {}, "mixture": MixtureConfig()}
        if other is not None:
            held = ValidationDatasetConfig(split=other.validation_split)
            changes |= {"dataset": other, "validation_dataset": held}
        return self.model_copy(update=changes)

    @property
    def trained(self) -> list[str]:
        """The names of the datasets that train; the others only validate."""
        return [name for name, dataset in self.datasets.items() if dataset.split is not None]

    @property
    def validated(self) -> list[str]:
        """The names of the datasets that have rows to validate on."""
        alone = {name: self.only(name) for name in self.datasets}
        return [n for n, c in alone.items() if c.validation_dataset.split or c.dataset.split_by != "published"]

    @property
    def validation_source(self) -> DatasetConfig | None:
        """The validation split's dataset, in which `dataset` fills unset values; None if the split is null."""
        own = self.validation_dataset
        if own.split is None:
            return None
        changes = {
            "path_or_dataset": own.path_or_dataset or self.dataset.path_or_dataset,
            # A revision, a config and files belong to their repository: they follow only together with the path.
            "revision": own.revision or (None if own.path_or_dataset else self.dataset.revision),
            "config_name": own.config_name or (None if own.path_or_dataset else self.dataset.config_name),
            "data_files": [] if own.path_or_dataset else self.dataset.data_files,
            "archives": [] if own.path_or_dataset else self.dataset.archives,
            "split": own.split,
        }
        return self.dataset.model_copy(update=changes)

    @property
    def evaluated_splits(self) -> list[str]:
        """The split expressions that determine the validation rows."""
        if self.more_datasets:
            return [split for name in self.validated for split in self.only(name).evaluated_splits]
        own = [self.validation_source.split] if self.validation_source else []
        divides = self.dataset.split_by != "published" and self.dataset.split is not None
        return [self.dataset.split, *own] if divides else own

    @property
    def validates_on(self) -> tuple[str, str]:
        """The evaluated dataset and split, in words."""
        if self.more_datasets:
            splits = {name: self.only(name).validates_on[1] for name in self.validated}
            return ", ".join(splits), "; ".join(f"{name}: {split}" for name, split in splits.items())
        source, rule = self.validation_source, self.dataset.split_by
        split = source.split if source else f"a part of {self.dataset.split}"
        if split == AUTO:
            split = "its validation split" + ("" if self.dataset.split is None else ", or a part of its training split")
        rule = "" if rule in (AUTO, "published") else f", divided by {rule}"
        return (source or self.dataset).path_or_dataset, f"{split}{rule}"

    def require_divisible_batch(self, world_size: int) -> None:
        """Raises ValueError if `world_size` ranks cannot share the global batch evenly.

        Packed batches can always be shared. A batch size that is still open will be chosen so that it can be shared.
        """
        schedule = self.step_scheduler
        if self.packing.enabled or schedule.global_batch_size is None:
            return
        at_once = schedule.local_batch_size * world_size
        if schedule.global_batch_size % at_once:
            below = schedule.global_batch_size // at_once * at_once
            choices = f"{below} or {below + at_once}" if below else str(at_once)
            raise ValueError(
                f"step_scheduler.global_batch_size={schedule.global_batch_size} must be divisible by "
                f"local_batch_size * processes = {schedule.local_batch_size} * {world_size} = {at_once}; try {choices}"
            )

    def to_yaml(self) -> str:
        """Returns the resolved config as YAML, including defaults and overrides."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
