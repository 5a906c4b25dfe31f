"""The base class and the common types of the config's sections."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values are checked against their bounds."""

    model_config = ConfigDict(
        extra="forbid", coerce_numbers_to_str=True, frozen=True, protected_namespaces=(), serialize_by_alias=True
    )


def listed(value: Any) -> Any:
    """Accepts a single word as a list of one, for the command line."""
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(listed)]
PositiveInt = Annotated[int, Field(ge=1)]
# A dotted path of a function or class; `vlm_core.targets` says which are allowed.
Target = Annotated[str | None, Field(alias="_target_")]
Share = Annotated[float, Field(ge=0, le=1)]
# A branch, tag or commit of the hub. It becomes part of a path in the hub's cache.
Revision = Annotated[str, Field(pattern=r"^\w[\w+-]*([./][\w+-]+)*$", max_length=250)]
