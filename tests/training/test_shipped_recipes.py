"""Every shipped recipe runs one step at a tiny size, so that none can break unnoticed."""

from pathlib import Path

import pytest

from vlm_core.data.prepare import prepare_conversations
from vlm_core.files import read_json_lines
from vlm_core.finetune import finetune
from vlm_core.recipe import RECIPES, load_config, recipe_names
from vlm_core.run_directory import METRICS
from vlm_core.training.distributed import Ranks

pytestmark = pytest.mark.slow
# MedGemma's recipe trains on DICOM series of three slices.
DATA = {"medgemma_4b_lora": "builtin:phantom?images=12&form=dicom&slices=3"}


# A recipe with a base trains with the settings of its base, on other data or with another model.
OWN = [name for name in recipe_names() if "base_recipe:" not in (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", OWN)
def test_a_step(name: str, tmp_path: Path) -> None:
    families = {"3n": "gemma3n", "qwen2": "qwen2_5_vl", "qwen3": "qwen3_vl"}
    family = next((family for part, family in families.items() if part in name), "gemma3")
    tiny = {
        "model.pretrained_model_name_or_path": f"builtin:tiny-{family}",
        "dataset.path_or_dataset": DATA.get(name, "builtin:phantom?images=40"),
        "step_scheduler.max_steps": 1,
        "dataloader.num_workers": 0,  # tests/distributed covers workers: a process that has run a flow cannot fork
        "checkpoint.checkpoint_dir": str(tmp_path),
    }
    config = load_config(name, tiny)
    finetune(config, Ranks(), prepare_conversations(config)[0])
    (record,) = read_json_lines(tmp_path / METRICS)[0]
    assert 0 < record["loss"] < 20
    assert record["grad_norm"] > 0
