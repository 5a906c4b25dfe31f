"""Saves one validation question with its images, so that one command can try the trained model on it."""

from pathlib import Path

from prefect import task

from tasks.run import Run
from vlm_core.data.conversation import first_images, questions_and_answers
from vlm_core.data.conversation_dataset import ConversationDataset, image_indices
from vlm_core.files import published_file, write_json
from vlm_core.run_directory import EXAMPLE


@task(tags=["report"], persist_result=False)
def write_example(run: Run, conversations: Path) -> None:
    """Saves the first validation question with an image, or else the first one; nothing if `report.images` is false."""
    if not run.config.report.images:
        return
    dataset = ConversationDataset(conversations, "validation")
    with_image = (i for i in range(len(dataset)) if image_indices(dataset.conversations[i]))
    conversation = dataset[next(with_image, 0)]["conversation"]
    question, answer = questions_and_answers(conversation)[0]
    images = []
    for number, image in enumerate(first_images(conversation)):
        images.append(str(run.directory / f"example_{number}.png"))
        with published_file(Path(images[-1])) as aside:
            image.save(aside, "png")
    write_json(run.directory / EXAMPLE, {"question": question, "answer": answer, "images": images})
