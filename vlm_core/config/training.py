"""The sections about the model and its training."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vlm_core.config.base import Names, PositiveInt, Section, Target


def _strip_torch(value: Any) -> Any:
    return value.removeprefix("torch.") if isinstance(value, str) else value


def _refuse_flash(value: Any) -> Any:
    if isinstance(value, str) and "flash" in value:
        raise ValueError("FlashAttention takes no mask: it would drop Gemma 3's over the image tokens; take sdpa")
    return value


Dtype = Annotated[Literal["auto", "float32", "bfloat16"], BeforeValidator(_strip_torch)]


Decay = Annotated[float, Field(ge=0, lt=1)]


class ModelConfig(Section):
    pretrained_model_name_or_path: str = Field(
        description="Hub id, local directory, or `builtin:tiny-gemma3`, `-gemma3n` or `-qwen2_5_vl`, made locally."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub; null = the default branch.")
    torch_dtype: Dtype = Field(
        "bfloat16",
        description="Dtype to compute in and of frozen weights; auto = as stored.",
    )
    attn_implementation: Annotated[Literal["sdpa", "eager", "flex_attention"], BeforeValidator(_refuse_flash)] = Field(
        "sdpa",
        description="Attention of the language model; flex_attention skips the empty blocks of packed rows, on a GPU. "
        "FlashAttention is no choice: it drops Gemma 3's mask over the image tokens.",
    )


class StepSchedulerConfig(Section):
    global_batch_size: PositiveInt | None = Field(
        None,
        description="Examples per optimizer step, over all processes; null = 8 to 64, by the number of questions.",
    )
    local_batch_size: PositiveInt = Field(1, description="Examples a forward pass on one rank, without packing.")
    num_epochs: PositiveInt | None = Field(
        None, description="Passes over the training split; null = as many as make 300 steps, 30 at most."
    )
    max_steps: PositiveInt | None = Field(None, description="Stop after this many optimizer steps; null = never.")
    ckpt_every_steps: PositiveInt | None = Field(None, description="Optimizer steps between checkpoints; null = end.")
    val_every_steps: PositiveInt | None = Field(None, description="Steps between validation losses; null = end.")
    early_stop_patience: PositiveInt | None = Field(
        None, description="Stop after this many validation losses without a new lowest one; null = never."
    )

    @property
    def batch_size(self) -> int:
        """The global batch size of a run whose length is decided."""
        assert self.global_batch_size is not None
        return self.global_batch_size

    @property
    def epochs(self) -> int:
        """The epochs of a run whose length is decided."""
        assert self.num_epochs is not None
        return self.num_epochs


class PackingConfig(Section):
    enabled: bool = Field(True, description="Let the questions about an image share its tokens; exact, and faster.")
    max_tokens: PositiveInt = Field(
        2048, description="Tokens of a packed forward pass on one rank; takes the place of local_batch_size."
    )


class VisionCacheConfig(Section):
    enabled: bool = Field(True, description="Encode each image once where the vision tower is frozen.")


class OptimizerConfig(Section):
    target: Target = Field("torch.optim.AdamW", description="An optimizer of torch: `torch.optim.NAME`.")
    lr: float = Field(1e-5, gt=0, description="Peak learning rate.")
    betas: tuple[Decay, Decay] = Field((0.9, 0.95), description="Decay of the two moments, of an optimizer with them.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator of the step.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay (AdamW: decoupled).")


FUSED_LOSS = "liger_kernel.transformers.LigerFusedLinearCrossEntropyLoss"


class LossConfig(Section):
    target: Target = Field(
        None,
        description="null, or the guide's MaskedCrossEntropy: the mean over all supervised tokens of a step. "
        f"{FUSED_LOSS} computes the same in one kernel with the head, on a GPU.",
    )

    @property
    def is_fused(self) -> bool:
        """Whether liger's kernel computes the loss."""
        return self.target == FUSED_LOSS

    @field_validator("target")
    @classmethod
    def _known(cls, target: str | None) -> str | None:
        names = ("MaskedCrossEntropy", "masked_cross_entropy")
        if target not in (None, FUSED_LOSS) and target.rpartition(".")[2] not in names:
            raise ValueError(
                "there is one loss, the token-normalised cross entropy (MaskedCrossEntropy); leave it out, or take "
                f"{FUSED_LOSS} on a GPU"
            )
        return target


# After the warm-up, to zero at the last step; None: as `lr_decay_style` says.
SCHEDULERS = {
    "torch.optim.lr_scheduler.CosineAnnealingLR": "cosine",
    "torch.optim.lr_scheduler.LinearLR": "linear",
    "torch.optim.lr_scheduler.ConstantLR": "constant",
    "nemo_automodel.components.optim.scheduler.OptimizerParamScheduler": None,
}


class LRSchedulerConfig(Section):
    target: Target = Field(
        None, description="null, or the class in torch.optim.lr_scheduler that goes by the name of an lr_decay_style."
    )
    lr_decay_style: Literal["cosine", "linear", "constant"] = Field("cosine", description="After the warm-up.")
    lr_warmup_steps: int | None = Field(
        None, ge=0, description="Optimizer steps of linear warm-up; null = lr_warmup_share of the run's steps."
    )
    lr_warmup_share: float | None = Field(
        None, ge=0, lt=1, description="Share of the run's steps that warms up; null = 0.05, or lr_warmup_steps."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_schedule(cls, tree: Any) -> Any:
        target = tree.get("_target_") if isinstance(tree, dict) else None
        if target is None:
            return tree
        if target not in SCHEDULERS:
            raise ValueError(f"_target_={target!r} is no schedule here; take {', '.join(SCHEDULERS)}")
        style, given = SCHEDULERS[target], tree.get("lr_decay_style")
        if None not in (style, given) and style != given:
            raise ValueError(f"_target_={target} and lr_decay_style={given} differ; give one of them")
        return tree if style is None else tree | {"lr_decay_style": style}

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
        """The steps of warm-up of a run whose length is decided."""
        assert self.lr_warmup_steps is not None
        return self.lr_warmup_steps


class ClipGradNormConfig(Section):
    max_norm: float | None = Field(1.0, gt=0, description="Largest norm of the whole gradient; null = no clipping.")


class FreezeConfig(Section):
    freeze_embeddings: bool = Field(True, description="Freeze the token embeddings (and the head tied to them).")
    freeze_vision_tower: bool = Field(True, description="Freeze the vision encoder.")
    freeze_audio_tower: bool = Field(True, description="Freeze the audio encoder and its projector.")
    freeze_projector: bool = Field(False, description="Freeze what leads from image features to the language model.")
    freeze_language_model: bool = Field(False, description="Freeze the decoder's layers.")


class PeftConfig(Section):
    peft_fn: Literal["nemo_automodel._peft.lora.apply_lora_to_linear_modules"] | None = Field(
        None, description="The guide's key, for its own function; there is one LoRA here, and null names it too."
    )
    use_triton: bool = Field(False, description="The guide's key; without effect, since peft has no such kernels.")
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


def _by_name(value: Any) -> Any:
    return {False: "never", True: "every"}.get(value, value) if isinstance(value, bool) else value


class CheckpointConfig(Section):
    enabled: bool = Field(True, description="Write checkpoints.")
    model_save_format: Literal["safetensors", "torch_save"] = Field(
        "safetensors",
        description="torch_save = torch's distributed checkpoint; an adapter is safetensors always.",
    )
    save_consolidated: Annotated[Literal["never", "final", "every"], BeforeValidator(_by_name)] = Field(
        "final", description="With torch_save: when to write a plain transformers directory `consolidated` beside it."
    )
    is_async: bool = Field(
        False, description="Write beside the training, from a copy in host memory; one checkpoint at a time."
    )
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


class WandbConfig(Section):
    """Without a key of the API: that comes from the environment alone, `WANDB_API_KEY`."""

    project: str = Field(min_length=1, description="Project in Weights & Biases.")
    entity: str | None = Field(None, description="User or team that the project belongs to; null = your default one.")
    name: str | None = Field(None, description="Name of the run in W&B; null = that of the run directory.")
    save_dir: str | None = Field(None, description="Directory of wandb's own files; null = the run directory.")
    mode: Literal["online", "offline"] | None = Field(
        None, description="offline = write files for `wandb sync`; null = $WANDB_MODE, or online."
    )
