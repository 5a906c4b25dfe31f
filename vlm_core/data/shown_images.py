"""Turns the tensors that an image processor makes back into pictures, to show what a model sees."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image

CHANNELS = 3


def shown_images(inputs: Mapping[str, torch.Tensor], image_processor: Any) -> list[Image.Image]:
    """Returns the pictures in a processor's `inputs`, undoing its normalisation.

    `pixel_values` may be (..., 3, H, W), one picture for each image or tile; or flattened patches beside
    `image_grid_thw` or `image_position_ids`, as the processors of Qwen and Gemma 4 make them. Raises ValueError for
    other shapes.
    """
    pixels = inputs.get("pixel_values")
    if pixels is None:
        return []
    pixels = pixels.float()
    if "image_grid_thw" in inputs and pixels.dim() == 2:
        arrays = _joined_patches(pixels, inputs["image_grid_thw"].tolist(), image_processor)
    elif "image_position_ids" in inputs:
        arrays = [_placed_patches(*image) for image in zip(pixels, inputs["image_position_ids"], strict=True)]
    elif pixels.dim() >= 4 and pixels.shape[-3] == CHANNELS:
        arrays = list(pixels.reshape(-1, *pixels.shape[-3:]))
    else:
        raise ValueError(f"pixel_values of shape {tuple(pixels.shape)} are not pictures")
    return [_picture(array, image_processor) for array in arrays if array.numel()]


def _joined_patches(pixels: torch.Tensor, grids: list[list[int]], image_processor: Any) -> list[torch.Tensor]:
    """Returns images (3, H, W) from patches (N, 3 * frames * P * P) that are ordered by merged blocks."""
    size, merge, found, at = image_processor.patch_size, image_processor.merge_size, [], 0
    for frames, down, across in grids:
        patches = pixels[at : at + frames * down * across]
        at += len(patches)
        blocks = patches.view(frames, down // merge, across // merge, merge, merge, CHANNELS, -1, size, size)
        first_frame = blocks[0, ..., 0, :, :]  # an image is repeated as two equal frames
        rows = first_frame.permute(4, 0, 2, 5, 1, 3, 6)  # channel, block row, row in it, y, block column, column, x
        found.append(rows.reshape(CHANNELS, down * size, across * size))
    return found


def _placed_patches(patches: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Returns the image (3, H, W) of patches (N, P * P * 3), each at its (column, row); padding is at (-1, -1)."""
    real, side = (places >= 0).all(dim=-1), isqrt(patches.shape[-1] // CHANNELS)
    columns, rows = places[real].T
    canvas = patches.new_zeros(int(rows.max()) + 1, int(columns.max()) + 1, side, side, CHANNELS)
    canvas[rows, columns] = patches[real].view(-1, side, side, CHANNELS)
    return canvas.permute(4, 0, 2, 1, 3).reshape(CHANNELS, canvas.shape[0] * side, canvas.shape[1] * side)


def _picture(array: torch.Tensor, image_processor: Any) -> Image.Image:
    """Returns the picture of (3, H, W) values, which the processor rescaled and then normalised."""
    if image_processor.do_normalize:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in _mean_and_std(image_processor))
        array = array * std + mean
    if image_processor.do_rescale:
        array = array / image_processor.rescale_factor
    values = array.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(values))


def _mean_and_std(image_processor: Any) -> tuple[list[float], list[float]]:
    return list(image_processor.image_mean), list(image_processor.image_std)
