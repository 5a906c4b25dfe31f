"""Explains how one row of a file becomes a model's input: the prompt, the supervised tokens, the processed images.

Loads the config, processor and tokenizer of the model, but no weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from vlm_core.config import ModelConfig
from vlm_core.data.collate import IGNORE_INDEX, collate
from vlm_core.data.conversation import map_images, numbered_text
from vlm_core.data.explained_row import ExplainedRow, ModelView, cell_text, visible
from vlm_core.data.shown_images import shown_images
from vlm_core.data.tokenization import require_template
from vlm_core.files import published_file
from vlm_core.models.base_model import fetch_model
from vlm_core.models.chat import load_chat

MARKS = "[[", "]]"  # around supervised text; special tokens have angle brackets
GREEN, BOLD, PLAIN = "\x1b[32m", "\x1b[1m", "\x1b[0m"
REPEATS = 4  # this many equal special tokens in a row are written as `token x count`
WIDTH = 12  # width of the first column in characters


class Viewer:
    """Computes how one model sees rows."""

    def __init__(self, config: ModelConfig) -> None:
        """Loads the model's processor; raises ValueError if the model is unavailable or has no chat template."""
        self.name = config.pretrained_model_name_or_path
        directory = fetch_model(config, weights=False)
        self.chat = load_chat(directory, config.image_processor.settings)
        require_template(self.chat)

    def view(self, row: ExplainedRow) -> ModelView:
        """Returns the model's input for a row that is not rejected, or the reason why it cannot be built."""
        conversation = map_images(row.conversation, row.images.__getitem__)
        try:
            batch = collate([{"conversation": conversation}], self.chat)
        except (ValueError, TemplateError) as error:
            return ModelView(self.name, problem=f"this row cannot be shown to the model: {error}")
        ids = batch["input_ids"][0].tolist()
        supervised = (batch["labels"][0] != IGNORE_INDEX).tolist()
        pieces = list(_pieces(ids, supervised, self.chat.processor.tokenizer))
        try:
            images, problem = shown_images(batch, self.chat.processor.image_processor), ""
        except ValueError as error:
            images, problem = [], f"the images cannot be shown as pictures: {error}"
        return ModelView(self.name, pieces, len(ids), sum(supervised), images, problem)


def viewed(rows: Sequence[ExplainedRow], config: ModelConfig) -> list[ExplainedRow]:
    """Returns the rows with the input of the model of `config` added; rejected rows stay unchanged.

    Raises ValueError if the model is unavailable or has no chat template.
    """
    if all(row.rejected for row in rows):
        return list(rows)
    viewer = Viewer(config)
    return [row if row.rejected else replace(row, view=viewer.view(row)) for row in rows]


def _pieces(ids: Sequence[int], supervised: Sequence[bool], tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """Yields (text, whether it is supervised) for the prompt; a run of an added token becomes `<image> x 256`."""
    added, start, end = tokenizer.added_tokens_decoder, 0, 0
    for (token, is_target), run in groupby(zip(ids, supervised, strict=True)):
        length = len(list(run))
        if token in added and length >= REPEATS:
            yield from _decoded(ids, supervised, start, end, tokenizer)
            yield f"{tokenizer.convert_ids_to_tokens(token)} x {length}", is_target
            start = end + length
        end += length
    yield from _decoded(ids, supervised, start, end, tokenizer)


def _decoded(
    ids: Sequence[int], supervised: Sequence[bool], start: int, end: int, tokenizer: Any
) -> Iterator[tuple[str, bool]]:
    """Yields (text, whether it is supervised) for `ids[start:end]`.

    Decodes the ids together with those before them, because SentencePiece drops the leading space of a lone piece.
    """
    for is_target, run in groupby(supervised[start:end]):
        stop = start + len(list(run))
        before, full = (tokenizer.decode(ids[:at], clean_up_tokenization_spaces=False) for at in (start, stop))
        alone = tokenizer.decode(ids[start:stop], clean_up_tokenization_spaces=False)
        yield (full[len(before) :] if full.startswith(before) else alone), is_target
        start = stop


def save_pictures(row: ExplainedRow, directory: Path) -> list[Path]:
    """Writes the images as the model sees them (without a model: as stored) and returns their paths."""
    shown = row.view.images if row.view else row.images
    name = row.name.replace("/", "-")  # that of one of several datasets begins with `NAME/`
    paths = [directory / f"{name}-image-{number}.png" for number in range(1, len(shown) + 1)]
    for image, path in zip(shown, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        with published_file(path) as aside:
            image.save(aside, "png")
    return [path.resolve() for path in paths]


def explanation(row: ExplainedRow, pictures: Sequence[Path], *, colours: bool) -> str:
    """Returns the explanation of a row as text for a terminal; `pictures` are the files of its images."""
    return "\n".join(
        [
            _line("row", f"{row.name}: {row.place}" if row.place else row.name, colours),
            *_cells(row, colours),
            *_conversation(row, colours),
            *_prompt(row.view, colours),
            *_images(row, pictures, colours),
        ]
    )


def _line(title: str, text: str, colours: bool) -> str:
    head, text = f"{title:<{WIDTH}}", visible(text)
    return (f"{BOLD}{head}{PLAIN}{text}" if colours else head + text).rstrip()


def _cells(row: ExplainedRow, colours: bool) -> list[str]:
    widths = [max(map(len, row.cells)), max(map(len, row.uses.values()))]
    cells = [
        f"  {column:<{widths[0]}}  {row.uses.get(column, '-'):<{widths[1]}}  {cell_text(cell)}"
        for column, cell in row.cells.items()
    ]
    return [_line("cells", "column, its use, the value as read", colours), *map(visible, cells)]


def _conversation(row: ExplainedRow, colours: bool) -> list[str]:
    if row.rejected:
        return [_line("rejected", row.rejected, colours)]
    turns = [
        f"  {turn['role']:<{WIDTH - 2}}{_indented(visible(numbered_text(turn)), WIDTH)}" for turn in row.conversation
    ]
    return [_line("conversation", "", colours), *turns]


def _prompt(view: ModelView | None, colours: bool) -> list[str]:
    if view is None or (view.problem and not view.pieces):
        return [_line("prompt", view.problem, colours)] if view else []
    marked = "in green" if colours else f"between {MARKS[0]} and {MARKS[1]}"
    about = f"{view.model}: {view.tokens} tokens; the {view.supervised} supervised ones are {marked}"
    first, last = (GREEN, PLAIN) if colours else MARKS
    text = "".join(f"{first}{visible(text)}{last}" if is_target else visible(text) for text, is_target in view.pieces)
    return [_line("prompt", about, colours), f"  {_indented(text, 2)}"]


def _images(row: ExplainedRow, pictures: Sequence[Path], colours: bool) -> list[str]:
    if not row.images:
        return []
    stored = [f"  {number} is stored as {fact}" for number, fact in enumerate(row.facts, start=1)]
    sizes = [image.size for image in (row.view.images if row.view else row.images)]
    seen = [
        f"  {'the model sees' if row.view else 'decoded:'} {width} x {height} pixels: {path}"
        for (width, height), path in zip(sizes, pictures, strict=True)
    ]
    if len(sizes) > len(row.images):
        seen.append("  the processor cuts an image into several pictures")
    problem = [f"  {visible(row.view.problem)}"] if row.view and row.view.pieces and row.view.problem else []
    return [_line("images", "", colours), *stored, *seen, *problem]


def _indented(text: str, by: int) -> str:
    return text.replace("\n", "\n" + " " * by)
