"""Image files that Pillow reads but cannot write, made by hand; and a short way to those that it writes."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by channels
SHORT, LONG = 3, 4  # types of TIFF's values


def encode(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    """Returns an image in a format of Pillow."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(values: np.ndarray) -> bytes:
    """Returns uint16 values (height, width[, channels]) as a PNG of 16 bits."""
    values = values if values.ndim == 3 else values[..., None]
    height, width, channels = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    head = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def tiff(
    values: np.ndarray,
    order: str = "<",
    packed: bool = False,
    *,
    white_is_zero: bool = False,
    planes: bool = False,
    turned: bool = False,
) -> bytes:
    """Returns values (height, width[, channels]) as a TIFF of their type, in the byte order `<` or `>`."""
    height, width, *rest = values.shape
    channels = rest[0] if rest else 1
    stored = np.moveaxis(values, 2, 0) if planes else values
    data = stored.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if packed else data
    data += b"\0" * (len(data) % 2)
    strips = channels if planes else 1
    tags = [
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [values.dtype.itemsize * 8] * channels),
        (259, SHORT, [8 if packed else 1]),
        (262, SHORT, [0 if white_is_zero else 2 if channels > 2 else 1]),
        (273, LONG, [8 + i * (len(data) // strips) for i in range(strips)]),
        (274, SHORT, [6 if turned else 1]),
        (277, SHORT, [channels]),
        (278, LONG, [height]),
        (279, LONG, [len(data) // strips] * strips),
        (284, SHORT, [2 if planes else 1]),
        *([(338, SHORT, [2])] if channels == 4 else []),
        (339, SHORT, [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * channels),
    ]
    beside, directory = b"", b""
    for tag, kind, numbers in tags:
        packed_numbers = struct.pack(order + ("H" if kind == SHORT else "I") * len(numbers), *numbers)
        if len(packed_numbers) > 4:
            place = struct.pack(order + "I", 8 + len(data) + len(beside))
            beside += packed_numbers
        else:
            place = packed_numbers.ljust(4, b"\0")
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data) + len(beside))
    return head + data + beside + struct.pack(order + "H", len(tags)) + directory + bytes(4)
