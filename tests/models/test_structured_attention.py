"""Structured attention over packed rows equals attention with their dense masks, and falls back to these."""

from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vlm_core.models import structured_attention as module_under_test
from vlm_core.models.attention import OTHER_MASKS, LayerRule, Places, dense_mask
from vlm_core.models.structured_attention import STRUCTURED, Structure, structured_attention

CAUSAL, BOTH_WAYS = LayerRule(None, False), LayerRule(None, True)


def places_of(rows: list[list[list[str]]]) -> Places:
    """Returns the places of packed rows; a group is its prefix and its branches, `i` and `j` are tokens of images."""
    columns: list[list[tuple[int, int, int, int]]] = []
    for row in rows:
        tokens = []
        images = dict.fromkeys("ij", 0)
        for group, (prefix, *branches) in enumerate(row, start=1):
            numbers = {name: max(images.values()) + 1 + at for at, name in enumerate("ij")}
            for branch, text in enumerate([prefix, *branches]):
                start = len(prefix) if branch else 0
                tokens += [(start + at, group, branch, numbers.get(letter, 0)) for at, letter in enumerate(text)]
            images = numbers
        columns.append(tokens)
    longest = max(map(len, columns))
    table = torch.tensor([tokens + [(0, 0, 0, 0)] * (longest - len(tokens)) for tokens in columns])
    return Places(*table.permute(2, 0, 1))


PACKED = {  # rows of groups
    "one group": [[["tiiit", "ab", "abc", "a"]]],
    "two groups in a row": [[["tiit", "ab", "abc"], ["tijjt", "abcd", "a"]]],
    "padding": [[["tiit", "ab", "abc"]], [["t", "ab"]]],
    "alone, with its image in the branch": [[["", "tiitab"], ["tiit", "ab", "abc"]]],
    "alone, with two images": [[["", "tiiajjab"]]],
    "one branch": [[["tiit", "abcd"]]],
    "text only": [[["", "abc"], ["", "ab"]], [["ab", "c", "de"]]],
    "no prefix": [[["", "ab", "cd"]]],
}


def inputs(places: Places, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    rows, length = places.position_ids.shape
    generator = torch.manual_seed(0)
    # As a model makes them: transposed views, with two query heads for each key head.
    made = [torch.randn(rows, length, heads, 16, generator=generator).to(dtype) for heads in (4, 2, 2)]
    return [x.transpose(1, 2).detach().requires_grad_() for x in made]


def outputs_and_gradients(attention: Any, tensors: list[torch.Tensor], mask: Any, places: Places) -> list[torch.Tensor]:
    layer = torch.nn.Module()
    layer.num_key_value_groups = 2
    output = attention(layer, *tensors, mask, dropout=0.0, scaling=0.3)[0]
    real = places.group_ids > 0
    weights = torch.arange(output[real].numel()).view_as(output[real]) / output[real].numel()
    gradients = torch.autograd.grad((output[real].float() * weights).sum(), tensors)
    return [output[real].detach(), *gradients]


@pytest.mark.parametrize(
    "rule",
    [CAUSAL, BOTH_WAYS, LayerRule(9, True), LayerRule(5, True)],
    ids=["causal", "both ways", "long window", "window that ends in a prefix"],
)
@pytest.mark.parametrize("name", PACKED)
def test_it_equals_dense_masks(name: str, rule: LayerRule) -> None:
    places = places_of(PACKED[name])
    mask = OTHER_MASKS[STRUCTURED](places, places, rule)
    assert isinstance(mask, Structure)
    dense = dense_mask(places, places, rule)
    tensors = inputs(places)
    found = outputs_and_gradients(structured_attention, tensors, mask, places)
    expected = outputs_and_gradients(sdpa_attention_forward, tensors, dense, places)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_it_computes_in_the_dtype_of_its_inputs() -> None:
    places = places_of(PACKED["two groups in a row"])
    mask, tensors = OTHER_MASKS[STRUCTURED](places, places, BOTH_WAYS), inputs(places, torch.bfloat16)
    found = outputs_and_gradients(structured_attention, tensors, mask, places)
    expected = outputs_and_gradients(sdpa_attention_forward, tensors, dense_mask(places, places, BOTH_WAYS), places)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - other).norm() < 2e-2 * other.norm()


def test_padding_attends_to_itself() -> None:
    """Gemma 3n divides by the standard deviation of what it makes of the output: it must not be zero."""
    places = places_of(PACKED["padding"])
    query, key, value = inputs(places)
    mask = OTHER_MASKS[STRUCTURED](places, places, BOTH_WAYS)
    output = structured_attention(None, query, key, value, mask)[0]
    padding = places.group_ids == 0
    expected = value.transpose(1, 2).repeat_interleave(2, dim=2)[padding]
    torch.testing.assert_close(output[padding], expected)


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        ([["tiiit", "ab", "abc"]], LayerRule(2, True)),  # the last token sees one other of its branch
        ([["tiit", "ab", "abcde"]], LayerRule(5, True)),  # the last token sees nothing of its prefix
        ([["tiit", "ab", "ajjb"]], BOTH_WAYS),  # an image in one of several branches
    ],
    ids=["a window that ends in a branch", "a branch as long as the window", "a later image"],
)
def test_other_patterns_get_a_dense_mask(rows: list[list[list[str]]], rule: LayerRule) -> None:
    places = places_of([rows])
    mask = OTHER_MASKS[STRUCTURED](places, places, rule)
    assert torch.equal(mask, dense_mask(places, places, rule))
    assert isinstance(OTHER_MASKS[STRUCTURED](places, places, LayerRule(99, False)), Structure)


def test_new_tokens_against_cached_keys_get_a_dense_mask() -> None:
    places = places_of(PACKED["one group"])
    last = Places(*(ids[:, -1:] for ids in places))
    assert torch.equal(OTHER_MASKS[STRUCTURED](last, places, CAUSAL), dense_mask(last, places, CAUSAL))


def test_dropout_needs_the_dense_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    places = places_of(PACKED["one group"])
    seen: list[Any] = []
    monkeypatch.setattr(module_under_test, "sdpa_attention_forward", lambda *arguments, **_: seen.append(arguments))
    mask = OTHER_MASKS[STRUCTURED](places, places, BOTH_WAYS)
    structured_attention(None, *inputs(places), mask, dropout=0.5, scaling=0.3)
    assert torch.equal(seen[0][4], dense_mask(places, places, BOTH_WAYS))
    assert seen[0][5:] == (0.5, 0.3)
