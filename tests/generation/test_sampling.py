"""Sampled tokens follow the model's probabilities, and depend only on the seed and the prompt."""

from collections import Counter

import pytest
import torch

from vlm_core.generation.sampling import GenerationSettings, chooser, most_likely, prompt_key

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


def draw(settings: GenerationSettings, keys: list[str], count: int) -> list[list[int]]:
    choose = chooser(settings, keys)
    return [choose(LOGITS.expand(len(keys), -1), range(len(keys))) for _ in range(count)]


def test_samples_follow_the_probabilities() -> None:
    tokens = [token for step in draw(GenerationSettings(1, temperature=2.0), ["a", "b"], 4000) for token in step]
    expected = (LOGITS / 2).softmax(-1)
    counts = Counter(tokens)
    assert [counts[i] / len(tokens) for i in range(4)] == pytest.approx(expected.tolist(), abs=0.02)


def test_the_nucleus_excludes_unlikely_tokens() -> None:
    tokens = {token for step in draw(GenerationSettings(1, 1.0, top_p=0.8), ["a"], 500) for token in step}
    assert tokens == {0, 1}  # together 0.88, the first one 0.64


def test_a_prompt_samples_the_same_in_any_batch() -> None:
    settings = GenerationSettings(1, 1.0, seed=3)
    alone = [step[0] for step in draw(settings, ["b"], 50)]
    assert [step[1] for step in draw(settings, ["a", "b", "c"], 50)] == alone
    assert [step[0] for step in draw(settings, ["a"], 50)] != alone
    assert [step[0] for step in draw(GenerationSettings(1, 1.0, seed=4), ["b"], 50)] != alone


def test_temperature_zero_is_greedy_and_has_no_seed() -> None:
    assert chooser(GenerationSettings(1), ["a"]) is most_likely
    assert GenerationSettings(5, seed=1).effective == GenerationSettings(5, seed=2).effective
    assert GenerationSettings(5, 0.5, seed=1).effective != GenerationSettings(5, 0.5, seed=2).effective


def test_different_questions_have_different_keys() -> None:
    assert prompt_key([1, 2], ["x"]) == prompt_key([1, 2], ["x"])
    assert (
        len({prompt_key([1, 2], ["x"]), prompt_key([1, 2], ["y"]), prompt_key([1, 2], []), prompt_key([1], ["x"])}) == 4
    )
