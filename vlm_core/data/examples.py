"""MedPix-VQA's rows as conversations in the Hugging Face message format (the guide's section on preprocessing)."""

from typing import Any

from vlm_core.data.labels import MARKER_PATTERN


class RejectedRow(ValueError):
    """A row that cannot be trained on; the message is the reason it is counted under."""


def conversation_of(question: str | None, answer: str | None, image: Any) -> list[dict[str, Any]]:
    """Returns the two turns of a row: `image` and question from the user, the answer from the assistant.

    Raises RejectedRow for an empty question or answer: an empty answer would train the model to say nothing.
    """
    if not (question or "").strip():
        raise RejectedRow("empty question")
    if not (answer or "").strip():
        raise RejectedRow("empty answer")
    if MARKER_PATTERN.search(f"{question}{answer}"):
        raise RejectedRow("reserved characters U+E000 and U+E001")
    return [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
