"""What a cell of an image column holds: the image itself in one of many forms, or the path of its file."""

import base64
import binascii
import io
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm_core.data.images import looks_like_image
from vlm_core.data.medical.reader import is_medical

MOST_BYTES = 500_000_000  # of an image file; Pillow's limit of pixels needs 270 MB
LONGEST_PATH = 4096
SHORTEST_BASE64 = 64  # characters; the smallest PNG has more
HEAD = 32  # characters or numbers that show whether an image begins with them
MEDICAL_HEAD = 480  # the same of a DICOM or NIfTI file
BASE64 = re.compile(r"[A-Za-z0-9+/_-]+")
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
NO_IMAGE = "no image"


class ImageError(ValueError):
    """An image cannot be found. Rejects are counted by the message; `detail` describes this one."""

    def __init__(self, reason: str, detail: Callable[[], str] = str) -> None:
        super().__init__(reason)
        self._detail = detail

    @property
    def detail(self) -> str:
        """Returns what is wrong with this image; it is computed when it is asked for."""
        return self._detail()


class FromBase64(bytes):
    """An encoded image that a cell held as base64 text; a reject says so, since the text may be what is damaged."""


def cells_of(cell: Any) -> list[Any]:
    """Returns the images in a cell of an image column: those of a list, or the one that the cell is.

    A list may also be JSON text. A list of numbers that begins as an image does is the bytes of one image.
    """
    if isinstance(cell, str) and cell.lstrip().startswith(("[", "{")):
        with suppress(ValueError):
            cell = json.loads(cell)
    if isinstance(cell, np.ndarray) and cell.dtype == object:
        cell = cell.tolist()
    if isinstance(cell, list | tuple) and not _holds_bytes(cell):
        return list(cell)
    return [] if cell is None else [cell]


def image_or_path(cell: Any) -> bytes | str:
    """Returns the encoded image that a cell holds, or the path (or address) that it names.

    Raises ImageError for a cell that is empty or holds anything else. No message repeats what the cell holds.
    """
    if isinstance(cell, dict):
        cell = _of_dictionary(cell)
    if isinstance(cell, Image.Image):
        return _saved(cell)
    if isinstance(cell, np.ndarray):
        return _of_array(cell)
    if isinstance(cell, list | tuple) and cell:
        return _of_numbers(cell)
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return _of_number(cell)
    if isinstance(cell, bytes | bytearray | memoryview) and cell:
        return bytes(cell)
    if isinstance(cell, str) and cell.strip():
        return _of_text(cell)
    if cell is None or (isinstance(cell, Sized) and not len(cell)) or isinstance(cell, str):
        raise ImageError(NO_IMAGE)
    raise ImageError("image that is neither bytes nor a path", lambda: f"found {type(cell).__name__}")


def decoded_base64(text: str) -> bytes:
    """Returns the bytes of a base64 text: with line breaks, without padding, in the alphabet for URLs, as a data URL.

    Raises ImageError for any other text.
    """
    if text.lstrip().startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.rstrip().endswith(";base64"):
            raise ImageError("image as a data URL that is not base64")
    packed = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("image as base64 text that is damaged") from None


@contextmanager
def open_image_file(path: Path) -> Iterator[io.BufferedReader]:
    """Yields an image file to read from.

    Raises ImageError for a device, a pipe, a directory, an empty file (as those of /proc, which may never end) and one
    of more than `MOST_BYTES`.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody to write into it.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ImageError("image path that is not a file")
            if not found.st_size:
                raise ImageError("image file is empty")
            if found.st_size > MOST_BYTES:
                raise ImageError(f"image file of more than {MOST_BYTES:,} bytes")
            yield stream
    except OSError as error:
        raise ImageError(f"image file cannot be read ({error.strerror or type(error).__name__})") from None


def encoded_image_of_caller(cell: Any) -> bytes:
    """Returns the encoded image that a caller of a service sent as base64 text or as bytes, never a file's content.

    Raises ImageError for anything else.
    """
    if isinstance(cell, bytes) and cell:
        return cell
    if isinstance(cell, str) and cell.strip():
        return decoded_base64(cell)
    raise ImageError("no image: send the encoded file as base64 text")


def _of_dictionary(cell: dict[str, Any]) -> Any:
    """Returns the bytes of `{"bytes", "path"}` if there are some, whatever the path says; else the path."""
    held = cell.get("bytes")
    if not isinstance(held, Sized) or not len(held):  # None, or NaN
        return cell.get("path")
    return decoded_base64(held) if isinstance(held, str) else held


def is_image_text(text: str) -> bool:
    """Returns whether a text is an encoded image as base64 or as a data URL; decodes no more than its beginning."""
    if text.lstrip()[:5] == "data:":
        return True
    start = "".join(text[: 2 * HEAD].split())[:HEAD]
    return len(text) >= SHORTEST_BASE64 and bool(BASE64.fullmatch(start)) and _begins_image(text, start)


def _of_text(text: str) -> bytes | str:
    if is_image_text(text):
        return FromBase64(decoded_base64(text))
    if len(text) > LONGEST_PATH or any(len(part.encode(errors="replace")) > 255 for part in re.split(r"[/\\]", text)):
        raise ImageError("image as text that is neither a path nor base64", lambda: f"{len(text)} characters")
    if "\0" in text:
        raise ImageError("image path with a NUL character")
    return text


def _begins_image(text: str, start: str) -> bool:
    """Returns whether base64 text begins as an encoded image does; `start` are its first characters."""
    if looks_like_image(decoded_base64(start)):
        return True
    longer = "".join(text[: 2 * MEDICAL_HEAD].split())[:MEDICAL_HEAD]
    return bool(BASE64.fullmatch(longer)) and is_medical(decoded_base64(longer))


def _of_number(cell: float) -> str:
    """Returns the name that a number is: 7 and 7.0 name the file 7."""
    if isinstance(cell, float) and math.isnan(cell):
        raise ImageError(NO_IMAGE)
    if not math.isfinite(cell) or cell != int(cell):
        raise ImageError("image that is a number", lambda: f"found {cell}")
    return str(int(cell))


def _holds_bytes(cells: Any) -> bool:
    head = cells[:HEAD]
    if len(head) < HEAD or not all(_is_byte(number) for number in head):
        return False
    longer = cells[:MEDICAL_HEAD]
    return looks_like_image(bytes(head)) or (all(map(_is_byte, longer)) and is_medical(bytes(longer)))


def _is_byte(number: Any) -> bool:
    return bool(isinstance(number, int | np.integer) and not isinstance(number, bool) and 0 <= number <= 255)


def _of_numbers(cells: Any) -> bytes:
    if not all(map(_is_byte, cells)):
        raise ImageError("image as a list that does not hold bytes", lambda: f"found {type(cells[0]).__name__}")
    return bytes(cells)


def _of_array(array: np.ndarray) -> bytes:
    """Returns the bytes that an array of one dimension holds, or its pixels as an encoded image."""
    if not array.size:
        raise ImageError(NO_IMAGE)
    if array.ndim == 1:
        return _of_numbers(array.tolist())
    try:
        return _saved(Image.fromarray(array))
    except (TypeError, ValueError):
        raise ImageError(
            "image as an array that is not one of pixels", lambda: f"found {array.dtype} of shape {array.shape}"
        ) from None


def _saved(image: Image.Image) -> bytes:
    """Returns an image in a lossless format that has its mode."""
    stream = io.BytesIO()
    image.save(stream, "PNG" if image.mode in PNG_MODES else "TIFF")
    return stream.getvalue()
