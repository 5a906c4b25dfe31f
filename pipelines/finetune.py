"""The pipeline: `python -m pipelines.finetune --recipe demo [--section.key value ...]`.

Runs against the configured Prefect API, or an ephemeral one where none is configured.
"""

from typing import Any

from prefect import flow

from tasks.data import download_dataset, download_model, preprocess_conversations
from tasks.jobs import encode_images, evaluate, finetune
from tasks.registry import register_model
from tasks.run import checked_config, tracked_run
from tasks.summary import next_steps, render, summarize
from vlm_core.cli import ConfigParser


@flow(name="medpix-finetune")
def medpix_finetune(recipe: str = "demo", overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Fine-tunes, evaluates and registers a model; returns the run's summary.

    Args:
        recipe: Name of a shipped recipe, or the path of a YAML file.
        overrides: Config values over the recipe's, by dotted key: {"optimizer.lr": 2e-5}.
    """
    config = checked_config(recipe, overrides)
    splits = download_dataset(config)
    base_model = download_model(config)
    conversations = preprocess_conversations(splits)
    with tracked_run(config, base_model, splits, conversations) as run:
        if config.encodes_ahead:
            encode_images(run, conversations)
        training = finetune(run, conversations)
        scores = evaluate(run, base_model, training["checkpoint"], conversations)
        registered = register_model(run, base_model, training["checkpoint"], scores)
        return summarize(run, conversations, training, scores, registered)


def main() -> None:
    """Runs the flow by hand; wrong input is said before anything starts."""
    parser = ConfigParser(prog="python -m pipelines.finetune", config_flag="--recipe", description=__doc__)
    options, overrides = parser.parse_with_overrides()
    try:
        checked_config(options.recipe, overrides)
        summary = medpix_finetune(options.recipe, overrides)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"\n{render(summary)}\n\n{next_steps(summary)}")


if __name__ == "__main__":
    main()
