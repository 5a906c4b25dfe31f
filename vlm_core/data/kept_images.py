"""The images of examples as the processor prepared them, kept in memory for the next question about them.

A processor gets the images of an example together, because the tokens and parts of an image may depend on the images
beside it. So the unit here is an example's images, not an image.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from PIL import Image
from torch.nn.functional import pad

from vlm_core.data.batches import DecodedImages, ImageInputs
from vlm_core.data.chat_model import Batch, ChatModel
from vlm_core.data.tokenization import TRIED

MOST_BYTES = 2**30  # of all processes of a rank together


def keep_images(images: DecodedImages, chat: ChatModel, processes: int = 1) -> ImageInputs:
    """Returns inputs that show the same tensors as `images`, and decode and prepare each example's images once.

    `processes` share the memory; each keeps its own images. Chat models that pack, and processors whose batches are not
    those of single examples one after the other, get `images` itself.
    """
    if chat.packs or not _prepares_alone(chat):
        return images
    return KeptImages(images, MOST_BYTES // max(1, processes))


class KeptImages:
    """Shows the images of each example; those that were not shown for longest are dropped if `most_bytes` are full."""

    def __init__(self, images: ImageInputs, most_bytes: int) -> None:
        self.images, self.most_bytes = images, most_bytes
        self.kept: OrderedDict[tuple[int, ...], Batch] = OrderedDict()
        self.bytes = 0

    def __call__(self, rows: Sequence[Sequence[int]]) -> Batch:
        shown = [self._of_row(tuple(row)) for row in rows if row]
        return join_rows(shown) if shown else {}

    def _of_row(self, row: tuple[int, ...]) -> Batch:
        if row not in self.kept:
            self.kept[row] = self.images([row])
            self.bytes += _size(self.kept[row])
        self.kept.move_to_end(row)
        batch = self.kept[row]
        while self.bytes > self.most_bytes:
            self.bytes -= _size(self.kept.popitem(last=False)[1])
        return batch


def join_rows(rows: Sequence[Batch]) -> Batch:
    """Returns the tensors of several rows as those of one batch; shorter dimensions are filled with zeros."""
    return {key: _joined([row[key] for row in rows]) for key in rows[0]}


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    sizes = [max(dimension) for dimension in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        missing = [size - own for size, own in zip(sizes, tensor.shape[1:], strict=True)]
        return pad(tensor, [side for more in reversed(missing) for side in (0, more)])

    return torch.cat([filled(tensor) for tensor in tensors])


def _prepares_alone(chat: ChatModel) -> bool:
    """Returns whether a processor's batch is that of its single rows one after the other, tried on some images."""
    rows = [[Image.new("RGB", size, (90, 150, 210)) for size in sizes] for sizes in TRIED if sizes]
    together, alone = chat.image_inputs(rows), [chat.image_inputs([row]) for row in rows]
    if any(row.keys() != together.keys() for row in alone):
        return False
    if any(row[key].ndim != together[key].ndim or not row[key].ndim for row in alone for key in together):
        return False
    joined = join_rows(alone)
    return all(joined[key].equal(value) for key, value in together.items())


def _size(batch: Batch) -> int:
    return sum(tensor.nbytes for tensor in batch.values())
