"""A recipe that is not valid YAML, or whose aliases expand too far, is one error that names the file and the line."""

import time
from pathlib import Path

import pytest

from vlm_core.recipe import load_config

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"a:\n\t- b", "is not valid YAML: line 2: found character"),
        (b"model: [", "is not valid YAML: line 1: expected the node content"),
        (b"model: {a: 'b", "is not valid YAML: line 1: found unexpected end of stream"),
        (b"model: *none", "is not valid YAML: line 1: found undefined alias"),
        (
            b"model: !!python/object/apply:os.system [id]",
            "is not valid YAML: line 1: could not determine a constructor",
        ),
        (b"\0", "is not valid YAML in UTF-8: unacceptable character"),
        ("modèle: 1".encode("latin-1"), "is not valid YAML in UTF-8: 'utf-8' codec"),
        (b"[" * 5000, "is not valid YAML in UTF-8: maximum recursion depth"),
        (b"model: &a [*a]", "is not valid YAML in UTF-8: maximum recursion depth"),
        (ALIASES.encode(), "has more than 10,000 entries; its aliases"),
        (b"- a", "must hold a mapping of config sections, not list"),
    ],
    ids=range(11),
)
def test_a_bad_recipe_is_one_error(text: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(text)
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"recipe.yaml {reason}") as error:
        load_config(tmp_path / "recipe.yaml")
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 20
