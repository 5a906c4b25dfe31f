"""Prompts to answer, in batches in which the questions about an image share its prefix."""

import math
from collections.abc import Sequence

import numpy as np

from vlm_core.data.chat_model import ChatModel
from vlm_core.data.packing import Group, group_examples, group_of
from vlm_core.data.token_cache import TokenizedExample, group_key, last_answer, shared_prefix

KEYS_AT_ONCE = 2**15  # 4.5 GB of keys and values of a Gemma 3 4B in bfloat16


def prompt_of(example: TokenizedExample) -> TokenizedExample:
    """Returns an example up to its last answer; its tokens are those of the processor's prompt for generation."""
    end = last_answer(example.supervised)
    return TokenizedExample(example.input_ids[:end], [False] * end, example.images, example.grids)


class Prompts:
    """Prompts with the layout that packing needs; see `vlm_core.data.packing.Layout`."""

    def __init__(self, prompts: Sequence[TokenizedExample], chat: ChatModel) -> None:
        self.prompts, self.chat = list(prompts), chat
        self.lengths = np.array([len(prompt.input_ids) for prompt in self.prompts])
        self.prefixes = np.array([shared_prefix(prompt, chat) for prompt in self.prompts])
        keys = [
            group_key(prompt.images, prompt.input_ids, int(prefix), index)
            for index, (prompt, prefix) in enumerate(zip(self.prompts, self.prefixes, strict=True))
        ]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self.groups = np.array([numbers[key] for key in keys])

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> "Prompts":
        """Returns the prompts at `indices`."""
        return Prompts([self.prompts[i] for i in indices], self.chat)

    def share(self, batch_size: int, rank: int, world_size: int) -> list[int]:
        """Returns the indices of one rank's share: every `world_size`-th batch, so that all get long and short ones."""
        fair = math.ceil(len(self.prompts) / world_size)
        mine = self.batches(min(batch_size, fair))[rank::world_size]
        return sorted(i for groups in mine for group in groups for i in group.members)

    def batches(self, batch_size: int, keys: int | None = KEYS_AT_ONCE) -> list[list[Group]]:
        """Returns groups of prompts that share a prefix, in batches of up to `batch_size` prompts.

        The rows of a batch, padded to its longest group, have at most `keys` tokens, unless it is a single row.
        Longest first: an OOM shows in the first batch. A group is divided if it is larger than a batch, or if its part
        fills a quarter of one: each part computes the prefix again.
        """
        waiting = sorted(group_examples(range(len(self.prompts)), self), key=_longest_first, reverse=True)
        batches: list[list[Group]] = []
        room = rows = 0
        while waiting:
            group = waiting.pop()
            if min(room, rows) == 0 or (len(group.members) > room and 4 * room < batch_size):
                batches.append([])
                room, rows = batch_size, len(self) if keys is None else max(1, keys // group.tokens)
            if len(group.members) > room:
                waiting.append(group_of(group.members[room:], self))
                group = group_of(group.members[:room], self)
            batches[-1].append(group)
            room, rows = room - len(group.members), rows - 1
        return batches


def _longest_first(group: Group) -> tuple[int, tuple[int, ...]]:
    return -group.tokens, group.members
