"""Chooses the next token: the most likely one, or a seeded draw that does not depend on the rest of the batch."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

# (logits (n, vocabulary), numbers of the n prompts within their batch) -> n token ids
Choose = Callable[[torch.Tensor, Sequence[int]], list[int]]


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated; `temperature` 0 is greedy, and then `top_p` and `seed` have no effect."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    @property
    def effective(self) -> dict[str, Any]:
        """The settings that an answer depends on."""
        return vars(self) if self.temperature else {"max_new_tokens": self.max_new_tokens, "temperature": 0.0}


@dataclass(frozen=True)
class Decoding:
    """How the answers of one batch are decoded."""

    stops: set[int]  # ids that end an answer
    max_new_tokens: int
    choose: Choose


def prompt_key(input_ids: Sequence[int], image_hashes: Sequence[str]) -> str:
    """Returns a hash of the prompt: its token ids and its images."""
    return hashlib.sha256(repr((list(input_ids), list(image_hashes))).encode()).hexdigest()


def most_likely(logits: torch.Tensor, numbers: Sequence[int]) -> list[int]:
    """Greedy decoding."""
    return logits.argmax(-1).tolist()


def chooser(settings: GenerationSettings, keys: Sequence[str]) -> Choose:
    """Returns the function that chooses tokens for a batch; `keys` are the `prompt_key`s of its prompts, in order."""
    return _Sampler(settings, keys) if settings.temperature else most_likely


class Recorded:
    """Chooses tokens as `choose` does, and adds up the natural logarithms of their probabilities by prompt.

    The probabilities are the model's, at temperature 1. The token that ends an answer counts; what follows it does not.
    """

    def __init__(self, choose: Choose, stops: set[int], prompts: int) -> None:
        self.choose, self.stops = choose, stops
        self.logprobs, self.ended = [0.0] * prompts, [False] * prompts

    def __call__(self, logits: torch.Tensor, numbers: Sequence[int]) -> list[int]:
        tokens = self.choose(logits, numbers)
        chosen = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None]).squeeze(1)
        logprobs = chosen.float() - logits.float().logsumexp(-1)
        for number, token, logprob in zip(numbers, tokens, logprobs.tolist(), strict=True):
            if not self.ended[number]:
                self.logprobs[number] += logprob
                self.ended[number] = token in self.stops
        return tokens


class _Sampler:
    """Nucleus sampling; each prompt has a separate generator, seeded by the setting and the prompt's key."""

    def __init__(self, settings: GenerationSettings, keys: Sequence[str]) -> None:
        self.warp: Any = LogitsProcessorList(
            [TemperatureLogitsWarper(settings.temperature), TopPLogitsWarper(settings.top_p)]
        )
        seeds = [hashlib.sha256(f"{settings.seed} {key}".encode()).digest()[:8] for key in keys]
        self.generators = [torch.Generator().manual_seed(int.from_bytes(seed) >> 1) for seed in seeds]

    def __call__(self, logits: torch.Tensor, numbers: Sequence[int]) -> list[int]:
        warped: Any = self.warp(None, logits.float())  # both warpers ignore the ids
        cumulative = warped.softmax(-1).cumsum(-1)
        draws = torch.stack([torch.rand(1, generator=self.generators[number]) for number in numbers])
        # Scale by the last cumsum, which rounding keeps from being exactly 1: no draw overshoots the last token.
        at = torch.searchsorted(cumulative, draws.to(cumulative.device) * cumulative[:, -1:], right=True)
        return at.squeeze(1).clamp(max=logits.shape[-1] - 1).tolist()
