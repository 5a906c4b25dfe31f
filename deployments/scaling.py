"""Estimates the cost of a training on many GPUs from the costs of one image and one question: the tables of SCALING.md.

Run `python -m deployments.scaling --images 1000000 --gpus 8 64 512`. Every field of `Inputs` is an option.
"""

from deployments.scaling_inputs import Inputs, scaling_parser

if __name__ == "__main__":  # before the imports below, which take seconds
    OPTIONS = scaling_parser(__doc__).parse_args()
else:
    OPTIONS = None

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm_core.families import GEMMA3
from vlm_core.models.freeze import PartCounts, total
from vlm_core.recipe import load_config
from vlm_core.training.flops import flops_per_token
from vlm_core.training.plan import checkpoint_bytes, planned_parameters

# The part of google/gemma-3-4b-it's published config.json that determines sizes.
GEMMA3_4B = {
    "model_type": "gemma3",
    "mm_tokens_per_image": 256,
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
TEXT, VISION = GEMMA3_4B["text_config"], GEMMA3_4B["vision_config"]
PATCHES = (VISION["image_size"] // VISION["patch_size"]) ** 2
BFLOAT16, FLOAT32, GIGABYTE = 2, 4, 1e9
CONDITIONS = 5  # answers per question in an evaluation: model, shuffled, blank, question_only, base


@dataclass(frozen=True)
class Costs:
    """The costs of one recipe: parameters, FLOPs and bytes."""

    parts: PartCounts  # including the vision tower
    adapter: bool
    inputs: Inputs

    @property
    def token(self) -> float:
        """FLOPs of a token in training, from `vlm_core.training.flops`."""
        return flops_per_token(self.parts)

    @property
    def head(self) -> float:
        """FLOPs of a supervised token in the head: the forward pass and the gradient of the head's input."""
        return 4.0 * TEXT["hidden_size"] * TEXT["vocab_size"]

    @property
    def question(self) -> float:
        """FLOPs of a question and its answer, without the shared prefix before them."""
        return self.inputs.question_tokens * self.token + self.inputs.answer_tokens * self.head

    @property
    def prefix(self) -> float:
        """FLOPs of an image's tokens in the language model."""
        return self.inputs.prefix_tokens * self.token

    @property
    def tower(self) -> float:
        """FLOPs of the frozen vision tower for an image: two per weight and patch, plus attention among patches."""
        scores = 4.0 * VISION["num_hidden_layers"] * PATCHES**2 * VISION["hidden_size"]
        return 2.0 * sum(self.parts["vision_tower"]) * PATCHES + scores

    @property
    def features(self) -> int:
        """Bytes of an image's features in the vision cache."""
        return GEMMA3_4B["mm_tokens_per_image"] * VISION["hidden_size"] * BFLOAT16

    @property
    def trained(self) -> int:
        """The number of trainable parameters."""
        return total(self.parts).trainable

    @property
    def weights(self) -> int:
        """The number of parameters on the device: all but the vision tower's, whose features are cached."""
        return sum(total(self.parts)) - sum(self.parts["vision_tower"])

    @property
    def checkpoint(self) -> float:
        """Bytes of a checkpoint."""
        return checkpoint_bytes(total(self.parts), BFLOAT16, adapter=self.adapter)

    @property
    def step(self) -> float:
        """FLOPs of one GPU in a step, with packing and the vision cache."""
        return self.inputs.images_a_gpu * (self.prefix + self.inputs.questions * self.question)

    def training(self, *, packed: bool, cached: bool) -> float:
        """FLOPs of the whole training, including the filling of the vision cache."""
        given = self.inputs
        prefixes = given.images if packed else given.all_questions
        towers = given.images if cached else prefixes * given.epochs
        return given.epochs * (prefixes * self.prefix + given.all_questions * self.question) + towers * self.tower


def costs_of(recipe: str, inputs: Inputs) -> Costs:
    """Returns the costs of a recipe with Gemma 3 4B's shapes, without creating any weight."""
    config = load_config(recipe, {"vision_cache.enabled": False})  # so that the tower's parameters are counted
    with tempfile.TemporaryDirectory() as base:
        (Path(base) / "config.json").write_text(json.dumps(GEMMA3_4B), encoding="utf-8")
        return Costs(planned_parameters(config, Path(base), GEMMA3)[0], config.peft is not None, inputs)


def sent(gpus: int, size: float) -> float:
    """Returns the bytes that each GPU sends when a ring gathers or reduces `size` bytes (an all-reduce does both)."""
    return size * (gpus - 1) / gpus


def seconds_to_send(gpus: int, size: float, inputs: Inputs) -> float:
    """Returns the seconds that this takes on the slowest link of the ring."""
    link = inputs.inside_node if gpus <= inputs.gpus_a_node else inputs.between_nodes
    return sent(gpus, size) / link


def lora_exchange(costs: Costs) -> float:
    """Returns the bytes that a LoRA step communicates: float32 gradients, all-reduced (DDP)."""
    return 2.0 * FLOAT32 * costs.trained


def sft_exchange(costs: Costs) -> float:
    """Returns the bytes that a step of full fine-tuning communicates (FSDP2).

    Weights are gathered twice in bfloat16, and gradients are reduced in float32.
    """
    return 2.0 * BFLOAT16 * costs.weights + FLOAT32 * costs.trained


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def units(lora: Costs, sft: Costs) -> str:
    """Returns the table of unit costs: one token, one question, one image, one checkpoint, one step."""
    rows = [
        ("parameters: language model, embeddings, tower", ", ".join(
            f"{sum(lora.parts[part]) / 1e9:.2f} billion" for part in ("language_model", "embeddings", "vision_tower"))),
        ("parameters that train, LoRA and full", f"{lora.trained / 1e6:.1f} million, {sft.trained / 1e9:.2f} billion"),
        ("a token, LoRA and full", f"{lora.token / 1e9:.1f}, {sft.token / 1e9:.1f} GFLOP"),
        ("a question after its image, LoRA and full", f"{lora.question / 1e12:.2f}, {sft.question / 1e12:.2f} TFLOP"),
        ("an image's tokens, LoRA and full", f"{lora.prefix / 1e12:.2f}, {sft.prefix / 1e12:.2f} TFLOP"),
        ("an image in the vision tower", f"{lora.tower / 1e12:.2f} TFLOP"),
        ("an image in the vision cache", f"{lora.features / 1e3:.0f} kB"),
        ("a checkpoint, LoRA and full", f"{lora.checkpoint / GIGABYTE:.2f}, {sft.checkpoint / GIGABYTE:.0f} GB"),
        ("communication per step (gather, reduce), LoRA and full",
         f"{lora_exchange(lora) / GIGABYTE:.2f}, {sft_exchange(sft) / GIGABYTE:.0f} GB"),
    ]  # fmt: skip
    return table(("unit", "cost"), rows)


def savings(costs: Costs) -> str:
    """Returns the table of the training's FLOPs with and without packing and the vision cache."""
    least = costs.training(packed=True, cached=True)
    rows = []
    for packed, cached in ((True, True), (True, False), (False, True), (False, False)):
        flops = costs.training(packed=packed, cached=cached)
        hours = flops / costs.inputs.flops / 3600
        on = ("yes" if packed else "no", "yes" if cached else "no")
        rows.append((*on, f"{flops / 1e18:.3g}", f"{hours:,.3g}", f"{flops / least:.1f}"))
    return table(("packing", "vision cache", "EFLOP", "GPU hours", "times"), rows)


def stages(costs: Costs, gpus: Sequence[int], exchange: float) -> str:
    """Returns the table of hours by stage, if no stage overlaps with another."""
    head = ("", *(f"{count} GPUs" for count in gpus))
    columns = [_column(costs, count, exchange) for count in gpus]
    return table(head, [(name, *(column[name] for column in columns)) for name in columns[0]])


def _column(costs: Costs, gpus: int, exchange: float) -> dict[str, str]:
    given = costs.inputs
    steps = given.epochs * given.images / (given.images_a_gpu * gpus)
    compute, network = costs.step / given.flops, seconds_to_send(gpus, exchange, given)
    cache = given.images * costs.features
    reading = given.images_a_gpu * gpus * costs.features / (compute + network)
    hours = {
        "prepare, one process": given.all_questions / given.rows_a_second,
        "encode": given.images * costs.tower / (given.flops * gpus) + cache / given.storage,
        "verify the vision cache, one process": cache / given.verified,
        "train: compute": steps * compute,
        "train: network": steps * network,
        "checkpoints": steps / given.checkpoint_steps * costs.checkpoint / given.writer,
        "evaluate": given.evaluated * CONDITIONS * _answer_seconds(costs) / gpus,
    }
    return {
        "questions per step": f"{given.images_a_gpu * given.questions * gpus:,}",
        "steps": f"{steps:,.0f}",
        "one step: compute, network": f"{compute * 1e3:.0f}, {network * 1e3:.0f} ms",
        "read from the vision cache": f"{reading / GIGABYTE:.2f} GB/s",
        **{f"{name}, h": _hours(seconds) for name, seconds in hours.items()},
        "**all, h**": _hours(sum(hours.values())),
    }


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.1g}"


def _answer_seconds(costs: Costs) -> float:
    """Returns the seconds per answer: the prefix and question, then one read of the weights per token of 64 answers."""
    given = costs.inputs
    tokens = given.prefix_tokens / given.questions + given.question_tokens - given.answer_tokens
    read = given.answer_tokens * BFLOAT16 * costs.weights / given.gpu_memory / 64
    return 2.0 * sum(costs.parts["language_model"]) * tokens / given.flops + read


def report(inputs: Inputs, gpus: Sequence[int]) -> list[tuple[str, str]]:
    """Returns the tables, each with its title."""
    lora, sft = costs_of("gemma3_4b_lora", inputs), costs_of("gemma3_4b_sft", inputs)
    return [
        ("Unit costs", units(lora, sft)),
        ("What packing and the vision cache save (LoRA)", savings(lora)),
        ("LoRA, by number of GPUs (DDP)", stages(lora, gpus, lora_exchange(lora))),
        ("Full fine-tuning, by number of GPUs (FSDP2)", stages(sft, gpus, sft_exchange(sft))),
    ]


def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    values = vars(options)
    gpus = values.pop("gpus")
    print("\n\n".join(f"## {title}\n\n{body}" for title, body in report(Inputs(**values), gpus)))


if OPTIONS:
    main(OPTIONS)
