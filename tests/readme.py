"""The README's blocks of code, as tests run them."""

import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str, heading: str = "") -> list[str]:
    """Returns the blocks of a language below a heading of the second level; below any without `heading`."""
    section = TEXT if not heading else TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert section, f"the README has no section {heading!r}"
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def loading() -> str:
    """Returns the program that loads a registered model, with what it answers printed on the last line."""
    (program,) = blocks("python", "The result")
    *lines, last = program.rstrip().splitlines()
    return "\n".join([*lines, f"print({last})"])
