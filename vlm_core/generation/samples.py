"""Answers the same few questions after each validation, so that people see the model learn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_core.data.batches import ImageInputs
from vlm_core.data.conversation import last_question
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.token_cache import TokenDataset
from vlm_core.files import append_json_lines
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.prompts import Prompts, prompt_of
from vlm_core.generation.sampling import GenerationSettings

SHOWN = 8  # of different images, spread over the split
LONGEST = 64  # tokens of an answer


def sampler(
    answerer: Answerer, conversations: Path, tokens: TokenDataset, images: ImageInputs, file: Path, *, writes: bool
) -> Callable[[int], None]:
    """Returns a function of the step that appends `{step, example_id, question, prediction, reference}` to `file`.

    All ranks must call it, because each may hold only a part of the weights. Only the rank that `writes` appends.
    """
    rows = ConversationDataset(conversations, "validation").conversations
    chosen = _spread(tokens)
    prompts = Prompts([prompt_of(tokens[i]) for i in chosen], answerer.chat)
    described = [_described(rows[tokens.row_of(i)]) for i in chosen]

    def ask(step: int) -> None:
        answers = {}
        for groups in prompts.batches(SHOWN):
            answers |= answerer.answer_groups(prompts, groups, images, GenerationSettings(LONGEST), [""] * len(prompts))
        records = ({"step": step, **described[i], "prediction": answers[i].text} for i in sorted(answers))
        if writes:
            append_json_lines(file, records)

    return ask


def _spread(tokens: TokenDataset) -> list[int]:
    """Returns the first example of each of a few groups (images), spread over all of them."""
    first: dict[int, int] = {}
    for index, group in enumerate(tokens.groups.tolist()):
        first.setdefault(group, index)
    found = list(first.values())
    return found[:: max(1, len(found) // SHOWN)][:SHOWN]


def _described(row: dict[str, Any]) -> dict[str, str]:
    question, reference = last_question(row["conversation"])
    return {"example_id": row["example_id"], "question": question, "reference": reference}
