"""The documentation's site: no broken link, generated pages that are current, and nothing from other servers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.readme import ROOT


def pages_of(tree: object) -> list[str]:
    """Returns the pages of the navigation, in order."""
    if isinstance(tree, str):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree
    assert not isinstance(children, str)
    return [page for child in children for page in pages_of(child)]  # type: ignore[attr-defined]


def test_every_page_has_a_place_and_says_what_it_is_for() -> None:
    nav = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= set(nav)
    assert len(set(nav)) == len(nav)
    for page in nav:
        assert (ROOT / page).is_file(), page
        if page.startswith("docs/") and page != "docs/traps.md":
            assert "After this page you" in (ROOT / page).read_text(encoding="utf-8").partition("\n## ")[0], page


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    environment = os.environ | {"MEDPIX_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-m", "docs.site.build", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', text) == [], page
        paragraphs = re.findall(r"<p>(.*?)</p>", text, re.DOTALL)
        assert [words for words in paragraphs if re.search(r"\n\s*[-|] ", words)] == [], (
            "a list or table needs an empty line"
        )
        assert re.findall(r"<code>[^<]*\\\|", text) == [], (
            "GitHub and the site read a bar in a table's code differently"
        )
    assert "search" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="other versions of argparse break lines elsewhere")
def test_the_generated_pages_are_current(tmp_path: Path) -> None:
    environment = os.environ | {"MEDPIX_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-m", "docs.site.generate", "--check"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
