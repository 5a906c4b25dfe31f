"""The one typed config: the YAML recipe, the command line and the flow's parameters are three faces of it.

Section and key names are those of NeMo Automodel's Gemma 3 guide. An unknown key anywhere is an error
(`vlm_core.recipe` says which key was meant).
"""

import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values are checked against their bounds."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, frozen=True, protected_namespaces=())


def _strip_torch(value: Any) -> Any:
    return value.removeprefix("torch.") if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """On the command line, a list of one is a word."""
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_listed)]
BASE = "base"  # in compare_with: the base model
RESERVED_NAMES = ("model", "shuffled", "blank", "question_only")  # of an evaluation's own variants
Control = Literal["shuffled", "blank", "question_only"]
Dtype = Annotated[Literal["auto", "float32", "bfloat16"], BeforeValidator(_strip_torch)]
PositiveInt = Annotated[int, Field(ge=1)]


class ModelConfig(Section):
    pretrained_model_name_or_path: str = Field(
        description="Hub id, local directory, or `builtin:tiny-gemma3` / `builtin:tiny-gemma3n`, made locally."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub; null = the default branch.")
    torch_dtype: Dtype = Field(
        "bfloat16",
        description="Dtype to compute in and of frozen weights; auto = as stored.",
    )
    attn_implementation: Literal["sdpa", "eager"] = Field(
        "sdpa",
        description="Attention kernel. FlashAttention is no choice: it drops Gemma 3's mask over the image tokens.",
    )


class DatasetConfig(Section):
    path_or_dataset: str = Field(
        description="Hub id, local directory with parquet files per split, or `builtin:phantom?images=N&seed=N`."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub; null = the default branch.")
    split: str = Field("train", description="Split expression, for example `train` or `train[:1000]`.")


class ValidationDatasetConfig(Section):
    path_or_dataset: str | None = Field(None, description="null = the same as `dataset.path_or_dataset`.")
    revision: str | None = Field(None, description="null = the same as `dataset.revision`.")
    split: str = Field("validation", description="Split expression, for example `validation[:500]`.")


class DataloaderConfig(Section):
    num_workers: int = Field(0, ge=0, description="Worker processes a rank that decode images; 0 = in the rank.")


class StepSchedulerConfig(Section):
    global_batch_size: PositiveInt = Field(8, description="Examples an optimizer step, over all ranks.")
    local_batch_size: PositiveInt = Field(1, description="Examples a forward pass on one rank, without packing.")
    num_epochs: PositiveInt = Field(1, description="Passes over the training split.")
    max_steps: PositiveInt | None = Field(None, description="Stop after this many optimizer steps; null = never.")
    ckpt_every_steps: PositiveInt | None = Field(None, description="Optimizer steps between checkpoints; null = end.")
    val_every_steps: PositiveInt | None = Field(None, description="Steps between validation losses; null = end.")


class PackingConfig(Section):
    enabled: bool = Field(True, description="Let the questions about an image share its tokens; exact, and faster.")
    max_tokens: PositiveInt = Field(
        2048, description="Tokens of a packed forward pass on one rank; takes the place of local_batch_size."
    )


class VisionCacheConfig(Section):
    enabled: bool = Field(True, description="Encode each image once where the vision tower is frozen.")


class OptimizerConfig(Section):
    lr: float = Field(1e-5, gt=0, description="Peak learning rate of AdamW.")
    betas: tuple[float, float] = Field((0.9, 0.95), description="Decay of AdamW's two moments.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator of AdamW's step.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay.")


class LRSchedulerConfig(Section):
    lr_decay_style: Literal["cosine", "linear", "constant"] = Field("cosine", description="After the warm-up.")
    lr_warmup_steps: int = Field(0, ge=0, description="Optimizer steps of linear warm-up.")


class ClipGradNormConfig(Section):
    max_norm: float | None = Field(1.0, gt=0, description="Largest norm of the whole gradient; null = no clipping.")


class FreezeConfig(Section):
    freeze_embeddings: bool = Field(True, description="Freeze the token embeddings (and the head tied to them).")
    freeze_vision_tower: bool = Field(True, description="Freeze the vision encoder.")
    freeze_audio_tower: bool = Field(True, description="Freeze the audio encoder and its projector.")
    freeze_language_model: bool = Field(False, description="Freeze the decoder's layers.")


class PeftConfig(Section):
    dim: PositiveInt = Field(8, description="LoRA rank.")
    alpha: PositiveInt = Field(32, description="LoRA scale: the update is multiplied by alpha / dim.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in front of the LoRA matrices.")
    match_all_linear: bool = Field(False, description="Adapt every linear module that is not excluded, the head too.")
    target_modules: Names = Field(
        [], description="Shell-style wildcards over full module names; [] = every linear module but the head."
    )
    exclude_modules: Names = Field([], description="Shell-style wildcards over full module names to leave out.")

    @model_validator(mode="after")
    def _one_selection(self) -> "PeftConfig":
        if self.match_all_linear and self.target_modules:
            raise ValueError("match_all_linear and target_modules exclude each other; give one of them")
        return self


class CheckpointConfig(Section):
    enabled: bool = Field(True, description="Write checkpoints.")
    checkpoint_dir: str | None = Field(
        None, description="The run directory; null = a directory of its own under $MEDPIX_HOME/runs."
    )
    restore_from: str | None = Field(
        None, description="LATEST, LOWEST_VAL, epoch_E_step_S, or a path; null = LATEST where there is one."
    )
    max_recent_checkpoints: PositiveInt | None = Field(
        None, description="Checkpoints to keep, besides the targets of LATEST and LOWEST_VAL; null = all."
    )


class RngConfig(Section):
    seed: int = Field(42, ge=0, description="Seeds weights, dropout, the order of the data and the controls.")


class ComputeConfig(Section):
    nproc_per_node: PositiveInt = Field(1, description="Processes that torchrun starts, one a GPU.")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: far less memory, about a third more time."
    )


class EvaluationConfig(Section):
    batch_size: PositiveInt = Field(16, description="Questions generated at once on one rank.")
    max_new_tokens: PositiveInt = Field(96, description="Longest answer in tokens; longer ones count as truncated.")
    limit: PositiveInt | None = Field(None, description="Questions to evaluate; null = the whole validation split.")
    temperature: float = Field(0.0, ge=0, description="0 = greedy; else answers are drawn, seeded by rng.seed.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the likeliest tokens that have this probability.")
    controls: Annotated[list[Control], BeforeValidator(_listed)] = Field(
        ["shuffled", "blank", "question_only"],
        description="Also ask with another case's image, a black image, no image: what is lost there comes of looking.",
    )
    compare_with: Names = Field(
        ["base"],
        description="Models to answer too: `base`, a directory, a hub id, models:/name@alias, or NAME=one of them.",
    )

    @property
    def comparisons(self) -> dict[str, str]:
        """`{short name: model}` of what to compare with, the name being given as NAME=MODEL or the model's last part.

        Raises ValueError for two of one name.
        """
        found: dict[str, str] = {}
        for reference in self.compare_with:
            named = re.fullmatch(r"([\w.-]+)=(.+)", reference)
            name, model = named.groups() if named else (re.split(r"[/@]", reference.rstrip("/"))[-1], reference)
            if name in found or name in RESERVED_NAMES:
                raise ValueError(
                    f"compare_with={self.compare_with}: {name!r} would name two things in the results; write NAME=MODEL"
                )
            found[name] = model
        return found

    @model_validator(mode="after")
    def _distinct_names(self) -> "EvaluationConfig":
        assert self.comparisons is not None
        return self

    @model_validator(mode="after")
    def _sampling(self) -> "EvaluationConfig":
        if self.top_p < 1 and not self.temperature:
            raise ValueError("top_p has no effect at temperature 0; give evaluation.temperature a value above 0")
        return self


class ReportConfig(Section):
    images: bool = Field(
        True,
        description="false keeps images, questions and answers out of reports, artifacts, trackers and logs.",
    )


class RegistryConfig(Section):
    model_name: str | None = Field(None, description="Name in MLflow's registry; null = medpix-<model family>.")
    alias: str = Field("challenger", min_length=1, description="Alias that the new version gets.")
    promote: bool = Field(True, description="Make the new version the champion where it beats the present one.")
    metric: Literal["token_f1", "rouge_l", "exact_match", "closed_accuracy", "logprob"] = Field(
        "token_f1",
        description="Score to beat the champion in, on cases not seen in training if there are 20.",
    )
    margin: float = Field(0.0, ge=0, description="By how much, at least.")
    require_interval: bool = Field(
        False, description="Promote only where the 95 % interval of the difference excludes 0."
    )


class Config(Section):
    """A whole run. `yaml.safe_load(config.to_yaml())` builds an equal one."""

    name: str = Field("medpix", pattern=r"^[\w.-]+$", description="Name of the run; by default the recipe's.")
    model: ModelConfig
    dataset: DatasetConfig
    validation_dataset: ValidationDatasetConfig = ValidationDatasetConfig()
    dataloader: DataloaderConfig = DataloaderConfig()
    step_scheduler: StepSchedulerConfig = StepSchedulerConfig()
    packing: PackingConfig = PackingConfig()
    vision_cache: VisionCacheConfig = VisionCacheConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_scheduler: LRSchedulerConfig = LRSchedulerConfig()
    clip_grad_norm: ClipGradNormConfig = ClipGradNormConfig()
    freeze_config: FreezeConfig = FreezeConfig()
    peft: PeftConfig | None = Field(None, description="LoRA; null = full fine-tuning.")
    checkpoint: CheckpointConfig = CheckpointConfig()
    rng: RngConfig = RngConfig()
    compute: ComputeConfig = ComputeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    registry: RegistryConfig = RegistryConfig()

    @model_validator(mode="after")
    def _batch_divides(self) -> "Config":
        self.require_divisible_batch(self.compute.nproc_per_node)
        return self

    @property
    def encodes_ahead(self) -> bool:
        """Whether it is worth asking for the vision cache before training: the tower may be frozen."""
        return self.vision_cache.enabled and (self.freeze_config.freeze_vision_tower or self.peft is not None)

    @property
    def validation_source(self) -> DatasetConfig:
        """The validation split's dataset, with what is unset taken from `dataset`."""
        own = self.validation_dataset
        return DatasetConfig(
            path_or_dataset=own.path_or_dataset or self.dataset.path_or_dataset,
            # A revision belongs to its repository: it follows only together with the path.
            revision=own.revision or (None if own.path_or_dataset else self.dataset.revision),
            split=own.split,
        )

    def require_divisible_batch(self, world_size: int) -> None:
        """Raises ValueError where `world_size` ranks cannot share the global batch evenly; packed ones always can."""
        schedule = self.step_scheduler
        if self.packing.enabled:
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
        """Returns the resolved tree, defaults and overrides included, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
