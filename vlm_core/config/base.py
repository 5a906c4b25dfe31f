"""The base class and the common types of the config's sections."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values are checked against their bounds."""

    model_config = ConfigDict(
        extra="forbid", coerce_numbers_to_str=True, frozen=True, protected_namespaces=(), serialize_by_alias=True
    )


def listed(value: Any) -> Any:
    """Accepts a single word as a list of one, for the command line."""
    return [value] if isinstance(value, str) else value


def paired(value: Any) -> Any:
    """Accepts a mapping as a list of `key=value`, an entry for each value of a key, and a single word as a list."""
    if isinstance(value, dict):
        pairs = ((key, one) for key, many in value.items() for one in (many if isinstance(many, list) else [many]))
        return [f"{key}={_plain(one)}" for key, one in pairs]
    return listed(value)


def _plain(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _named(pairs: list[str]) -> list[str]:
    for pair in pairs:
        if not pair.partition("=")[0].strip() or "=" not in pair:
            raise ValueError(f"{pair!r} is not a pair; write NAME=VALUE")
    return pairs


Names = Annotated[list[str], BeforeValidator(listed)]
# `NAME=VALUE`; a recipe may also write a mapping. A name may be in several pairs.
Pairs = Annotated[list[str], BeforeValidator(paired), AfterValidator(_named)]
PositiveInt = Annotated[int, Field(ge=1)]
# A dotted path of a function or class; `vlm_core.targets` says which are allowed.
Target = Annotated[str | None, Field(alias="_target_")]
Share = Annotated[float, Field(ge=0, le=1)]
# A branch, tag or commit of the hub. It becomes part of a path in the hub's cache.
Revision = Annotated[str, Field(pattern=r"^\w[\w+-]*([./][\w+-]+)*$", max_length=250)]
