"""Finds the documentation pages and their blocks of code, for tests that run them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Returns a page's code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def loading() -> str:
    """Returns the page's program that loads a registered model; its last line prints the answer."""
    (program,) = blocks(ROOT / "docs" / "registry.md", "python")
    *lines, last = program.rstrip().splitlines()
    return "\n".join([*lines, f"print({last})"])
