"""Greedy answers from a prefix that is computed once for all questions about an image.

A row holds an image's prefix and its questions as branches, as in training (`vlm_core.data.packing`). One forward pass
fills the key-value cache with them; then each step adds a token to every branch that has not ended. The masks go by
position and branch, so that a branch sees what it would see in a row of its own, and the answers are those of
`model.generate`, one question at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from vlm_core.data.collate import Batch
from vlm_core.data.conversation import Conversation
from vlm_core.data.packing import pack
from vlm_core.data.token_cache import TokenizedExample
from vlm_core.families import Family
from vlm_core.generation.chunks import few_rows_at_once, joined
from vlm_core.generation.sampling import Choose, most_likely
from vlm_core.models.attention import Places, packed_masks
from vlm_core.models.forward import head_logits, positions
from vlm_core.models.load import unwrapped


@dataclass(frozen=True)
class Answer:
    """A generated answer, without special tokens and surrounding space."""

    text: str
    tokens: int  # generated, the end of turn included
    truncated: bool  # cut at max_new_tokens


@dataclass
class Branch:
    """A prompt on its way to an answer: number and place in the batch, its last token's index, what was generated."""

    number: int
    row: int
    group: int
    branch: int
    end: int
    position: int
    shift: int  # from there to the position that the model takes, where images have grids
    generated: list[int] = field(default_factory=list)


def without_answer(conversation: Conversation) -> Conversation:
    """Returns a conversation up to and without its last assistant turn."""
    return conversation[:-1] if conversation[-1]["role"] == "assistant" else conversation


def stop_tokens(tokenizer: Any, family: Family) -> set[int]:
    """Returns the ids that end an answer."""
    named = [token for token in (family.end_of_turn.strip(), *family.also_stop) if token]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return {*own, *tokenizer.convert_tokens_to_ids(named)}


def to_answer(generated: list[int], tokenizer: Any, family: Family) -> Answer:
    """Returns the answer that generated ids stand for."""
    ended = bool(generated) and generated[-1] in stop_tokens(tokenizer, family)
    text = tokenizer.decode(generated[:-1] if ended else generated, skip_special_tokens=True).strip()
    return Answer(text, tokens=len(generated), truncated=not ended)


@torch.no_grad()
def generate_ids(
    model: Any,
    family: Family,
    rows: Sequence[Sequence[TokenizedExample]],
    pixel_values: torch.Tensor | None,
    image_token: int,
    stops: set[int],
    max_new_tokens: int,
    choose: Choose = most_likely,
) -> list[list[int]]:
    """Returns the generated ids of each prompt, row by row, a stop token included where one came.

    The prompts of a row have the same images in a prefix that they share, or there is one of them; `pixel_values` are
    those of each row's images, one row behind the other.
    """
    core = unwrapped(model)
    batch = {name: tensor.to(core.device) for name, tensor in pack([[row] for row in rows], image_token).items()}
    prompts = branches = _branches(batch)
    if pixel_values is not None:
        batch["pixel_values"] = pixel_values.to(core.device, core.dtype)
    decoder = _Decoder(core, family, Places.of(batch))
    logits = decoder.prefill(batch, branches)
    for length in range(1, max_new_tokens + 1):
        for branch, token in zip(branches, choose(logits, [branch.number for branch in branches]), strict=True):
            branch.generated.append(token)
        branches = [branch for branch in branches if branch.generated[-1] not in stops]
        if not branches or length == max_new_tokens:
            break
        logits = decoder.step(branches)
    return [branch.generated for branch in prompts]


def _branches(batch: Batch) -> list[Branch]:
    """Returns the branches of a packed batch, row by row."""
    found: list[Branch] = []
    for row, (groups, numbers, counted) in enumerate(
        zip(*(batch[name].tolist() for name in ("group_ids", "branch_ids", "position_ids")), strict=True)
    ):
        ends = {(group, number): i for i, (group, number) in enumerate(zip(groups, numbers, strict=True)) if number}
        for (group, number), end in ends.items():
            # Behind its images a prompt's text is as far from its counted position as its last token.
            shift = int(batch["grid_position_ids"][0, row, end]) - counted[end] if "image_grids" in batch else 0
            found.append(Branch(len(found), row, group, number, end, counted[end], shift))
    return found


class _Decoder:
    """A key-value cache with the place of each of its keys."""

    def __init__(self, model: Any, family: Family, prompt: Places) -> None:
        self.model, self.family, self.keys = model, family, prompt

    def prefill(self, batch: Batch, branches: list[Branch]) -> torch.Tensor:
        """Returns the logits behind each prompt, (branches, vocabulary)."""
        hidden, caches = [], []
        for part in few_rows_at_once(batch, self.family):
            # Without a config every layer keeps all keys: a sliding one would drop those that other branches still see.
            caches.append(DynamicCache())
            places, pixels = Places.of(part), {key: part[key] for key in ("pixel_values",) if key in part}
            inputs = positions(part, self.family) | pixels
            hidden.append(self._forward(part["input_ids"], places, places, caches[-1], **inputs))
        self.cache = joined(caches)
        return self._logits(torch.cat(hidden), [(branch.row, branch.end) for branch in branches])

    def step(self, branches: list[Branch]) -> torch.Tensor:
        """Feeds the last token of each of `branches`; returns the logits behind it, (branches, vocabulary)."""
        columns: dict[int, int] = {}
        places = []
        for branch in branches:
            branch.position += 1
            places.append((branch.row, columns.setdefault(branch.row, 0)))
            columns[branch.row] += 1
        # A row with fewer branches is filled with tokens of no group, which nothing sees.
        queries = torch.zeros(6, len(self.keys.group_ids), max(columns.values()), dtype=torch.long)
        rows, order = zip(*places, strict=True)
        values = [
            [branch.generated[-1], branch.position + branch.shift, branch.position, branch.group, branch.branch, 0]
            for branch in branches
        ]
        queries[:, list(rows), list(order)] = torch.tensor(values).T
        input_ids, position_ids, *new = queries.to(self.model.device)
        if self.family.patches_a_token:
            position_ids = position_ids.expand(3, -1, -1)  # Of text, all three are equal.
        self.keys = self.keys.followed_by(Places(*new))
        hidden = self._forward(input_ids, Places(*new), self.keys, self.cache, position_ids=position_ids)
        return self._logits(hidden, places)

    def _forward(
        self, input_ids: torch.Tensor, queries: Places, keys: Places, cache: DynamicCache, **inputs: torch.Tensor
    ) -> torch.Tensor:
        return self.model.model(
            input_ids=input_ids,
            attention_mask=packed_masks(queries, keys, self.model, self.family),
            past_key_values=cache,
            use_cache=True,
            **inputs,
        ).last_hidden_state

    def _logits(self, hidden: torch.Tensor, places: list[tuple[int, int]]) -> torch.Tensor:
        rows, columns = zip(*places, strict=True)
        return head_logits(self.model, hidden[list(rows), list(columns)], self.family)
