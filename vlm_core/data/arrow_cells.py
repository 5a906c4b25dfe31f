"""Decodes stored cells of Arrow and parquet columns: label numbers to names, JSON text to values, short floats.

The schema defines the decoding: its types, and the features of the `datasets` library under the key `huggingface`.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Features, LargeList, List
from datasets.features import Json

Decode = Callable[[Any], Any]
SHORT_FLOATS = {pa.float16(): np.float16, pa.float32(): np.float32}


def features_of(schema: pa.Schema) -> Mapping[str, Any]:
    """Returns the features that `datasets` wrote into a schema, by column; {} if there are none."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None:
        return {}
    try:
        return Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError):  # written by an incompatible version of `datasets`
        return {}


def decoders_of(schema: pa.Schema, features: Mapping[str, Any]) -> dict[str, Decode]:
    """Returns the decoder of each column; columns that need no decoding are left out."""
    found = {field.name: _decoder(features.get(field.name), field.type) for field in schema}
    return {name: decode for name, decode in found.items() if decode}


def decoded(row: dict[str, Any], decoders: Mapping[str, Decode]) -> dict[str, Any]:
    """Returns a row with its cells decoded."""
    return {name: decoders[name](cell) if name in decoders else cell for name, cell in row.items()}


def label_decoders(features: Mapping[str, Any]) -> dict[str, Decode]:
    """Returns the decoders of the label columns described by a dataset's card, for tables without a schema."""
    return {name: partial(_label, f) for name, f in features.items() if isinstance(f, ClassLabel)}


def _decoder(feature: Any, kind: pa.DataType) -> Decode | None:
    """Returns the decoder of a feature (None if the schema has none) that is stored as `kind`."""
    if isinstance(feature, ClassLabel):
        return partial(_label, feature)
    if isinstance(feature, Json) or getattr(kind, "extension_name", "") == "arrow.json":
        return _json
    if kind in SHORT_FLOATS:
        return partial(_short_float, SHORT_FLOATS[kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = feature.feature if isinstance(feature, List | LargeList) else None
        item = _decoder(inner, kind.value_type)
        return partial(_each, item) if item else None
    if pa.types.is_struct(kind):
        features = feature if isinstance(feature, Mapping) else {}
        fields = decoders_of(pa.schema(list(kind)), features)
        return partial(_object, fields) if fields else None
    return None


def _label(feature: ClassLabel, cell: Any) -> Any:
    """Returns the name of a label number, which may be a text of digits; `datasets` writes -1 for no label."""
    if isinstance(cell, str) and cell not in feature.names and cell.strip().isdecimal():
        cell = int(cell)
    if not isinstance(cell, int) or isinstance(cell, bool):
        return cell
    return feature.names[cell] if 0 <= cell < len(feature.names) else None


def _json(cell: Any) -> Any:
    return json.loads(cell) if isinstance(cell, str) else cell


def _short_float(kind: Any, cell: Any) -> Any:
    """Returns the shortest float that is stored as `cell`: 0.1 instead of 0.10000000149011612."""
    return None if cell is None else float(str(kind(cell)))


def _each(decode: Decode, cells: Iterable[Any] | None) -> Any:
    return None if cells is None else [decode(cell) for cell in cells]


def _object(fields: Mapping[str, Decode], cell: dict[str, Any] | None) -> Any:
    return None if cell is None else decoded(cell, fields)
