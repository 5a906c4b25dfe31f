"""Every shipped recipe runs one step at a tiny size, so that none can break unnoticed."""

from pathlib import Path

import pytest

from vlm_core.files import read_json_lines
from vlm_core.finetune import finetune
from vlm_core.recipe import load_config, recipe_names
from vlm_core.run_directory import METRICS
from vlm_core.training.distributed import Ranks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", recipe_names())
def test_a_step(name: str, conversations: Path, tmp_path: Path) -> None:
    named = {"3n": "gemma3n", "qwen2": "qwen2_5_vl", "a3b": "qwen3_vl_moe", "qwen3": "qwen3_vl"}
    family = next((family for part, family in named.items() if part in name), "gemma3")
    tiny = {
        "model.pretrained_model_name_or_path": f"builtin:tiny-{family}",
        "dataset.path_or_dataset": "builtin:phantom?images=40",
        "step_scheduler.max_steps": 1,
        "dataloader.num_workers": 0,  # tests/distributed covers workers: a process that has run a flow cannot fork
        "checkpoint.checkpoint_dir": str(tmp_path),
    }
    config = load_config(name, tiny)
    finetune(config, Ranks(), conversations)
    (record,) = read_json_lines(tmp_path / METRICS)[0]
    assert 0 < record["loss"] < 20
    assert record["grad_norm"] > 0
