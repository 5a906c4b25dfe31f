"""Prompts to answer, in batches in which the questions about an image share its prefix."""

import math
from collections.abc import Sequence

import numpy as np

from vlm_core.data.chat_model import ChatModel
from vlm_core.data.packing import Group, group_examples, group_of
from vlm_core.data.token_cache import TokenizedExample, group_key, last_answer, shared_prefix


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

    def batches(self, batch_size: int) -> list[list[Group]]:
        """Returns groups of prompts that share a prefix, in batches of up to `batch_size` prompts.

        Longest first: an OOM shows in the first batch. No group has more than `batch_size` prompts.
        """
        groups = []
        for group in group_examples(range(len(self.prompts)), self):
            starts = range(0, len(group.members), batch_size)
            groups += [group_of(group.members[start : start + batch_size], self) for start in starts]
        batches: list[list[Group]] = []
        room = 0
        for group in sorted(groups, key=lambda group: (-group.tokens, group.members)):
            if len(group.members) > room:
                batches.append([])
                room = batch_size
            batches[-1].append(group)
            room -= len(group.members)
        return batches
