"""The flow that starts a training when the dataset or the base model has a new revision on the hub."""

from prefect import flow

from pipelines.forms import Overrides
from tasks.run import checked_config
from tasks.watch import announce, find_changes
from vlm_core.form import Recipe


@flow(name="medpix-retrain-watch", flow_run_name="watch {recipe}", persist_result=True, result_serializer="json")
def medpix_retrain_watch(
    recipe: Recipe = "gemma3_4b_lora",
    overrides: Overrides = {},  # noqa: B006 - a Mapping, which nobody changes
) -> dict[str, str]:
    """Starts medpix-finetune if the recipe's dataset or base model has a revision that no version was trained on.

    Returns the new revisions, or {} if nothing has changed.

    Args:
        recipe: The recipe to watch. Its dataset and base model are compared with the hub; a new run uses it too.
        overrides: Settings that replace the recipe's, as JSON: {"dataset.split": "train"}.
    """
    config = checked_config(recipe, overrides)
    changes = find_changes(config)
    if changes:
        announce(recipe, {**overrides, **changes})
    return changes
