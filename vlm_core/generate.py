"""Asks a model about images.

    python -m vlm_core.generate --checkpoint-path DIR --prompt "What is shown?" --image FILE
    python -m vlm_core.generate --checkpoint-path models:/medpix-gemma3@champion --input-file questions.jsonl

Only the answer goes to standard output; messages go to standard error. An input file has one question per line,
{"prompt": "...", "images": ["file or https URL", ...]}. The output then has one line of JSON per answer.
"""

from vlm_core.arguments import generate_parser, read_arguments

if __name__ == "__main__":  # before the imports below, which take seconds
    OPTIONS = read_arguments(generate_parser(__doc__), "torch and transformers")
else:
    OPTIONS = None

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_core.config import ImagesConfig, ModelConfig
from vlm_core.data.cell_images import pictures_of_file, pictures_of_path
from vlm_core.data.conversation import Conversation, question_turn
from vlm_core.data.image_cells import ImageError, open_image_file
from vlm_core.data.images import UnreadableImageError, decode_image
from vlm_core.data.medical.settings import settings_of
from vlm_core.files import to_json, write_text
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.decode import Answer
from vlm_core.generation.image_urls import read_image_url
from vlm_core.generation.sampling import GenerationSettings
from vlm_core.home import keep_private
from vlm_core.log import configure_logging
from vlm_core.models.model_reference import ModelFiles, find_model
from vlm_core.plain_text import printable

logger = logging.getLogger(__name__)

STDIN = "-"
BATCH_SIZE = 16


@dataclass(frozen=True)
class Request:
    """A question and the names (paths or URLs) of its images."""

    prompt: str
    images: list[str]

    def files(self, allow_any_url: bool) -> list[bytes | Path]:
        """Reads the images; raises ValueError for an image that is missing or cannot be read."""
        return [read_file(name, allow_any_url) for name in self.images]

    def conversation(self, files: Sequence[bytes | Path], settings: ImagesConfig) -> Conversation:
        """Returns the conversation with the user's question; raises ValueError for an image that cannot be decoded."""
        named = zip(self.images, files, strict=True)
        return [
            question_turn(self.prompt, [image for name, file in named for image in images_of(name, file, settings)])
        ]


def read_file(name: str, allow_any_url: bool) -> bytes | Path:
    """Returns the content of a file or URL, or the path of a folder; raises ValueError if it cannot be read."""
    try:
        if "://" in name:
            return read_image_url(name, any_address=allow_any_url)
        if Path(name).is_dir():
            return Path(name)
        with open_image_file(Path(name)) as stream:
            return stream.read()
    except ImageError as error:
        raise ValueError(f"cannot read the image {name}: {error}") from None


def images_of(name: str, file: bytes | Path, settings: ImagesConfig) -> list[Any]:
    """Decodes one image, or the slices of a volume, with the image settings of the model's training.

    Raises ValueError if it cannot be decoded.
    """
    try:
        found = pictures_of_path(file, settings) if isinstance(file, Path) else pictures_of_file(file, settings)
        return [decode_image(picture) for picture in found]
    except (ImageError, UnreadableImageError) as error:
        raise ValueError(f"cannot read the image {name}: {error}") from None


def generate(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one record per answer: `{prompt, images, response, thought, finish_reason, model, settings, seconds}`.

    Raises ValueError for an unusable model, input or image, before the model is loaded.
    """
    started = time.monotonic()
    if options.max_new_tokens < 1 or options.temperature < 0 or not 0 < options.top_p <= 1:
        raise ValueError("--max-new-tokens must be >= 1, --temperature >= 0, and --top-p > 0 and <= 1")
    if options.top_p < 1 and not options.temperature:
        raise ValueError("--top-p has no effect at temperature 0; give --temperature a value above 0")
    settings = GenerationSettings(options.max_new_tokens, options.temperature, options.top_p, options.seed)
    requests = _requests(options)
    read = [request.files(options.allow_any_url) for request in requests]
    files = _model(options)
    images = settings_of(files.weights)
    conversations = [request.conversation(found, images) for request, found in zip(requests, read, strict=True)]
    answerer = Answerer.load(files)
    records = []
    for start in range(0, len(requests), BATCH_SIZE):
        answers = answerer.answer(conversations[start : start + BATCH_SIZE], settings)
        for request, answer in zip(requests[start : start + BATCH_SIZE], answers, strict=True):
            if not answer.text:
                logger.warning("the answer to %r is empty: %s", request.prompt[:80], _why_empty(answer))
            records.append(
                vars(request)
                | {
                    "response": answer.text,
                    "thought": answer.thought,
                    "finish_reason": "length" if answer.truncated else "stop",
                    "model": str(options.checkpoint_path or options.base_model),
                    "settings": settings.effective,
                    "seconds": round(time.monotonic() - started, 2),
                }
            )
    return records


def _why_empty(answer: Answer) -> str:
    """Returns why an answer has no text, and where to find the cause."""
    if answer.thought and answer.truncated:
        return "the model was still thinking; raise --max-new-tokens"
    if answer.tokens <= 1 and not answer.truncated:
        why = "the model ended it at once"
    else:
        why = f"its {answer.tokens} tokens are special tokens or spaces"
    return f"{why}. The model has probably not learnt to answer: see the verdict of its evaluation"


def _model(options: argparse.Namespace) -> ModelFiles:
    if not (options.checkpoint_path or options.base_model):
        raise ValueError("nothing to load: give --checkpoint-path, --base-model, or both")
    base = options.base_model and ModelConfig(pretrained_model_name_or_path=options.base_model, torch_dtype="auto")
    return find_model(options.checkpoint_path, base)


def _requests(options: argparse.Namespace) -> list[Request]:
    if (options.prompt is None) == (options.input_file is None):
        raise ValueError("give --prompt for one question, or --input-file for many")
    if options.input_file is None:
        prompt = sys.stdin.read().strip() if options.prompt == STDIN else options.prompt
        return [Request(prompt, [*options.image, *options.image_url])]
    if options.image or options.image_url or options.output_format == "text":
        raise ValueError("an input file names its own images and its output is JSON lines: remove --image, --image-url "
                         "and --output-format text")  # fmt: skip
    text = sys.stdin.read() if options.input_file == STDIN else Path(options.input_file).read_text(encoding="utf-8")
    return [_request(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _request(number: int, line: str) -> Request:
    try:
        record = json.loads(line)
        unknown = record.keys() - {"prompt", "images"}
        images = record.get("images", [])
        if unknown or not isinstance(record["prompt"], str) or not isinstance(images, list):
            raise TypeError
        return Request(record["prompt"], [str(name) for name in images])
    except (ValueError, KeyError, TypeError, AttributeError):
        wanted = '{"prompt": "...", "images": ["..."]}'
        raise ValueError(f"line {number} of the input is not a question: {line[:80]!r}; write {wanted}") from None


def render(records: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """Returns the output text: one answer as text or JSON, or one line of JSON per answer for an input file."""
    if options.input_file is not None:
        return "".join(to_json(record) + "\n" for record in records)
    (record,) = records
    if options.output_format == "json":
        return to_json(record, indent=2) + "\n"
    return record["response"] + "\n"


def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    keep_private()
    configure_logging()  # again: an imported library may have changed it
    try:
        text = render(generate(options), options)
        if options.output_file:
            write_text(options.output_file, text)
        else:
            sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {printable(error)}") from error


if OPTIONS:
    main(OPTIONS)
