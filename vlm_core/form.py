"""The config as a form: the same sections and fields, all of them empty, and empty means from the recipe.

Prefect's UI makes its form of the flow's parameters, and submits every field; so a form cannot be the config itself,
whose defaults would then override the recipe.

The page shows alternatives (`anyOf` in a JSON schema) as tabs, of which one is open: a section's first tab has the few
fields that people change, or none, and its second tab has all of them.
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
# A choice for the people who fill the form, and any other path in a second tab.
Recipe = Annotated[
    str,
    WithJsonSchema(
        {
            "anyOf": [
                {"title": "shipped recipe", "type": "string", "enum": recipe_names()},
                {"title": "YAML file of your own", "type": "string"},
            ]
        }
    ),
]


class FormSection(BaseModel):
    """What is filled of a section: an empty field is None here, and in no dump and no default of a JSON schema."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, protected_namespaces=())
    in_first_tab: ClassVar[Sequence[str] | None] = None  # None: the section has no tabs

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        every_field = handler(core_schema)
        if cls.in_first_tab is None:
            return every_field
        fields = handler.resolve_ref_schema(every_field)["properties"]
        first = {name: _unbounded(fields[name]) for name in cls.in_first_tab}
        # The first tab is of a type that every value has: what is wrong with a value, the server finds by `allOf`, and
        # reports by its field. Of `anyOf` it would report that no alternative fits.
        tabs = [
            {"title": "most used" if first else "as in the recipe", "type": "object", "properties": first},
            {**every_field, "title": "all settings" if first else "change"},
        ]
        return {"title": cls.__name__, "anyOf": tabs, "allOf": [every_field]}

    @model_serializer(mode="wrap")
    def _filled(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None and value != {}}


def form_of(section: type[Section], *, first: Sequence[str] | None = None) -> type[FormSection]:
    """Returns a model with the fields of `section`, each optional, with its bounds, choices and description.

    With `first`, Prefect's page shows the section in two tabs: one with these fields alone, and one with all.

    >>> form_of(OptimizerConfig)(lr="2e-5").model_dump()
    {'lr': 2e-05}
    """
    fields: dict[str, Any] = {
        name: (
            _field_type(field) | SkipJsonSchema[None],
            Field(None, title=name, description=_description(field), json_schema_extra=_without_default),
        )
        for name, field in section.model_fields.items()
        if field.alias is None  # `_target_` names a function: no form may
    }
    form = create_model(section.__name__.removesuffix("Config"), __base__=FormSection, **fields)
    form.in_first_tab = first
    return form


def _field_type(field: FieldInfo) -> Any:
    if field.annotation is bool:
        return YesNo  # a switch that nobody touched would say no
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
        return form_of(field.annotation)
    annotation: Any = list[float] if get_origin(field.annotation) is tuple else field.annotation
    return Annotated[annotation, *field.metadata] if field.metadata else annotation


def _unbounded(field: dict[str, Any]) -> dict[str, Any]:
    """Returns how a field is shown, without what its values have to be."""
    return {key: field[key] for key in ("title", "description", "type", "enum", "items", "anyOf") if key in field}


def _without_default(schema: dict[str, Any]) -> None:
    # Of a field of the config that may be null itself, the choice of null as well: empty says it.
    schema.pop("default", None)
    kinds = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema |= kinds[0]


def _description(field: FieldInfo) -> str:
    words: dict[Any, Any] = {None: "none", True: "yes", False: "no"}
    default = words.get(field.default, field.default) if isinstance(field.default, bool | None) else field.default
    known = "" if default is PydanticUndefined or isinstance(default, Section) else f" (default: {default})"
    return f"{field.description} Empty: the recipe's value{known}."


def form_overrides(recipe: str, tuning: Tuning, sections: Mapping[str, FormSection]) -> dict[str, Any]:
    """Returns what a filled form changes, as overrides of `load_config`: of each section what is not empty.

    `tuning` "lora" adds the section peft, "full" takes it away. Raises ValueError for settings of LoRA without LoRA.
    """
    filled = {
        f"{name}.{field}": value for name, section in sections.items() for field, value in section.model_dump().items()
    }
    lora = [key for key in filled if key.startswith("peft.")]
    if lora and (tuning == "full" or (tuning == "as in the recipe" and load_config(recipe).peft is None)):
        raise ValueError(f"full fine-tuning has no LoRA: empty {', '.join(lora)}, or choose tuning=lora")
    # Before its fields: the section itself.
    return {"lora": {"peft": {}}, "full": {"peft": None}}.get(tuning, {}) | filled
