"""The dataset that reads a cache of conversations."""

from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_core.cache import read_manifest
from vlm_core.data.arrow_cache import open_rows, read_batches
from vlm_core.data.conversation import images_of, map_images, shown_images
from vlm_core.data.images import decode_image
from vlm_core.data.splits import SPLITS


class ConversationDataset:
    """A split of a conversation cache, memory-mapped, with its images decoded on access.

    `dataset[i]` returns `{"example_id", "case_id", "mode", "conversation"}`, the conversation in the form of the guide:
    turns of `{"role", "content"}`, where a content part is `{"type": "text", "text"}` or `{"type": "image", "image"}`
    with an 8-bit RGB PIL image. The rows of `dataset.conversations` hold an image's index instead.
    """

    def __init__(self, directory: Path, split: str) -> None:
        assert split in SPLITS
        self.manifest = read_manifest(directory)
        self.conversations = open_rows(directory / f"{split}.arrow")
        self.images = open_rows(directory / "images.arrow")

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.with_images(self.conversations[index])

    def with_images(self, example: dict[str, Any]) -> dict[str, Any]:
        """Returns a row of `conversations` with its image indices replaced by decoded images."""

        def decoded(index: int) -> Image.Image:
            return decode_image(self.images[index]["encoded"])

        return {**example, "conversation": map_images(example["conversation"], decoded)}

    def shown_images(self) -> set[int]:
        """Returns the indices of all images that the split shows."""
        return shown_images(self.conversations.data["conversation"])

    def encoded_image(self, sha256: str) -> bytes:
        """Returns the encoded image with a hash of `image_hashes`."""
        return self.images[self._index_of_image[sha256]]["encoded"]

    @cached_property
    def _index_of_image(self) -> dict[str, int]:
        return {digest: index for index, digest in enumerate(self.images["sha256"])}

    def image_hashes(self, example: dict[str, Any]) -> list[str]:
        """Returns the hash of the pixels of each image of a row of `conversations`."""
        return [self.images[index]["sha256"] for index in image_indices(example)]


def image_sizes(conversations: Path) -> list[tuple[int, int]]:
    """Returns (width, height) in pixels of every image of a cache, upright."""
    return [
        size
        for batch in read_batches(conversations / "images.arrow")
        for size in zip(batch["width"].to_pylist(), batch["height"].to_pylist(), strict=True)
    ]


def image_indices(example: dict[str, Any]) -> list[int]:
    """Returns the images of a row of the conversation cache, in their order, as indices into its table of images."""
    return images_of(example["conversation"])
