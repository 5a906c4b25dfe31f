"""docs/one-card.md has the tables that its script prints."""

from deployments.one_card import RECIPES, rows
from tests.readme import ROOT
from vlm_core.recipe import recipe_names


def test_the_page_has_the_rows_that_the_script_prints() -> None:
    page = (ROOT / "docs" / "one-card.md").read_text(encoding="utf-8")
    assert [row for row in rows("gemma3_4b_qlora") if row not in page] == []
    assert {name for name in recipe_names() if name.endswith("_qlora")} == RECIPES.keys()
