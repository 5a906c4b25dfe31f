"""Saves one validation question with its images, so that one command can try the trained model on it."""

from pathlib import Path
from typing import Any

from prefect import task

from tasks.run import Run
from vlm_core.data.conversation_cache import ConversationDataset, image_indices
from vlm_core.files import published_file, write_json
from vlm_core.run_directory import EXAMPLE


@task(tags=["report"], persist_result=False)
def write_example(run: Run, conversations: Path) -> None:
    """Saves the first validation question with an image, or else the first one; nothing if `report.images` is false."""
    if not run.config.report.images:
        return
    dataset = ConversationDataset(conversations, "validation")
    with_image = (i for i in range(len(dataset)) if image_indices(dataset.conversations[i]))
    asked, answered = _first_exchange(dataset[next(with_image, 0)])
    images = []
    for number, part in enumerate(part for part in asked if part["type"] == "image"):
        images.append(str(run.directory / f"example_{number}.png"))
        with published_file(Path(images[-1])) as aside:
            part["image"].save(aside, "png")
    write_json(run.directory / EXAMPLE, {"question": _text(asked), "answer": _text(answered), "images": images})


def _first_exchange(example: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the parts of the first question and the parts of its answer."""
    turns = example["conversation"]
    first = next(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
    asked = [part for turn in turns[:first] if turn["role"] == "user" for part in turn["content"]]
    return asked, turns[first]["content"]


def _text(parts: list[dict[str, Any]]) -> str:
    return "\n".join(part["text"] for part in parts if part["type"] == "text")
