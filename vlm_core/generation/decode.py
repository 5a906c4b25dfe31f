"""Generates answers to all questions about an image from one shared prefix.

A row holds an image's prefix and its questions as branches, as in training (`vlm_core.data.packing`). One forward pass
fills the key-value cache. Each further step adds a token to every branch that has not ended. The masks depend on
position and branch: a branch attends to the same tokens as in a separate row. So the answers equal those of
`model.generate` for one question at a time.

If a branch also holds the reference, the first pass gives the reference's likelihood too. Its keys are hidden then.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from vlm_core.data.batches import ImageInputs, shown_images
from vlm_core.data.chat_model import Batch, ChatModel
from vlm_core.data.chat_template import special_tokens
from vlm_core.data.collate import IGNORE_INDEX
from vlm_core.data.conversation import Conversation
from vlm_core.data.packing import pack
from vlm_core.data.thoughts import prompt_mark, split_thought
from vlm_core.data.token_cache import TokenizedExample
from vlm_core.generation.chunks import few_rows_at_once, joined
from vlm_core.generation.likelihood import Likelihood, branch_likelihoods
from vlm_core.generation.sampling import Decoding
from vlm_core.models.attention import Places, packed_masks
from vlm_core.models.forward import on_device, packed_inputs
from vlm_core.models.last_layer import only_at
from vlm_core.models.load import unwrapped


@dataclass(frozen=True)
class Answer:
    """A generated answer, without the model's thought, special tokens and surrounding space."""

    text: str
    tokens: int  # generated, the end of turn included
    truncated: bool  # cut at max_new_tokens
    thought: str = ""  # what the model wrote for itself before the answer, with its marks
    # Natural logarithm of the probability of the generated tokens; its last digits depend on the batch.
    logprob: float = field(default=0.0, compare=False)


@dataclass
class Branch:
    """The state of one prompt: its number and place in the batch, its last token's index, the tokens generated."""

    number: int
    row: int
    group: int
    branch: int
    end: int
    stop: int  # index after the branch's last token; a reference lies between `end` and `stop`
    position: int
    shift: int  # offset from token count to M-RoPE position; 0 unless images have grids
    generated: list[int] = field(default_factory=list)


def without_answer(conversation: Conversation) -> Conversation:
    """Returns a conversation without its final assistant turn, if it ends with one."""
    return conversation[:-1] if conversation[-1]["role"] == "assistant" else conversation


def stop_tokens(chat: ChatModel) -> set[int]:
    """Returns the ids that end an answer."""
    tokenizer = chat.processor.tokenizer
    named = [token for token in (chat.family.end_of_turn.strip(), *chat.family.also_stop) if token]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return {*own, *tokenizer.convert_tokens_to_ids(named)}


def to_answer(generated: list[int], chat: ChatModel, logprob: float = 0.0) -> Answer:
    """Decodes generated ids, which have the log-probability `logprob`, to an answer."""
    ended = bool(generated) and generated[-1] in stop_tokens(chat)
    written, tokenizer = generated[:-1] if ended else generated, chat.processor.tokenizer
    # Some models' marks of a thought are special tokens, others' are not.
    thought, text = split_thought(tokenizer.decode(written), prompt_mark(chat.processor))
    text = special_tokens(tokenizer).sub("", text) if thought else tokenizer.decode(written, skip_special_tokens=True)
    return Answer(text.strip(), len(generated), truncated=not ended, thought=thought.strip(), logprob=logprob)


@torch.no_grad()
def generate_ids(
    model: Any,
    chat: ChatModel,
    rows: Sequence[Sequence[TokenizedExample]],
    images: ImageInputs,
    decoding: Decoding,
) -> list[list[int]]:
    """Returns the generated ids of each prompt, row by row, with the stop token that ended it.

    The prompts of a row share a prefix with the same images, or the row has a single prompt.
    """
    return _Decoder(model, chat, rows, images).generate(decoding)


@torch.no_grad()
def answer_and_score(
    model: Any,
    chat: ChatModel,
    rows: Sequence[Sequence[TokenizedExample]],
    images: ImageInputs,
    decoding: Decoding,
    asked: Sequence[int],
) -> tuple[list[list[int]], list[Likelihood]]:
    """Returns the generated ids of the examples numbered `asked`, and the likelihood of each example's reference.

    The rows are those of `generate_ids` with the references, which are supervised. One forward pass gives both the
    likelihoods and the first tokens.
    """
    decoder = _Decoder(model, chat, rows, images)
    scores = decoder.scores()
    return decoder.generate(decoding, asked), scores


def _branches(batch: Batch) -> list[Branch]:
    """Returns the branches of a packed batch, row by row. A prompt ends before the branch's first target."""
    found: dict[tuple[int, int, int], Branch] = {}
    for row, columns in enumerate(
        zip(*(batch[name].tolist() for name in ("group_ids", "branch_ids", "position_ids", "targets")), strict=True)
    ):
        is_prompt = True
        for column, (group, number, counted, target) in enumerate(zip(*columns, strict=True)):
            key = (row, group, number)
            if number and key not in found:
                is_prompt = True
                found[key] = Branch(len(found), row, group, number, column, column, counted, 0)
            if number:
                found[key].stop = column + 1
            if number and is_prompt:
                found[key].end, found[key].position = column, counted
                is_prompt = target == IGNORE_INDEX
    if "grid_position_ids" in batch:
        for branch in found.values():  # The offset is the same for all text after the images.
            branch.shift = int(batch["grid_position_ids"][0, branch.row, branch.end]) - branch.position
    return [*found.values()]


class _Decoder:
    """The model with its key-value cache, and the place of each cached key. It starts with a pass over the prompts."""

    def __init__(
        self, model: Any, chat: ChatModel, rows: Sequence[Sequence[TokenizedExample]], images: ImageInputs
    ) -> None:
        self.model, self.chat, packed = unwrapped(model), chat, [[row] for row in rows]
        self.batch = on_device(pack(packed, chat) | images([shown_images(packed)]), self.model)
        self.branches = _branches(self.batch)
        self._prefill()

    def _prefill(self) -> None:
        """Fills the cache, and keeps the hidden states at the ends of the prompts and wherever there is a target."""
        rows, columns = zip(*((branch.row, branch.end) for branch in self.branches), strict=True)
        self.batch["read"] = self.batch["targets"] != IGNORE_INDEX
        self.batch["read"][list(rows), list(columns)] = True
        hidden, caches = [], []
        for part in few_rows_at_once(self.batch, self.chat.family):
            # No config: every layer keeps all keys. A sliding cache would drop keys that other branches still need.
            caches.append(DynamicCache())
            places = Places.of(part)
            with only_at(part["read"], self.model):
                inputs = packed_inputs(part, self.model, self.chat.family)
                hidden.append(self._forward(inputs, places, places, caches[-1])[part["read"]])
        self.hidden, self.cache = torch.cat(hidden), joined(caches)
        self.keys = Places(*(ids.clone() for ids in Places.of(self.batch)))  # changed as branches grow and end

    def scores(self) -> list[Likelihood]:
        """Returns the likelihood of each branch's targets."""
        of_targets = (self.batch["targets"] != IGNORE_INDEX)[self.batch["read"]]
        return branch_likelihoods(self.model, self.chat, self.hidden[of_targets], self.batch)

    def generate(self, decoding: Decoding, asked: Sequence[int] | None = None) -> list[list[int]]:
        """Returns the generated ids of the branches numbered `asked`, by default of all."""
        prompts = branches = self.branches if asked is None else [self.branches[number] for number in asked]
        logits = self._first_logits(branches)
        numbers = {branch.number: number for number, branch in enumerate(prompts)}  # those that `choose` knows
        for length in range(1, decoding.max_new_tokens + 1):
            tokens = decoding.choose(logits, [numbers[branch.number] for branch in branches])
            for branch, token in zip(branches, tokens, strict=True):
                branch.generated.append(token)
            branches = [branch for branch in branches if branch.generated[-1] not in decoding.stops]
            if not branches or length == decoding.max_new_tokens:
                break
            logits = self.step(branches)
        return [branch.generated for branch in prompts]

    def _first_logits(self, branches: list[Branch]) -> torch.Tensor:
        """Returns the logits after each prompt, (branches, vocabulary), and hides the references after the prompts."""
        number_of = self.batch["read"].flatten().cumsum(0).view_as(self.batch["read"]) - 1
        for branch in self.branches:
            self.keys.group_ids[branch.row, branch.end + 1 : branch.stop] = 0  # no token attends to group 0
        at = [int(number_of[branch.row, branch.end]) for branch in branches]
        return self.chat.logits(self.model, self.hidden[at])

    def _drop_rows(self, branches: list[Branch]) -> None:
        """Removes the rows without a live branch from the cache."""
        live = sorted({branch.row for branch in branches})
        if len(live) == len(self.keys.group_ids):
            return
        index = torch.tensor(live, device=self.model.device)
        self.cache.batch_select_indices(index)
        self.keys = Places(*(ids[index] for ids in self.keys))
        for branch in branches:
            branch.row = live.index(branch.row)

    def step(self, branches: list[Branch]) -> torch.Tensor:
        """Feeds the last token of each of `branches`; returns the logits after it, (branches, vocabulary)."""
        self._drop_rows(branches)
        columns: dict[int, int] = {}
        places = []
        for branch in branches:
            branch.position += 1
            places.append((branch.row, columns.setdefault(branch.row, 0)))
            columns[branch.row] += 1
        # Rows with fewer branches are padded with tokens of group 0, which no token attends to.
        queries = torch.zeros(6, len(self.keys.group_ids), max(columns.values()), dtype=torch.long)
        rows, order = zip(*places, strict=True)
        values = [
            [branch.generated[-1], branch.position + branch.shift, branch.position, branch.group, branch.branch, 0]
            for branch in branches
        ]
        queries[:, list(rows), list(order)] = torch.tensor(values).T
        input_ids, position_ids, *new = queries.to(self.model.device)
        inputs = {"input_ids": input_ids, "position_ids": position_ids}  # M-RoPE accepts one position number for text.
        self.keys = self.keys.followed_by(Places(*new))
        hidden = self._forward(inputs, Places(*new), self.keys, self.cache)
        return self.chat.logits(self.model, hidden[list(rows), list(order)])

    def _forward(self, inputs: Batch, queries: Places, keys: Places, cache: DynamicCache) -> torch.Tensor:
        masks = packed_masks(queries, keys, self.model, self.chat.family)
        output = self.model.model(**inputs, attention_mask=masks, past_key_values=cache, use_cache=True)
        return output.last_hidden_state
