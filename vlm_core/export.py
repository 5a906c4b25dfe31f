"""Exports a checkpoint for other programs.

    python -m vlm_core.export merge --checkpoint-path epoch_0_step_200 --output-dir merged

`merge` merges an adapter into its base model. The result is a standard transformers directory with the processor, in
the dtype of the base model. `AutoModelForImageTextToText` and servers such as vLLM can load it.
"""

from vlm_core.arguments import export_parser, read_arguments

if __name__ == "__main__":  # before the imports below, which take seconds
    OPTIONS = read_arguments(export_parser(__doc__), "torch and transformers")
else:
    OPTIONS = None

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig

from vlm_core.config import ModelConfig
from vlm_core.data.medical.settings import save_settings, settings_of
from vlm_core.files import published_directory
from vlm_core.home import keep_private, require_writable
from vlm_core.log import configure_logging
from vlm_core.models.load import load_processor
from vlm_core.models.model_reference import ModelFiles, find_model
from vlm_core.models.weights import load_trained
from vlm_core.plain_text import printable

logger = logging.getLogger(__name__)


def merge(files: ModelFiles, output: Path) -> torch.dtype:
    """Merges the adapter of `files` into its base model and writes the result to `output`; returns the weights' dtype.

    The dtype is that of the stored base model. The merge computes in float32 and rounds once. Raises ValueError if
    `output` is not empty, or if merged weights are not finite.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not empty; choose a new or empty directory")
    require_writable(output)
    exact = files.config.model_copy(update={"torch_dtype": "float32"})
    model: Any = load_trained(files.weights, files.base, exact)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload(safe_merge=True)
    dtype: Any = AutoConfig.from_pretrained(files.base, trust_remote_code=False).dtype or torch.float32
    with published_directory(output) as aside:
        model.to(dtype).save_pretrained(aside)
        load_processor(files.base, files.config.image_processor.settings).save_pretrained(aside)
        save_settings(settings_of(files.weights), aside)
    return dtype


def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    keep_private()
    configure_logging()  # again: an imported library may have changed it
    try:
        base = options.base_model and ModelConfig(pretrained_model_name_or_path=options.base_model)
        files = find_model(options.checkpoint_path, base)
        dtype = merge(files, options.output_dir.absolute())
    except ValueError as error:
        raise SystemExit(f"error: {printable(error)}") from error
    logger.info("%s has the merged model in %s: AutoModelForImageTextToText.from_pretrained loads it",
                options.output_dir, str(dtype).removeprefix("torch."))  # fmt: skip


if OPTIONS:
    main(OPTIONS)
