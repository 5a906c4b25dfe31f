"""The pages that people read, and their blocks of code, as tests run them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Returns the blocks of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def loading() -> str:
    """Returns the program that loads a registered model, with what it answers printed on the last line."""
    (program,) = blocks(ROOT / "docs" / "registry.md", "python")
    *lines, last = program.rstrip().splitlines()
    return "\n".join([*lines, f"print({last})"])
