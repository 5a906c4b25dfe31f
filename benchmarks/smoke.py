"""Trains a tiny model for three steps with every kernel and dtype: `python -m benchmarks.smoke`.

It should take about a minute on a GPU. Run it first on a new kind of GPU or with a new version of torch. Each line is
written to `results/smoke.json` and `results/smoke.md` as it comes. A setting is right if its losses are near those of
the first line, which is float32 with dense masks.
"""

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.run import RESULTS
from vlm_core.config.training import FUSED_LOSS
from vlm_core.files import read_json_lines
from vlm_core.finetune import finetune
from vlm_core.recipe import load_config
from vlm_core.run_directory import METRICS
from vlm_core.training.distributed import Ranks

Settings = dict[str, Any]
SMALL = {
    "dataset.path_or_dataset": "builtin:phantom?images=20",
    "model.torch_dtype": "float32",
    "packing.max_tokens": 512,
    "lr_scheduler.lr_warmup_steps": 0,
    "step_scheduler": {"global_batch_size": 16, "local_batch_size": 8, "max_steps": 3, "val_every_steps": None},
    "checkpoint.enabled": False,
}
BFLOAT16 = {"model.torch_dtype": "bfloat16"}
FLEX = {"model.attn_implementation": "flex_attention"}
COMPILED = {"compute.compile": True}
LORA = {"peft": {"dim": 8, "alpha": 16}}
EVERYWHERE: dict[str, Settings] = {
    "float32": {},
    "float32, from pixels": {"vision_cache.enabled": False},
    "bfloat16": BFLOAT16,
    "bfloat16, from pixels": BFLOAT16 | {"vision_cache.enabled": False},
    "bfloat16, gradient checkpointing": BFLOAT16 | {"compute.gradient_checkpointing": True},
}
ON_GPU: dict[str, Settings] = {
    "float32, FlexAttention": FLEX,
    "bfloat16, FlexAttention": BFLOAT16 | FLEX,
    "bfloat16, compiled": BFLOAT16 | COMPILED,
    "bfloat16, FlexAttention, compiled": BFLOAT16 | FLEX | COMPILED,
    "bfloat16, Liger's loss": BFLOAT16 | {"loss_fn._target_": FUSED_LOSS},
}
# LoRA has other losses: its first line is what the others of its kind are compared with.
WITH_LORA: dict[str, Settings] = {
    "LoRA, float32": LORA,
    "LoRA, bfloat16": LORA | BFLOAT16,
    "LoRA, bfloat16, nf4": LORA | BFLOAT16 | {"model.quantization": "nf4"},
}
NEAR = {"float32": 1e-4, "bfloat16": 2e-2, "nf4": 1e-1}  # how far a loss may be from the first line's, by the last word


def main() -> None:
    """Runs all settings of this device, and exits with 1 if one failed or has other losses."""
    settings = EVERYWHERE | (ON_GPU if torch.cuda.is_available() else {}) | WITH_LORA
    sys.exit(not all(record["right"] for record in run(settings, RESULTS)))


def run(settings: dict[str, Settings], results: Path) -> list[dict[str, Any]]:
    """Runs `{name: settings}`, writes a line for each to `results`, and returns the lines."""
    records: list[dict[str, Any]] = []
    results.mkdir(exist_ok=True)
    for name, chosen in settings.items():
        alike = [record for record in records if record["name"].startswith("LoRA") == name.startswith("LoRA")]
        record = {"name": name} | _tried(chosen, alike[0].get("losses") if alike else None, _tolerance(name))
        records.append(record)
        print(_line(record), flush=True)
        (results / "smoke.json").write_text(json.dumps(records, indent=1) + "\n")
        (results / "smoke.md").write_text("\n".join(_page(records)) + "\n")
    return records


def _tolerance(name: str) -> float:
    return max(limit for word, limit in NEAR.items() if word in name)


def _tried(settings: Settings, expected: Sequence[float] | None, tolerance: float) -> dict[str, Any]:
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="medpix-smoke-") as directory:
            finetune(load_config("demo", SMALL | {"checkpoint.checkpoint_dir": directory} | settings), Ranks())
            losses = [record["loss"] for record in read_json_lines(Path(directory) / METRICS)[0]]
    except Exception:  # any error of a kernel is a result, and the next setting still runs
        return {"right": False, "seconds": time.monotonic() - started, "error": traceback.format_exc()[-3000:]}
    apart = max(abs(a - b) / b for a, b in zip(losses, expected or losses, strict=True))
    return {"right": apart <= tolerance, "seconds": time.monotonic() - started, "losses": losses, "apart": apart}


def _line(record: dict[str, Any]) -> str:
    found = record["error"].splitlines()[-1] if "error" in record else f"losses {record['apart']:.1e} apart"
    return f"{'right' if record['right'] else 'WRONG'}  {record['seconds']:5.1f} s  {record['name']}: {found}"


def _page(records: Sequence[dict[str, Any]]) -> list[str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = ["# Every kernel and dtype once", "", f"{device}, torch {torch.__version__}", "", "```"]
    return [*lines, *map(_line, records), "```"]


if __name__ == "__main__":
    main()
