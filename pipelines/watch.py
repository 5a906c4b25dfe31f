"""The flow that starts a training when the dataset or the base model is new."""

from prefect import flow

from pipelines.forms import Overrides
from tasks.drift import show_drift
from tasks.registry.register import FINGERPRINT
from tasks.run import checked_config
from tasks.watch import Minimum, announce, find_changes
from vlm_core.form import Recipe


@flow(name="medpix-retrain-watch", flow_run_name="watch {recipe}", persist_result=True, result_serializer="json")
def medpix_retrain_watch(
    recipe: Recipe = "gemma3_4b_lora",
    min_new_rows: int = 0,
    min_new_cases: int = 0,
    overrides: Overrides = {},  # noqa: B006 - a Mapping, which nobody changes
) -> dict[str, str]:
    """Starts medpix-finetune if no version was trained on the recipe's present dataset and base model.

    It also shows how far new rows differ from those that the champion was trained on.

    Returns the new revisions on the hub, the fingerprint of a new local dataset, or {} if nothing has changed.

    Args:
        recipe: The recipe to watch; a new run uses it too.
        min_new_rows: How many rows more than all versions had, before a run starts on new data.
        min_new_cases: How many cases more than all versions had. If both are given, both must be reached.
        overrides: Settings that replace the recipe's, as JSON: {"dataset.split": "train"}.
    """
    config = checked_config(recipe, overrides)
    changes = find_changes(config, Minimum(min_new_rows, min_new_cases))
    if changes:
        revisions = {key: value for key, value in changes.items() if key != FINGERPRINT}
        announce(recipe, {**overrides, **revisions})
    show_drift(config)
    return changes
