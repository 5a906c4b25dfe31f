"""The inputs of `python -m deployments.scaling`, and the parser that reads them before slow imports."""

import argparse
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Inputs:
    """The inputs of the estimate; speeds are in bytes per second unless a comment says otherwise."""

    images: int = 1_000_000
    questions: int = 10  # per image
    epochs: int = 3
    prefix_tokens: int = 264  # an image and the text before its questions
    question_tokens: int = 55  # including the answer
    answer_tokens: int = 30
    images_a_gpu: int = 2  # per step: 2 x (264 + 10 x 55) tokens fit packing.max_tokens = 2048
    gpu: str = "H100"
    utilisation: float = 0.35  # share of the GPU's peak FLOP/s, as in the plan of a run
    gpu_memory: float = 3.35e12
    gpus_a_node: int = 8
    inside_node: float = 450e9  # per GPU
    between_nodes: float = 50e9  # per GPU
    storage: float = 10e9  # shared by all nodes
    writer: float = 2e9  # per process
    checkpoint_steps: int = 200
    rows_a_second: float = 1576  # rows that one process prepares
    verified: float = 1.5e9  # one process computes the checksums of the vision cache
    evaluated: int = 10_000  # questions in an evaluation

    @property
    def all_questions(self) -> int:
        """The number of questions in the dataset."""
        return self.images * self.questions

    @property
    def flops(self) -> float:
        """The FLOPs that a GPU reaches per second."""
        from vlm_core.training.flops import PEAK_FLOPS  # lazy: imports torch

        return self.utilisation * PEAK_FLOPS[self.gpu]


def scaling_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of the command: every field of `Inputs` is an option."""
    parser = argparse.ArgumentParser(prog="python -m deployments.scaling", description=description)
    for field in fields(Inputs):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    return parser
