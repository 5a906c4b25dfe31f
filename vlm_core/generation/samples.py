"""Answers the same few questions at each validation, so that people see the model learn."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlm_core.data.batches import ImageInputs
from vlm_core.data.conversation import last_question
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.token_cache import TokenDataset
from vlm_core.files import append_json_lines
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.decode import Answer
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
    answers = answers_of(answerer, tokens, chosen, images, LONGEST)
    described = [_described(rows[tokens.row_of(i)]) for i in chosen]

    def ask(step: int) -> None:
        pairs = zip(described, answers(), strict=True)
        records = [{"step": step, **about, "prediction": answer.text} for about, answer in pairs]
        if writes:
            append_json_lines(file, records)

    return ask


def answers_of(
    answerer: Answerer, tokens: TokenDataset, chosen: Sequence[int], images: ImageInputs, longest: int
) -> Callable[[], list[Answer]]:
    """Returns a function that answers the examples `chosen`, in their order, in at most `longest` tokens each.

    Few are answered at once: the optimizer's states are in memory too.
    """
    prompts = Prompts([prompt_of(tokens[i]) for i in chosen], answerer.chat)
    settings = GenerationSettings(longest)

    def ask() -> list[Answer]:
        found: dict[int, Answer] = {}
        for groups in prompts.batches(SHOWN):
            found |= answerer.answer_groups(prompts, groups, images, settings, [""] * len(prompts))
        return [found[i] for i in range(len(prompts))]

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
