"""Measures the memory of LoRA over a base in bfloat16, int8 and nf4 beside the plan: `python -m benchmarks.quantized`.

The model has Gemma 3's classes and 126 million weights in linear modules, so that weights dominate. Each kind is loaded
and trained in a separate process on the CPU, with and without gradient checkpointing. Writes results/quantization.md.
"""

import argparse
import ctypes
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers.models.gemma3.modeling_gemma3  # noqa: F401  # before the forks
from transformers import AutoConfig, AutoModelForImageTextToText

from benchmarks.memory import PeakMemory
from vlm_core.config import Config, ModelConfig
from vlm_core.families import GEMMA3
from vlm_core.models.base_model import fetch_model
from vlm_core.models.load import load_processor
from vlm_core.models.prepare import prepare_model
from vlm_core.recipe import load_config
from vlm_core.training.memory import memory_of
from vlm_core.training.optim import build_optimizer
from vlm_core.training.plan import planned_sizes

RESULTS = Path(__file__).parent / "results" / "quantization.md"
KINDS = ("none", "int8", "nf4")
TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
TOKENS = 128
M_MMAP_THRESHOLD = -3  # glibc's number of this setting
LARGE = 1 << 20  # bytes


def write_model(directory: Path) -> None:
    """Writes a randomly initialised model in bfloat16, with the processor of the tiny Gemma 3."""
    tiny = fetch_model(ModelConfig(pretrained_model_name_or_path="builtin:tiny-gemma3"))
    config: Any = AutoConfig.from_pretrained(tiny)
    layers = config.text_config.layer_types
    for name, value in TEXT.items():
        setattr(config.text_config, name, value)
    config.text_config.layer_types = [layers[i % len(layers)] for i in range(TEXT["num_hidden_layers"])]
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    load_processor(tiny).save_pretrained(directory)


def measure(directory: Path, kind: str, checkpointing: bool) -> dict[str, float]:
    """Returns the MB of the weights, of the peaks of loading and of training, and of the plan's estimate."""
    # Otherwise glibc keeps freed copies of weights on its heap, and they count as used.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
    tiny = fetch_model(ModelConfig(pretrained_model_name_or_path="builtin:tiny-gemma3"))
    _train(config_of(tiny, kind, checkpointing), tiny)  # imports everything, so that it is not measured
    config = config_of(directory, kind, checkpointing)
    planned = memory_of(config, planned_sizes(config, directory, GEMMA3), TOKENS, 1)
    return _train(config, directory) | {"planned": sum(planned.values()) / 1e6}


def config_of(directory: Path, kind: str, checkpointing: bool) -> Config:
    """Returns the config of LoRA over the weights in `directory`, held as `kind`."""
    overrides = {
        "model": {"pretrained_model_name_or_path": str(directory), "torch_dtype": "bfloat16", "quantization": kind},
        "peft": {"dim": 8, "exclude_modules": ["*vis*"]},
        "compute.gradient_checkpointing": checkpointing,
    }
    return load_config("demo", overrides)


def _train(config: Config, directory: Path) -> dict[str, float]:
    """Loads the model, makes two steps, and returns the MB of its weights and of both peaks above the start."""
    with PeakMemory() as loading:
        model = prepare_model(config, directory, GEMMA3, None)
    for parameter in model.parameters():
        if type(parameter) is torch.nn.Parameter:  # a quantised one is in memory, with a second reference to its data
            parameter.data = parameter.data.clone()  # otherwise the weights' file stays mapped, and its pages count
    ctypes.CDLL(None).malloc_trim(0)  # otherwise memory that loading freed stays with the process
    held = sum(_bytes(tensor) for tensor in model.state_dict().values())
    optimizer = build_optimizer(model, config.optimizer)
    ids = torch.arange(TOKENS)[None] % 600
    types = torch.zeros_like(ids)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}
    with PeakMemory() as training, torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            model.train()(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    peak = (training.peak - loading.before) / 1e6
    return {"weights": held / 1e6, "loading": loading.megabytes, "peak": peak}


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size()


def report(rows: dict[tuple[str, bool], dict[str, float]]) -> str:
    """Returns the measurements as a table in Markdown."""
    full = rows["none", False]["weights"]
    lines = [
        "# LoRA over quantised weights: memory on a CPU",
        "",
        f"Gemma 3's classes, 8 layers of width 1,024, {TOKENS} tokens, one process; MB above the process's start.",
        "Loading and training are peaks; that of loading includes the pages of the file that are mapped.",
        "The allocator returns freed blocks of 1 MB and more to the system (`MALLOC_MMAP_THRESHOLD_=1048576`).",
        "",
        "| weights | checkpointing | held | of bfloat16 | loading | training | plan | training / plan |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (kind, checkpointing), row in rows.items():
        name, on = "bfloat16" if kind == "none" else kind, "yes" if checkpointing else "no"
        numbers = f"{row['weights']:.0f} | {row['weights'] / full:.2f} | {row['loading']:.0f} | {row['peak']:.0f}"
        lines.append(f"| {name} | {on} | {numbers} | {row['planned']:.0f} | {row['peak'] / row['planned']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures every kind in a process forked for it, so that torch is imported once, and writes the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = {}
    # Nothing may compute in this process: a fork inherits no threads of OpenMP.
    with tempfile.TemporaryDirectory() as directory, get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        pool.apply(write_model, [Path(directory)])
        for kind in KINDS:
            for checkpointing in (False, True):
                rows[kind, checkpointing] = pool.apply(measure, [Path(directory), kind, checkpointing])
    RESULTS.write_text(report(rows))
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
