"""How several datasets are drawn: the stated shares in every part of an epoch, for any ranks, from any step on."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import small_config
from vlm_core.data.batches import PackedBatches, PlainBatches
from vlm_core.data.loader import plan_epoch
from vlm_core.data.mixture import Mixture, mixture_of, shares_of
from vlm_core.data.packing import group_examples

SIZES = (300, 90, 10)


def mixture(shares: tuple[float, ...], sizes: tuple[int, ...] = SIZES) -> Mixture:
    """Returns a mixture whose datasets lie in the cache one after the other."""
    return Mixture(("a", "b", "c")[: len(sizes)], np.repeat(np.arange(len(sizes)), sizes), shares)


def order(mixed: Mixture, epoch: int, groups: np.ndarray | None = None, seed: int = 1, batch: int = 16) -> list[int]:
    steps = plan_epoch(sum(mixed.sizes), batch, seed, epoch, groups, mixed)
    return [example for step in steps for example in step]


def images(sizes: tuple[int, ...] = SIZES, questions: int = 10) -> np.ndarray:
    """Returns the group of each example: ten questions an image; every third image of `b` is also one of `a`."""
    groups = np.arange(sum(sizes)) // questions
    shared = (groups >= 30) & (groups < 39) & (groups % 3 == 0)
    return np.where(shared, groups - 30, groups)


@pytest.mark.parametrize("groups", [None, images()], ids=["alone", "by image"])
@pytest.mark.parametrize("shares", [(0.6, 0.3, 0.1), (0.2, 0.2, 0.6), (0.9, 0.05, 0.05)])
def test_every_part_of_an_epoch_has_the_stated_shares(shares: tuple[float, ...], groups: np.ndarray | None) -> None:
    mixed = mixture(shares)
    for epoch in range(3):
        drawn = mixed.of_example[order(mixed, epoch, groups)]
        assert [*np.bincount(drawn, minlength=3) / 400] == pytest.approx(shares)
        most = 1 if groups is None else 10  # questions of an image
        for start in range(0, 400, 50):
            for number, share in enumerate(shares):
                assert abs((drawn[start : start + 50] == number).sum() - share * 50) <= most


def test_passes_follow_each_other_across_epochs() -> None:
    mixed, groups = mixture((0.2, 0.2, 0.6)), images()
    drawn = [example for epoch in range(9) for example in order(mixed, epoch, groups)]
    for number, size in enumerate(SIZES):
        own = [example for example in drawn if mixed.of_example[example] == number]
        passes = [own[start : start + size] for start in range(0, len(own) - size + 1, size)]
        assert len(passes) == len(own) // size >= 2
        assert all(len(set(one)) == size for one in passes)
        assert size == 10 or passes[0] != passes[1]


def test_without_weights_every_question_is_drawn_once_and_the_order_differs_by_seed_and_epoch() -> None:
    sizes = tuple(size / sum(SIZES) for size in SIZES)
    mixed = mixture(sizes)
    first, second, other = order(mixed, 0), order(mixed, 1), order(mixed, 0, seed=2)
    assert sorted(first) == sorted(second) == list(range(400))
    assert first != second
    assert first != other
    assert first == order(mixed, 0)


def test_questions_about_an_image_follow_each_other() -> None:
    mixed, groups = mixture((0.6, 0.3, 0.1)), images()
    drawn = order(mixed, 0, groups)
    runs = 1 + sum((groups[a], mixed.of_example[a]) != (groups[b], mixed.of_example[b]) for a, b in pairwise(drawn))
    assert runs <= 40 + 3  # an epoch may end within an image of each dataset


def test_a_dataset_keeps_its_order_when_another_one_changes() -> None:
    """The permutation of a pass goes by the dataset's name and not by its place."""
    own = [i for i in order(mixture((0.5, 0.5), (40, 40)), 0) if i < 40]
    assert own[:10] == [i for i in order(mixture((0.25, 0.75), (40, 90)), 0) if i < 40][:10]


def test_even_a_tiny_share_is_drawn() -> None:
    assert mixture((0.9999, 0.00005, 0.00005)).drawn == [398, 1, 1]
    assert mixture((1 / 3, 1 / 3, 1 / 3)).drawn == [134, 133, 133]
    assert sorted(order(mixture((0.5, 0.5), (1, 1)), 0)) == [0, 1]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_ranks_reads_the_same_questions_in_a_step(packed: bool, world_size: int) -> None:
    mixed, groups = mixture((0.2, 0.2, 0.6)), images()

    class Tokens:
        lengths, prefixes = np.full(400, 30), np.full(400, 20)

        def __len__(self) -> int:
            return 400

    tokens = Tokens()
    tokens.groups = groups
    batches = PackedBatches(tokens, None, None, 200) if packed else PlainBatches(tokens, None, None, 4)
    steps = plan_epoch(400, 48, 1, 0, batches.groups, mixed)
    for step in steps:
        read: Counter[int] = Counter()
        for rank in range(world_size):
            for micro in batches.micro_batches(step, rank, world_size):
                members = [i for row in micro.rows for g in row for i in g.members] if packed else micro.examples
                read.update(members if micro.counted else [])
        assert read == Counter(step)  # a small dataset may have one question twice in a step


def test_questions_of_two_datasets_about_one_image_share_its_prefix() -> None:
    """Packing goes by the image, whatever the dataset of a question is."""
    groups = images()
    step = [0, 1, 300, 301]  # two questions of `a` and two of `b`, all about image 0
    tokens = SimpleNamespace(lengths=np.full(400, 30), prefixes=np.full(400, 20), groups=groups)
    (group,) = group_examples(step, tokens)
    assert (group.members, group.tokens) == ((0, 1, 300, 301), 20 + 4 * 10)


def config_of(**others: object) -> object:
    datasets = [
        {"path_or_dataset": "builtin:phantom", "name": "a"},
        {"path_or_dataset": "o/b"},
        {"path_or_dataset": "o/c"},
    ]
    for name, settings in others.items():
        datasets["abc".index(name)] |= settings
    return datasets


def test_shares_follow_from_weights_temperature_or_sizes() -> None:
    weighted = small_config(dataset=config_of(a={"weight": 6}, b={"weight": 3}, c={"weight": 1}))
    assert shares_of(weighted, SIZES) == (0.6, 0.3, 0.1)
    plain = small_config(dataset=config_of())
    assert shares_of(plain, SIZES) == pytest.approx((0.75, 0.225, 0.025))
    assert shares_of(small_config(dataset=config_of(), **{"mixture.temperature": 1}), SIZES) == shares_of(plain, SIZES)
    even = shares_of(small_config(dataset=config_of(), **{"mixture.temperature": 1e6}), SIZES)
    assert even == pytest.approx((1 / 3, 1 / 3, 1 / 3), rel=1e-4)
    half = shares_of(small_config(dataset=config_of(), **{"mixture.temperature": 2}), (400, 100, 25))
    assert half == pytest.approx((20 / 35, 10 / 35, 5 / 35))


def test_a_dataset_that_only_validates_is_not_drawn() -> None:
    of_example = np.array([0] * 30 + [2] * 10)
    mixed = mixture_of(small_config(dataset=config_of(b={"split": None})), of_example)
    assert (mixed.names, mixed.sizes, mixed.shares) == (("a", "c"), [30, 10], (0.75, 0.25))
    alone = small_config(dataset=config_of(b={"split": None}, c={"split": None}))
    assert mixture_of(alone, np.zeros(30, dtype=int)) is None
    assert mixture_of(small_config(), np.zeros(30, dtype=int)) is None
