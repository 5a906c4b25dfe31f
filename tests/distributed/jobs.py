"""Runs several jobs one after the other in one process group, since its imports take longer than a tiny job.

`torchrun -m tests.distributed.jobs JOBS.json`, a file of `write_jobs`.
"""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_core.encode import encode
from vlm_core.evaluate import evaluate
from vlm_core.files import write_json
from vlm_core.finetune import finetune
from vlm_core.recipe import load_config
from vlm_core.run_directory import CONFIG
from vlm_core.training.distributed import Ranks, command, same_as_main
from vlm_core.training.loop import Trainer
from vlm_core.training.loss import TokenLoss


def job(directory: Path, conversations: Path, kind: str = "finetune", **settings: Any) -> dict[str, Any]:
    """Returns a job with the config that lies in `directory`.

    `settings`: `home` is its MEDPIX_HOME, `broken_step` a step whose loss is NaN on the last rank; an evaluation needs
    `checkpoint` and `output`.
    """
    return {"kind": kind, "config": str(directory / CONFIG), "conversations": str(conversations)} | settings


def write_jobs(path: Path, jobs: list[dict[str, Any]]) -> Path:
    """Writes the argument of this module, and returns its path."""
    write_json(path, jobs)
    return path


def run_job(job: dict[str, Any], ranks: Ranks) -> None:
    """Runs a job on this rank."""
    config, conversations = load_config(job["config"], {}), Path(job["conversations"])
    with pytest.MonkeyPatch.context() as patch:
        if "home" in job:
            patch.setenv("MEDPIX_HOME", job["home"])
        if job["kind"] == "encode":
            encode(config, ranks, conversations)
        elif job["kind"] == "evaluate":
            evaluate(config, job["checkpoint"], Path(job["output"]), ranks, conversations)
        else:
            with loss_broken_at(job["broken_step"]) if "broken_step" in job else nullcontext():
                finetune(config, ranks, conversations)


@contextmanager
def loss_broken_at(step: int) -> Iterator[None]:
    """Makes the loss of a step NaN, and so its gradient, on the last rank alone."""
    update, forward, broken = Trainer._optimizer_step, TokenLoss.forward, [False]

    def stepped(self: Trainer, batches: Any) -> dict[str, Any]:
        broken[0] = self.progress.step == step and self.ranks.rank == self.ranks.world_size - 1
        try:
            return update(self, batches)
        finally:
            broken[0] = False

    def loss(self: TokenLoss, batch: Any) -> torch.Tensor:
        return forward(self, batch) * (math.nan if broken[0] else 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_optimizer_step", stepped)
        patch.setattr(TokenLoss, "forward", loss)
        yield


if __name__ == "__main__":
    with command() as ranks:
        assert same_as_main(ranks.rank) == 0
        for found in json.loads(Path(sys.argv[1]).read_text()):
            run_job(found, ranks)
