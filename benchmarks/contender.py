"""Runs one measurement in its own process: `python -m benchmarks.contender '{"contender": "ours", ...}'`.

Prints one line of JSON. Every contender starts from the same weights and reads the same examples in the same optimizer
steps. Equal losses in the records prove it.
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.answering import answer_batched, answer_one_by_one, answer_ours, read_cold, read_warm
from benchmarks.training import WARM_UP, efficiency, ours, ours_two_processes, plain
from benchmarks.workload import SIZES, config_of, write_data, write_model
from vlm_core.config import Config
from vlm_core.data.prepare import prepare_conversations


def trl(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Trains with TRL's SFTTrainer, imported only here since the import takes memory."""
    from benchmarks import peers

    return peers.trl(config, conversations, steps)


CONTENDERS: dict[str, Callable[[Config, Path, int], dict[str, Any]]] = {
    "ours": ours,
    "ours-two-processes": ours_two_processes,
    "efficiency": efficiency,
    "plain": plain,
    "trl": trl,
    "answer-ours": answer_ours,
    "answer-batched": answer_batched,
    "answer-one-by-one": answer_one_by_one,
    "read-cold": read_cold,
    "read-warm": read_warm,
}


def measure(wanted: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of the measurement that `wanted` describes: its settings, seconds, memory and speeds."""
    torch.set_num_threads(wanted["threads"])
    root = Path(wanted["directory"])
    model, data = root / f"model-{wanted['size']}", root / f"data-{wanted['images']}x{wanted['questions']}"
    run = root / "run"
    shutil.rmtree(run, ignore_errors=True)
    write_model(model, SIZES[wanted["size"]])
    write_data(data, wanted["images"], wanted["questions"])
    assert wanted["batch"] % wanted["rows"] == 0, "otherwise TRL takes fewer examples per step than the others"
    schedule = {"max_steps": "steps", "global_batch_size": "batch", "local_batch_size": "rows"}
    overrides = {f"step_scheduler.{key}": wanted[name] for key, name in schedule.items()}
    config = config_of(model, data, run, wanted["tuning"], **overrides, **wanted.get("overrides", {}))
    conversations, _ = prepare_conversations(config)
    result = CONTENDERS[wanted["contender"]](config, conversations, wanted["steps"])
    return wanted | result | _speeds(wanted, result) | {"machine": machine()}


def _speeds(wanted: dict[str, Any], result: dict[str, Any]) -> dict[str, float]:
    """Returns samples per second: for the steps alone, and including the vision cache's filling over 1 and 3 epochs."""
    if "answered" in result:
        rate = result["answered"] / result["seconds"]
        return dict.fromkeys(("samples_per_second", "effective_per_second", "epoch_1"), rate)
    rate = wanted["batch"] * (wanted["steps"] - WARM_UP) / result["seconds"]
    total = wanted["batch"] * wanted["steps"]  # samples whose images were encoded
    filling = result.get("encode_seconds", 0.0)
    over = {epochs: epochs * total / (filling + epochs * total / rate) for epochs in (1, 3)}
    return {"samples_per_second": rate, "effective_per_second": over[3], "epoch_1": over[1]}


def machine() -> str:
    """Describes the machine: GPU or CPU cores, torch version, dtype."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16"
    return f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, torch {torch.__version__}, float32"


def main() -> None:
    """Runs the measurement that the argument describes, and prints its record."""
    logging.basicConfig(level=logging.WARNING)
    print(json.dumps(measure(json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
