"""The sections about the model and its training."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from vlm_core.config.base import PositiveInt, Revision, Section, Target


def _refuse_flash(value: Any) -> Any:
    if isinstance(value, str) and "flash" in value:
        raise ValueError(
            "FlashAttention accepts no mask, so it would drop Gemma 3's mask over the image tokens; use sdpa"
        )
    return value


Decay = Annotated[float, Field(ge=0, lt=1)]
LearningRate = Annotated[float, Field(gt=0)] | None


class ImageProcessorConfig(Section):
    """Settings of the model's image processor that replace those of its own files; null: as in its files.

    Other settings of the processor may be given too, such as `do_pan_and_scan`: `vlm_core.models.load` checks them.
    """

    model_config = ConfigDict(extra="allow")

    max_soft_tokens: PositiveInt | None = Field(
        None, description="Gemma 4: most tokens of an image: 70, 140, 280, 560 or 1120."
    )
    min_pixels: PositiveInt | None = Field(None, description="Qwen: a smaller image is enlarged to this many pixels.")
    max_pixels: PositiveInt | None = Field(None, description="Qwen: a larger image is reduced to this many pixels.")

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "ImageProcessorConfig":
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is more than max_pixels={self.max_pixels}; exchange them")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that are given, by name."""
        return self.model_dump(exclude_none=True)


class ModelConfig(Section):
    pretrained_model_name_or_path: str = Field(
        description="Hub id, local directory, or a tiny model made locally, such as `builtin:tiny-gemma3`."
    )
    revision: Revision | None = Field(None, description="Branch, tag or commit on the hub; null = the default branch.")
    torch_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "bfloat16",
        description="Dtype of the computation and of frozen weights; auto = as stored.",
    )
    attn_implementation: Annotated[Literal["sdpa", "eager", "flex_attention"], BeforeValidator(_refuse_flash)] = Field(
        "sdpa",
        description="Attention of the language model; flex_attention skips the empty blocks of packed rows, on a GPU. "
        "FlashAttention is not offered: it drops Gemma 3's mask over the image tokens.",
    )
    quantization: Literal["none", "nf4", "int8"] = Field(
        "none",
        description="Hold the language model's linear weights in 4 bits (nf4) or 8 bits (int8) under LoRA; the vision "
        "tower and the projector keep torch_dtype. Extra: quantization.",
    )
    image_processor: ImageProcessorConfig = Field(
        ImageProcessorConfig(), description="Settings that replace those of the model's image processor."
    )


class StepSchedulerConfig(Section):
    global_batch_size: PositiveInt | None = Field(
        None,
        description="Examples per optimizer step on all processes; null = 8 to 64, by the number of questions.",
    )
    local_batch_size: PositiveInt = Field(1, description="Examples per forward pass on one rank, without packing.")
    num_epochs: PositiveInt | None = Field(
        None, description="Passes over the training split; null = enough for 300 steps, at most 30 epochs."
    )
    max_steps: PositiveInt | None = Field(None, description="Stop after this many optimizer steps; null = never.")
    ckpt_every_steps: PositiveInt | None = Field(None, description="Steps between checkpoints; null = only at the end.")
    val_every_steps: PositiveInt | None = Field(
        None, description="Steps between validation losses; null = only at the end."
    )
    max_nonfinite_steps: PositiveInt = Field(
        5, description="Stop with an error after this many steps in a row whose loss or gradient is not finite."
    )
    val_questions: int = Field(
        64, ge=0, description="Validation questions that are also answered and scored with each validation loss."
    )
    early_stop_patience: PositiveInt | None = Field(
        None, description="Stop after this many validations without a better checkpoint.best_metric; null = never."
    )

    @property
    def batch_size(self) -> int:
        """The global batch size; the run's length must be decided."""
        assert self.global_batch_size is not None
        return self.global_batch_size

    @property
    def epochs(self) -> int:
        """The number of epochs; the run's length must be decided."""
        assert self.num_epochs is not None
        return self.num_epochs


class PackingConfig(Section):
    enabled: bool = Field(True, description="Share an image's tokens between its questions: exact, and faster.")
    max_tokens: PositiveInt = Field(
        2048, description="Tokens per packed forward pass on one rank; replaces local_batch_size."
    )
    structured_attention: bool = Field(
        True, description="On a CPU, compute no pair of tokens that a packed row masks out: exact, and faster."
    )


class VisionCacheConfig(Section):
    enabled: bool = Field(True, description="Encode each image only once if the vision tower is frozen.")


class LearningRates(Section):
    """Peak learning rates of single parts of the model; null = `optimizer.lr`."""

    embeddings: LearningRate = Field(None, description="Token embeddings and the head; null = optimizer.lr.")
    vision_tower: LearningRate = Field(None, description="Vision encoder; null = optimizer.lr.")
    projector: LearningRate = Field(None, description="Multimodal projector; null = optimizer.lr.")
    language_model: LearningRate = Field(None, description="Decoder layers; null = optimizer.lr.")

    @property
    def given(self) -> dict[str, float]:
        """The learning rates that are set, by part."""
        return {part: lr for part, lr in self if lr is not None}


class OptimizerConfig(Section):
    target: Target = Field(
        "torch.optim.AdamW",
        description="An optimizer: `torch.optim.NAME`, or one with small states: `bitsandbytes.optim.AdamW8bit`, "
        "`bitsandbytes.optim.PagedAdamW8bit`, `torchao.optim.AdamW4bit`.",
    )
    lr: float = Field(1e-5, gt=0, description="Peak learning rate.")
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.95), description="Decay of the two moments, for optimizers that have them."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the denominator of the step.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay (AdamW: decoupled).")
    decay_norms_and_biases: bool = Field(
        True, description="Weight decay for norms and biases too, as torch does; false = for matrices only."
    )
    lr_by_part: LearningRates = Field(LearningRates(), description="Peak learning rates of single parts of the model.")


FUSED_LOSS = "liger_kernel.transformers.LigerFusedLinearCrossEntropyLoss"


class LossConfig(Section):
    target: Annotated[
        Literal["liger_kernel.transformers.LigerFusedLinearCrossEntropyLoss"] | None, Field(alias="_target_")
    ] = Field(
        None,
        description="null = the mean cross entropy over all supervised tokens of a step. "
        f"{FUSED_LOSS} computes the same together with the head in one GPU kernel.",
    )

    @property
    def is_fused(self) -> bool:
        """Whether liger's kernel computes the loss."""
        return self.target == FUSED_LOSS


class LRSchedulerConfig(Section):
    lr_decay_style: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Shape of the decay after the warm-up."
    )
    lr_warmup_steps: int | None = Field(
        None, ge=0, description="Optimizer steps of linear warm-up; null = lr_warmup_share of the run's steps."
    )
    lr_warmup_share: float | None = Field(
        None, ge=0, lt=1, description="Warm-up as a share of the run's steps; null = 0.05, or lr_warmup_steps."
    )

    @model_validator(mode="after")
    def _one_warmup(self) -> "LRSchedulerConfig":
        if None not in (self.lr_warmup_steps, self.lr_warmup_share):
            raise ValueError(
                f"lr_warmup_steps={self.lr_warmup_steps} and lr_warmup_share={self.lr_warmup_share} are one setting; "
                "give one of them"
            )
        return self

    @property
    def warmup_steps(self) -> int:
        """The number of warm-up steps; the run's length must be decided."""
        assert self.lr_warmup_steps is not None
        return self.lr_warmup_steps


class ClipGradNormConfig(Section):
    max_norm: float | None = Field(1.0, gt=0, description="Largest norm of the full gradient; null = no clipping.")


class FreezeConfig(Section):
    freeze_embeddings: bool = Field(True, description="Freeze the token embeddings (and the head tied to them).")
    freeze_vision_tower: bool = Field(True, description="Freeze the vision encoder.")
    freeze_audio_tower: bool = Field(True, description="Freeze the audio encoder and its projector.")
    freeze_projector: bool = Field(False, description="Freeze the multimodal projector.")
    freeze_language_model: bool = Field(False, description="Freeze the decoder layers.")


class CheckpointConfig(Section):
    enabled: bool = Field(True, description="Write checkpoints.")
    model_save_format: Literal["safetensors", "torch_save"] = Field(
        "safetensors",
        description="torch_save = torch's distributed checkpoint; adapters are always safetensors.",
    )
    save_consolidated: Literal["never", "final", "every"] = Field(
        "final", description="With torch_save: when to also write `consolidated`, a plain transformers directory."
    )
    is_async: bool = Field(
        False, description="Write in the background from a copy in host memory, one checkpoint at a time."
    )
    checkpoint_dir: str | None = Field(
        None, description="The run directory; null = a new directory under $MEDPIX_HOME/runs."
    )
    best_metric: Literal["loss", "token_f1", "closed_accuracy", "clinical_agreement", "contradictions"] = Field(
        "loss",
        description="LOWEST_VAL and early stopping go by it: the validation loss, or a score of val_questions.",
    )
    restore_from: str | None = Field(
        None, description="LATEST, LOWEST_VAL, epoch_E_step_S, or a path; null = LATEST if there is one."
    )
    max_recent_checkpoints: PositiveInt | None = Field(
        None, description="Checkpoints to keep, in addition to those of LATEST and LOWEST_VAL; null = all."
    )


class RngConfig(Section):
    seed: int = Field(42, ge=0, description="Seed of new weights, dropout, the order of the data, and the controls.")


class WandbConfig(Section):
    """Weights & Biases. The API key is not a setting: it comes from wandb's own places, such as `WANDB_API_KEY`."""

    project: str = Field(min_length=1, description="Project in Weights & Biases.")
    entity: str | None = Field(None, description="User or team that owns the project; null = your default one.")
    name: str | None = Field(None, description="Name of the run in W&B; null = the run directory's name.")
    save_dir: str | None = Field(None, description="Directory for wandb's files; null = the run directory.")
    mode: Literal["online", "offline"] | None = Field(
        None, description="offline = write files for `wandb sync`; null = $WANDB_MODE, or online."
    )
