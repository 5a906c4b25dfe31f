"""Kept images are the tensors that the processor makes of a whole batch, and are decoded once."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from tests.conftest import noise, tiny_directory
from tests.other_models import WRITERS, directory_of
from vlm_core.data.batches import DecodedImages
from vlm_core.data.chat_model import Batch
from vlm_core.data.kept_images import KeptImages, _prepares_alone, keep_images
from vlm_core.models.chat import load_chat

SIZES = [(56, 56), (150, 60), (40, 130), (700, 300), (56, 90)]
BATCHES = [[[0], [1]], [[], [2, 0], [3]], [[4, 1, 2]], [[1], [0]], [[], []]]


@pytest.mark.parametrize("name", WRITERS)
def test_kept_images_are_those_of_the_whole_batch(name: str) -> None:
    chat = load_chat(directory_of(name))
    decoded: Counter[int] = Counter()

    def image(index: int) -> Image.Image:
        decoded[index] += 1
        return noise(SIZES[index])

    kept = keep_images(DecodedImages(image, chat), chat)
    assert isinstance(kept, KeptImages)
    for rows in BATCHES:
        expected = chat.image_inputs([[noise(SIZES[index]) for index in row] for row in rows])
        found = kept(rows)
        assert found.keys() == expected.keys()
        assert all(found[key].equal(value) for key, value in expected.items())
    shown = {tuple(row) for rows in BATCHES for row in rows}
    assert decoded == Counter(index for row in shown for index in row)


def test_the_oldest_images_make_room() -> None:
    made: list[int] = []

    def images(rows: Sequence[Sequence[int]]) -> Batch:
        made.extend(rows[0])
        return {"pixel_values": torch.full((1, 4), float(rows[0][0]))}

    kept = KeptImages(images, most_bytes=32)  # two rows of 16 bytes
    for index in (0, 1, 0, 2, 0, 1):
        assert kept([[index]])["pixel_values"].eq(index).all()
    assert made == [0, 1, 2, 1]
    assert kept.bytes == 32
    too_small = KeptImages(images, most_bytes=1)
    assert too_small([[7], [7]])["pixel_values"].tolist() == [[7.0] * 4] * 2
    assert too_small.kept == {}


def test_a_processor_that_looks_at_the_whole_batch_is_left_alone() -> None:
    """Some processors resize all images of a batch to the largest one."""
    chat: Any = load_chat(directory_of("llava"))
    chat.image_inputs = lambda images: {"pixel_values": torch.full((len(images), 1), float(len(images)))}
    assert not _prepares_alone(chat)
    images = DecodedImages(lambda index: noise((56, 56)), chat)
    assert keep_images(images, chat) is images


def test_a_family_that_packs_keeps_its_rows_of_many_images() -> None:
    chat = load_chat(tiny_directory("gemma3"))
    images = DecodedImages(lambda index: noise((56, 56)), chat)
    assert keep_images(images, chat) is images
