"""Opens the text files of a dataset: finds their encoding, and unpacks `.gz`, `.bz2` and `.xz` while reading."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
TITLES = {"utf-8-sig": "UTF-8 with a byte-order mark"}
CHUNK = 2**20  # bytes
NEWLINE = b"\n"
POINTER = b"version https://git-lfs.github.com/spec/"


def unpacked_name(path: Path) -> Path:
    """Returns the path without the suffix of a compressed file: `train.csv` of `train.csv.gz`."""
    return path.with_suffix("") if path.suffix.lower() in PACKED else path


@contextmanager
def open_bytes(path: Path) -> Iterator[Any]:
    """Opens a file for reading, unpacked; raises ValueError with the file's name if it is damaged."""
    opened = PACKED.get(path.suffix.lower(), open)
    try:
        with opened(path, "rb") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): copy or download it again") from None


@contextmanager
def open_text(path: Path, encoding: str, newline: str = "") -> Iterator[TextIO]:
    """Opens a file as text; line breaks stay as they are."""
    with open_bytes(path) as stream, io.TextIOWrapper(stream, encoding=encoding, newline=newline) as text:
        yield text


def encoding_of(path: Path) -> tuple[str, list[str]]:
    """Returns the encoding that the whole file decodes in, and a note about it unless it is plain UTF-8.

    Raises ValueError with file, line and remedy for a file in another encoding, and for a Git LFS pointer.
    """
    with open_bytes(path) as stream:
        head = stream.read(4096)
    require_content(path, head)
    marked = next((encoding for mark, encoding in MARKS if head.startswith(mark)), None)
    if marked:
        return marked, [f"read as {TITLES.get(marked, marked.upper())}"]
    if b"\0" in head:
        raise ValueError(f"{path} holds NUL bytes (UTF-16 without its mark, or no text): save it as text in UTF-8")
    _require_utf8(path)
    return "utf-8", []


def require_content(path: Path, head: bytes) -> None:
    """Raises ValueError if a file begins as a Git LFS pointer: its content was not downloaded."""
    if head.startswith(POINTER):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")


def _require_utf8(path: Path) -> None:
    """Raises ValueError with the line of the first byte that is not UTF-8.

    Several 8-bit encodings decode the same bytes, and a wrong guess would change texts silently.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = 1
    with open_bytes(path) as stream:
        chunk = b" "
        while chunk:
            chunk = stream.read(CHUNK)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                content, at = bytes(error.object), error.start
                line = lines + content[:at].count(NEWLINE)
                raise ValueError(
                    f"{path}, line {line}: byte 0x{content[at]:02x} is not UTF-8. Save the file again as UTF-8 (in "
                    'Excel: "CSV UTF-8"), or convert it from the encoding that it has, for example: '
                    "iconv -f WINDOWS-1252 -t UTF-8 old > new"
                ) from None
            lines += chunk.count(NEWLINE)
