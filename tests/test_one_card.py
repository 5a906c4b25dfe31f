"""docs/one-card.md has the tables that its script prints."""

import re

from deployments.one_card import RECIPES, rows
from tests.readme import ROOT
from vlm_core.data.new_recipe import settings_for
from vlm_core.recipe import recipe_names
from vlm_core.training.memory import CARDS


def test_the_page_has_the_rows_that_the_script_prints() -> None:
    page = (ROOT / "docs" / "one-card.md").read_text(encoding="utf-8")
    found = rows("gemma3_4b_qlora")
    assert [row for row in found if row not in page] == []
    # `medpix init` chooses the settings that the plan shows for a card.
    fitting = [re.sub(r" \(.*", "", cell) for cell in found[1].strip("| ").split(" | ")[1:]]
    words = {"model": "nf4", "compute": "checkpointing"}
    assert [", ".join(words[section] for section in settings_for(card)) or "as configured" for card in CARDS] == fitting
    assert {name for name in recipe_names() if name.endswith("_qlora")} == RECIPES.keys()
