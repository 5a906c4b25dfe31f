"""Retraining when the data or the base model changed on the hub."""

from typing import Any

from prefect import flow

from tasks.run import checked_config
from tasks.watch import announce, find_changes
from vlm_core.form import Recipe


@flow(name="medpix-retrain-watch", flow_run_name="watch {recipe}", persist_result=True, result_serializer="json")
def medpix_retrain_watch(recipe: Recipe = "gemma3_4b_lora", overrides: dict[str, Any] | None = None) -> dict[str, str]:
    """Compares what the recipe's models were trained on with the hub; a new revision starts medpix-finetune on it.

    Returns the new revisions; nothing is started where there are none.

    Args:
        recipe: The recipe whose dataset and base model are watched, and of the run that is started.
        overrides: Config values over the recipe's, by dotted key.
    """
    config = checked_config(recipe, overrides)
    changes = find_changes(config)
    if changes:
        announce(recipe, {**(overrides or {}), **changes})
    return changes
