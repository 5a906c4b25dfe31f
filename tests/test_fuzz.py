"""Anything that comes from outside may be damaged or made up. The outcome is success, or one error that is named.

Never another error, a hang, or memory without bound: of configs, rows, images, chat templates and checkpoints.
tests/data/medical/test_fuzz.py does the same with DICOM and NIfTI.
"""

import io
import json
import string
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image

from tests.conftest import noise
from tests.fuzz import damaged, fuzz, peak_memory
from vlm_core.config import DatasetConfig, ImagesConfig
from vlm_core.data import chat_template
from vlm_core.data.cell_images import CellImages
from vlm_core.data.chat_template import render
from vlm_core.data.examples import Columns, RejectedRow, example_of
from vlm_core.data.image_places import ImageFolder
from vlm_core.data.images import FORMATS, UnreadableImageError, decode_image
from vlm_core.data.source import fetch_split
from vlm_core.recipe import RECIPES, config_keys, load_config

MOST_MEMORY = 1_500_000  # kB that all tests of this file may add
KEYS = sorted(key for key, _ in config_keys())
TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "nan",
        "1e999",
        "../x",
        "/dev/zero",
        "~",
        "null",
        "builtin:phantom?images=9",
        "${HOME}",
        "a" * 5000,
        "\x1b[2J",
        "\ud800",
        "\0",
    ]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63), 10**400])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    before = peak_memory()
    yield
    assert peak_memory() - before < MOST_MEMORY


@fuzz(15)
@given(st.dictionaries(st.sampled_from(KEYS) | TEXTS, VALUES, max_size=4))
def test_settings(overrides: dict[str, Any]) -> None:
    with suppress(ValueError):
        load_config("demo", overrides)


@fuzz(30)
@given(damaged([path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))[:4]]))
def test_recipes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with suppress(ValueError):
        load_config(tmp_path / "recipe.yaml")


COLUMNS = Columns("image", "question", "answer", "case", "mode", None)
TURNS = Columns("image", None, None, None, None, "messages")
CELLS = VALUES | st.binary(max_size=40) | st.datetimes()
WORDS = st.sampled_from(
    ["role", "content", "user", "assistant", "from", "value", "human", "gpt", "type", "text", "image", "<image>"]
)
CHATS = st.lists(
    st.dictionaries(WORDS, VALUES | WORDS | st.lists(st.dictionaries(WORDS, VALUES | WORDS)), max_size=4), max_size=4
)


@fuzz(60)
@given(st.fixed_dictionaries(dict.fromkeys(("image", "question", "answer", "case", "mode"), CELLS)), CHATS | CELLS)
def test_cells(tmp_path: Path, row: dict[str, Any], messages: Any) -> None:
    images = CellImages(ImageFolder(tmp_path, anywhere=False), ImagesConfig())
    for columns in (COLUMNS, TURNS):
        with suppress(RejectedRow):
            example_of(row | {"messages": messages}, columns, images)


ROWS = [{"image": "a.png", "question": f"Is it {i}?", "answer": "yes", "case": str(i)} for i in range(6)]


def tables() -> dict[str, bytes]:
    """Returns a sound table in each format by the end of its file's name."""
    table, parquet, arrow = pa.Table.from_pylist(ROWS), io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    csv = "image,question,answer,case\n" + "".join(f"{','.join(row.values())}\n" for row in ROWS)
    return {"jsonl": lines.encode(), "json": json.dumps(ROWS).encode(), "csv": csv.encode(),
            "parquet": parquet.getvalue(), "arrow": arrow.getvalue()}  # fmt: skip


TABLES = tables()


@fuzz(40)
@given(st.sampled_from(sorted(TABLES)).flatmap(lambda end: st.tuples(st.just(end), damaged([TABLES[end]], (60,)))))
def test_tables(tmp_path: Path, table: tuple[str, bytes]) -> None:
    end, content = table
    file = tmp_path / f"train.{end}"
    file.write_bytes(content)
    names = {f"{kind}_column": kind for kind in ("image", "question", "answer", "case")}
    with suppress(ValueError):
        source = fetch_split(DatasetConfig(path_or_dataset=str(file), split="train", mode_column=None, **names))
        for _, rows in source.rows.batches(source.columns.used, source.start, source.stop):
            for row in rows:
                with suppress(RejectedRow):
                    example_of(row, source.columns, source.images)
    file.unlink()


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise((12, 12)).save(buffer, kind)
    return buffer.getvalue()


@fuzz(80)
@given(content=damaged([encoded(kind) for kind in FORMATS], (100,)))
def test_images(capfd: pytest.CaptureFixture[str], content: bytes) -> None:
    with suppress(UnreadableImageError):
        assert isinstance(decode_image(content), Image.Image)
    capfd.readouterr()  # libtiff writes to standard error


ATOMS = st.sampled_from(
    [
        "messages",
        "messages[0]",
        "messages[0].content",
        "loop",
        "kept.text",
        "10",
        "99999999999",
        "1.5",
        "'x'",
        "none",
        "x",
        "range(99999)",
        "[1,2]",
        "{'a':1}",
        "add_generation_prompt",
        "''.format",
        "messages.__class__",
        "lipsum",
        "cycler",
        "f",
    ]
)
OPERATORS = st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and"])
FILTERS = st.sampled_from(
    [
        "length",
        "list",
        "join",
        "tojson",
        "trim",
        "upper",
        "center(99999999999)",
        "indent(9999999999)",
        "batch(99999999999)",
        "wordwrap(1)",
        "sort",
        "sum",
        "replace('','x')",
        "int",
        "float",
        "pprint",
        "attr('x')",
        "map('x')",
        "xmlattr",
        "format(1)",
        "random",
        "urlize",
    ]
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: (
        st.tuples(inner, OPERATORS, inner).map(lambda parts: f"({' '.join(parts)})")
        | st.tuples(inner, FILTERS).map(lambda parts: f"({parts[0]})|{parts[1]}")
        | inner.map(lambda call: f"({call})()")
    ),
    max_leaves=5,
)
STATEMENTS = st.recursive(
    EXPRESSIONS.map(lambda value: "{{ " + value + " }}")
    | EXPRESSIONS.map(lambda value: "{% set kept.text = " + value + " %}")
    | st.text(string.printable, max_size=8),
    lambda inner: (
        st.tuples(EXPRESSIONS, inner).map(lambda p: f"{{% for x in {p[0]} %}}{p[1]}{{% endfor %}}")
        | st.tuples(EXPRESSIONS, inner).map(lambda p: f"{{% if {p[0]} %}}{p[1]}{{% endif %}}")
        | inner.map(lambda body: "{% macro f() %}" + body + "{% endmacro %}{{ f() }}")
        | st.lists(inner, max_size=3).map("".join)
    ),
    max_leaves=4,
)


class Processor:
    """A processor that renders a template as transformers does, in a sandbox."""

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def apply_chat_template(self, conversation: Any, **options: Any) -> str:
        template = ImmutableSandboxedEnvironment().from_string(self.chat_template)
        return template.render(messages=conversation, **options)


@fuzz(60)
@given(STATEMENTS)
def test_templates(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.2)
    monkeypatch.setattr(chat_template, "MOST_MEMORY", 100_000_000)
    processor = Processor("{% set kept = namespace(text='xx') %}" + template)
    with suppress(ValueError, TemplateError):
        render(processor, (("user", ("image", "text")),), iter(["What is it?"]), for_generation=True)
