"""Builds the parameter form of the flow: the sections and fields of the config, where an empty field keeps the recipe.

Prefect's UI builds its form from the flow's parameters and submits every field. The config itself cannot be the form,
because its defaults would override the recipe.

The UI shows alternatives (`anyOf` in a JSON schema) as tabs. The first tab of a section has the few fields that people
usually change, or none. The second tab has all fields.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    create_model,
    model_serializer,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema, PydanticUndefined

from vlm_core.config import Section
from vlm_core.recipe import load_config, recipe_names

Tuning = Literal["as in the recipe", "lora", "full"]
YesNo = Literal["yes", "no"]
# The first tab is a list of shipped recipes, the second a text field for any other path.
Recipe = Annotated[
    str,
    WithJsonSchema(
        {
            "anyOf": [
                {"title": "shipped recipe", "type": "string", "enum": recipe_names()},
                {"title": "your own YAML file", "type": "string"},
            ]
        }
    ),
]


class FormSection(BaseModel):
    """The form of one config section. An empty field is None, and is left out of dumps and of JSON schema defaults."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, protected_namespaces=())
    in_first_tab: ClassVar[Sequence[str] | None] = None  # None: the section has no tabs

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        every_field = handler(core_schema)
        if cls.in_first_tab is None:
            return every_field
        fields = handler.resolve_ref_schema(every_field)["properties"]
        first = {name: _unbounded(fields[name]) for name in cls.in_first_tab}
        # The fields of the first tab have no bounds, so that every value passes `anyOf`. The server validates the
        # bounds through `allOf` and names the wrong field. For `anyOf` it would only report that no tab matches.
        tabs = [
            {"title": "most used" if first else "as in the recipe", "type": "object", "properties": first},
            {**every_field, "title": "all settings" if first else "change"},
        ]
        return {"title": cls.__name__, "anyOf": tabs, "allOf": [every_field]}

    @model_serializer(mode="wrap")
    def _filled(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None and value != {}}


def form_of(section: type[Section], *, first: Sequence[str] | None = None) -> type[FormSection]:
    """Returns a form model with the fields of `section`, all optional, with their bounds, choices and descriptions.

    With `first`, Prefect's UI shows the section in two tabs: one with only these fields, and one with all.

    >>> form_of(OptimizerConfig)(lr="2e-5").model_dump()
    {'lr': 2e-05}
    """
    fields: dict[str, Any] = {
        name: (
            _field_type(field) | SkipJsonSchema[None],
            Field(None, title=name, description=_description(field), json_schema_extra=_without_default),
        )
        for name, field in section.model_fields.items()
        if field.alias is None  # `_target_` names a function, which a form must not set
    }
    form = create_model(section.__name__.removesuffix("Config"), __base__=FormSection, **fields)
    form.in_first_tab = first
    return form


def _field_type(field: FieldInfo) -> Any:
    if field.annotation is bool:
        return YesNo  # an untouched boolean in the form submits false
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
        return form_of(field.annotation)
    annotation: Any = list[float] if get_origin(field.annotation) is tuple else field.annotation
    return Annotated[annotation, *field.metadata] if field.metadata else annotation


def _unbounded(field: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a field without its bounds."""
    return {key: field[key] for key in ("title", "description", "type", "enum", "items", "anyOf") if key in field}


def _without_default(schema: dict[str, Any]) -> None:
    # For an optional field, also drop the null alternative: an empty field means null.
    schema.pop("default", None)
    kinds = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema |= kinds[0]


def _description(field: FieldInfo) -> str:
    words: dict[Any, Any] = {None: "null", True: "yes", False: "no"}
    default = words.get(field.default, field.default) if isinstance(field.default, bool | None) else field.default
    known = "" if default is PydanticUndefined or isinstance(default, Section) else f" (default: {default})"
    return f"{field.description} Empty: the recipe's value{known}."


def form_overrides(recipe: str, tuning: Tuning, sections: Mapping[str, FormSection]) -> dict[str, Any]:
    """Returns the non-empty fields of a form as overrides for `load_config`.

    `tuning` "lora" adds the section peft, "full" removes it. Raises ValueError for LoRA settings without LoRA.
    """
    filled = {
        f"{name}.{field}": value for name, section in sections.items() for field, value in section.model_dump().items()
    }
    lora = [key for key in filled if key.startswith("peft.")]
    if lora and (tuning == "full" or (tuning == "as in the recipe" and load_config(recipe).peft is None)):
        raise ValueError(f"full fine-tuning has no LoRA: empty {', '.join(lora)}, or choose tuning=lora")
    # The section comes before its fields, which override it.
    return {"lora": {"peft": {}}, "full": {"peft": None}}.get(tuning, {}) | filled
