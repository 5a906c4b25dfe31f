"""Asks a model about images.

    python -m vlm_core.generate --checkpoint-path DIR --prompt "What is shown?" --image FILE

The answer goes to standard output, alone; messages go to standard error.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from vlm_core.config import ModelConfig
from vlm_core.data.images import decode_image
from vlm_core.files import read_json, write_text
from vlm_core.generation.answerer import Answerer
from vlm_core.log import configure_logging
from vlm_core.models.load import ADAPTER_CONFIG, is_adapter, weights_directory


def model_config(options: argparse.Namespace) -> ModelConfig:
    """Returns what to load: `--base-model`, else the base model that the checkpoint's adapter names."""
    name = options.base_model
    if name is None and options.checkpoint_path is not None:
        weights = weights_directory(options.checkpoint_path)
        name = read_json(weights / ADAPTER_CONFIG)["base_model_name_or_path"] if is_adapter(weights) else str(weights)
    if name is None:
        raise ValueError("nothing to load: give --checkpoint-path, --base-model, or both")
    return ModelConfig(pretrained_model_name_or_path=name, torch_dtype="auto")


def generate(options: argparse.Namespace) -> dict[str, Any]:
    """Returns `{prompt, images, response, model, seconds}`; raises ValueError for an image or model that fails."""
    started = time.monotonic()
    content = [{"type": "image", "image": _read_image(path)} for path in options.image]
    content.append({"type": "text", "text": options.prompt})
    answerer = Answerer.load(options.checkpoint_path, model_config(options))
    (answer,) = answerer.answer([[{"role": "user", "content": content}]], options.max_new_tokens)
    return {
        "prompt": options.prompt,
        "images": [str(path) for path in options.image],
        "response": answer.text,
        "model": str(options.checkpoint_path or options.base_model),
        "seconds": round(time.monotonic() - started, 2),
    }


def _read_image(path: Path) -> Any:
    try:
        return decode_image(path.read_bytes())
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three for broken files
        raise ValueError(f"cannot read the image {path}: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vlm_core.generate", description=__doc__)
    parser.add_argument("--checkpoint-path", type=Path, help="epoch_E_step_S, or a model or adapter directory")
    parser.add_argument("--base-model", help="hub id or directory; default: what the adapter names")
    parser.add_argument("--prompt", required=True, help="the question")
    parser.add_argument("--image", type=Path, nargs="*", default=[], help="image files, in the order of the prompt")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--output-format", choices=("text", "json"), default="text")
    parser.add_argument("--output-file", type=Path, help="write the answer there and not to standard output")
    return parser


def main() -> None:
    """Runs the command."""
    options = _parser().parse_args()
    configure_logging()
    try:
        result = generate(options)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    text = json.dumps(result, indent=2, ensure_ascii=False) if options.output_format == "json" else result["response"]
    if options.output_file:
        write_text(options.output_file, text + "\n")
    else:
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
