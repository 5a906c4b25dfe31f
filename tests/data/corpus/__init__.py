"""A corpus of small datasets, made by code: one module a kind of input, each with the right values beside it.

`folder/images/0.png` to `3.png` are grey images of 8 by 8 pixels; image `i` has the grey value `40 * i`.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

Row = dict[str, Any]
# What is stored of a row: the parts of each turn, an image as its number.
Stored = Sequence[Sequence[str | int]]


@dataclass(frozen=True)
class Case:
    """A dataset, how it is read, and what must be stored of it."""

    name: str
    files: Mapping[str, bytes | str] | Callable[[Path], None]
    stored: Sequence[Stored] = ()  # the training split
    rejects: Mapping[str, int] = field(default_factory=dict)  # beginning of the reason -> rows of the training split
    error: str = ""  # a pattern of the error, if the dataset is refused
    settings: Mapping[str, Any] = field(default_factory=dict)
    path: str = "."  # what is given as the dataset, inside the folder

    def write(self, folder: Path) -> None:
        """Writes the dataset and its images."""
        (folder / "images").mkdir(parents=True)
        for number in range(4):
            (folder / "images" / f"{number}.png").write_bytes(png(number))
        if callable(self.files):
            self.files(folder)
            return
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def png(number: int) -> bytes:
    """Returns the bytes of image `number`."""
    stream = io.BytesIO()
    Image.new("L", (8, 8), 40 * number).save(stream, "png")
    return stream.getvalue()


def rows(*answers: Any) -> list[Row]:
    """Returns a row for each answer: image `i`, the question `q<i>?`."""
    return [{"image": f"images/{i}.png", "question": f"q{i}?", "answer": answer} for i, answer in enumerate(answers)]


def stored(*answers: str) -> list[Stored]:
    """Returns what is stored of `rows(*answers)`."""
    return [[[i, f"q{i}?"], [answer]] for i, answer in enumerate(answers)]


def jsonl(items: Sequence[Any]) -> str:
    """Returns objects as JSON lines."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def both(suffix: str, content: bytes | str) -> dict[str, bytes | str]:
    """Returns the same content as training and validation split."""
    return {f"train{suffix}": content, f"validation{suffix}": content}
