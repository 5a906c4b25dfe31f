"""The sections `evaluation`, `report` and `registry`."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vlm_core.config.base import Names, PositiveInt, Section, listed

ENGINE = "openai:"  # in compare_with: begins a model behind an endpoint, openai:MODEL@URL
BASE = "base"  # in compare_with: the base model
CHAMPION = "champion"  # alias of the version that the gate or a person promoted
RESERVED_ALIASES = rf"{CHAMPION}|latest|v\d+"  # case-insensitive
# Names that an evaluation or a reader study uses itself.
RESERVED_NAMES = ("model", "shuffled", "blank", "question_only", "commonest", "reference")
Control = Literal["shuffled", "blank", "question_only"]
ProtocolName = Literal[
    "medpix",
    "vqa_rad_llava_med",
    "vqa_rad_medgemma",
    "slake_medevalkit",
    "vqa_rad_medevalkit",
    "pathvqa",
    "vqa_med_2020",
]


class EvaluationConfig(Section):
    batch_size: PositiveInt = Field(
        64, description="Questions answered at once on one rank; fewer if their prompts are long."
    )
    merge_lora: bool | None = Field(
        None,
        description="Add LoRA's matrices to the weights before answering: faster. In bfloat16 this rounds the weights; "
        "null = only if the model computes in float32.",
    )
    max_new_tokens: PositiveInt = Field(
        96, description="Longest answer in tokens; longer answers are cut and counted as truncated."
    )
    limit: PositiveInt | None = Field(
        None, description="Number of questions to evaluate; null = the whole validation split."
    )
    temperature: float = Field(
        0.0, ge=0, description="0 = greedy; otherwise answers are sampled with the seed rng.seed."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the most likely tokens that together have this probability."
    )
    controls: Annotated[list[Control], BeforeValidator(listed)] = Field(
        ["shuffled", "blank", "question_only"],
        description="Also ask with another case's image, a black image, no image; the drop measures reliance on it.",
    )
    compare_with: Names = Field(
        ["base"],
        description="Models to compare with: `base`, a directory, a hub id, models:/name@alias, a model behind an "
        "endpoint as openai:MODEL@URL, or NAME=one of these.",
    )

    protocols: Annotated[list[ProtocolName], BeforeValidator(listed)] = Field(
        [],
        description="Also score as these publications do, to compare with their numbers: docs/evaluation.md.",
    )

    @property
    def comparisons(self) -> dict[str, str]:
        """The models to compare with by short name: the NAME of NAME=MODEL, or the last part of the model.

        Raises ValueError if two models have the same name.
        """
        found: dict[str, str] = {}
        for reference in self.compare_with:
            named = re.fullmatch(r"([\w.-]+)=(.+)", reference)
            path = reference.removeprefix(ENGINE).partition("@http")[0] if reference.startswith(ENGINE) else reference
            name, model = named.groups() if named else (re.split(r"[/@]", path.rstrip("/"))[-1], reference)
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
    model_name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$",
        description="Name in MLflow's registry; null = named after the model family, such as medpix-gemma3.",
    )
    alias: str = Field(
        "challenger",
        pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$",
        description="Alias of the new version; not champion, which only the gate gives.",
    )
    promote: bool = Field(True, description="Make the new version the champion if it beats the current one.")
    metric: Literal["token_f1", "rouge_l", "exact_match", "closed_accuracy", "clinical_agreement", "logprob"] = Field(
        "token_f1",
        description="Score that must beat the champion's, on cases not seen in training if there are at least 20.",
    )
    margin: float = Field(0.0, ge=0, description="Smallest difference by which it must beat the champion.")
    require_interval: bool = Field(
        True,
        description="Promote only what chance cannot explain, at a level that shrinks with each candidate that the "
        "champion meets: together they replace it by an equal model in at most 5 %; false = any improvement counts.",
    )
    no_more_contradictions: bool = Field(
        False, description="Promote only if it does not contradict the references more often than the champion."
    )

    @field_validator("alias")
    @classmethod
    def _alias_is_free(cls, alias: str) -> str:
        if re.fullmatch(RESERVED_ALIASES, alias, re.IGNORECASE):
            raise ValueError(
                f"{alias!r} is reserved: only the gate gives {CHAMPION!r}, and MLflow itself uses latest, v1, v2 and "
                "so on; choose another alias, such as challenger"
            )
        return alias
