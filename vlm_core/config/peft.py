"""The section about LoRA."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from vlm_core.config.base import Names, PositiveInt, Section

INITIALISATIONS = ("true", "gaussian", "orthogonal", "eva", "pissa", "pissa_niter_N", "olora")
REFUSED = {  # initialisations of peft that are not offered, with the reason
    "false": "it starts from random changes of the model",
    "corda": "it takes a product that depends on the data out of the base weights, which an adapter does not store",
    "lora_ga": "it takes a product that depends on the data out of the base weights, which an adapter does not store",
    "loftq": "it needs the full-precision weights beside the quantised ones",
    "mica": "it trains one of the two matrices only",
}


def _as_text(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _known_initialisation(value: str) -> str:
    if value in REFUSED:
        raise ValueError(f"{value!r} is not supported, because {REFUSED[value]}; use one of {_choices()}")
    if value not in INITIALISATIONS[:-2] + INITIALISATIONS[-1:] and not re.fullmatch(r"pissa_niter_[1-9]\d*", value):
        raise ValueError(f"{value!r} is not an initialisation of peft; use one of {_choices()}")
    return value


def _choices() -> str:
    return ", ".join(INITIALISATIONS)


class PeftConfig(Section):
    dim: PositiveInt = Field(8, description="LoRA rank.")
    alpha: PositiveInt = Field(32, description="LoRA scale: the update is multiplied by alpha / dim.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the LoRA matrices.")
    match_all_linear: bool = Field(
        False, description="Adapt every linear module that is not excluded, including the head."
    )
    target_modules: Names = Field(
        [], description="Shell-style wildcards for full module names; [] = every linear module except the head."
    )
    exclude_modules: Names = Field([], description="Shell-style wildcards for full names of modules to exclude.")

    use_triton: bool = Field(
        True, description="Compute a linear layer and its LoRA matrices in one function: the same result, faster."
    )
    use_rslora: bool = Field(False, description="Rank-stabilised LoRA: scales the update by alpha / sqrt(dim).")
    use_dora: bool = Field(False, description="DoRA: trains the length of each weight column apart from its direction.")
    init_lora_weights: Annotated[str, BeforeValidator(_as_text), AfterValidator(_known_initialisation)] = Field(
        "true",
        description="How the matrices start, by peft's names: true (A random, B zero), gaussian, orthogonal; from the "
        "first training batches: eva; or from the weights themselves: pissa, pissa_niter_N (faster, N iterations), "
        "olora.",
    )
    loraplus_lr_ratio: float | None = Field(
        None, gt=0, description="LoRA+: learning rate of the B matrices, as a multiple of the A matrices'; null = 1."
    )
    rank_pattern: dict[str, PositiveInt] = Field(
        {}, description="Other ranks for some modules: shell-style wildcards for full names, such as {'*q_proj': 16}."
    )
    alpha_pattern: dict[str, PositiveInt] = Field(
        {}, description="Other alphas for some modules: shell-style wildcards for full names."
    )
    modules_to_save: Names = Field(
        [], description="Shell-style wildcards for full names of modules to train fully, beside the adapter."
    )

    @property
    def changes_base(self) -> bool:
        """Whether the matrices start from the base weights, which then hold only the rest."""
        return self.init_lora_weights.startswith("pissa") or self.init_lora_weights == "olora"

    @property
    def starts_from_data(self) -> bool:
        """Whether the matrices and their ranks depend on the first training batches."""
        return self.init_lora_weights == "eva"

    @model_validator(mode="after")
    def _one_selection(self) -> "PeftConfig":
        if self.match_all_linear and self.target_modules:
            raise ValueError("match_all_linear and target_modules exclude each other; give one of them")
        return self

    @model_validator(mode="after")
    def _start_can_be_saved(self) -> "PeftConfig":
        if self.changes_base and self.use_dora:
            raise ValueError(
                f"init_lora_weights={self.init_lora_weights} and use_dora exclude each other: the result would not fit "
                "the original base model; give one of them"
            )
        return self

    @model_validator(mode="after")
    def _even_ranks(self) -> "PeftConfig":
        odd = [rank for rank in (self.dim, *self.rank_pattern.values()) if rank % 2]
        if self.init_lora_weights == "orthogonal" and odd:
            raise ValueError(
                f"init_lora_weights=orthogonal needs an even rank, not {odd[0]}: change dim or rank_pattern"
            )
        return self
