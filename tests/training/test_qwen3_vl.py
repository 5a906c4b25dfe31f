"""Whole runs of Qwen3-VL: planned, killed, resumed, evaluated, merged, and loaded without this project."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from tests.conftest import small_config, tiny_directory
from vlm_core.data.collate import collate
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.evaluate import evaluate
from vlm_core.export import merge
from vlm_core.files import read_json, read_json_lines
from vlm_core.finetune import finetune
from vlm_core.models.chat import load_chat
from vlm_core.models.model_reference import find_model
from vlm_core.models.weights import weights_directory
from vlm_core.run_directory import LATEST, METRICS, PARAMETERS, RESULT
from vlm_core.training.distributed import Ranks
from vlm_core.training.plan import plan_run

pytestmark = pytest.mark.slow

RUNS = {  # everything trains on pixels; or an adapter of attention and experts, on cached features
    "qwen3_vl": {"freeze_config.freeze_vision_tower": False},
    "qwen3_vl_moe": {"peft.dim": 4, "peft.exclude_modules": ["*visual*"]},
}


def config_of(name: str, directory: Path, **overrides: Any) -> Any:
    settings = RUNS[name] | {
        "model.pretrained_model_name_or_path": f"builtin:tiny-{name}",
        "step_scheduler.ckpt_every_steps": 1,
        "checkpoint.checkpoint_dir": str(directory),
    }
    return small_config(**settings | overrides)


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_run(name: str, conversations: Path, tmp_path: Path) -> None:
    whole, cut, base = tmp_path / "whole", tmp_path / "cut", tiny_directory(name)
    chat, config = load_chat(base), config_of(name, whole)
    plan = plan_run(config, base, TokenDataset(build_tokens(conversations, chat), "train"), chat, world_size=1)
    finetune(config, Ranks(), conversations)
    counts = read_json(whole / PARAMETERS)
    on_disk = [counts[part]["frozen"] for part in ("vision_tower", "projector")] if "peft.dim" in RUNS[name] else []
    assert plan.trained == counts["total"]["trainable"]
    assert plan.frozen + sum(on_disk) == counts["total"]["frozen"]

    shutil.copytree(whole, cut, symlinks=True)
    finetune(config_of(name, cut, **{"checkpoint.restore_from": "epoch_0_step_2"}), Ranks(), conversations)
    losses = [[record["loss"] for record in read_json_lines(run / METRICS)[0]] for run in (whole, cut)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    saved = [sorted(weights_directory(run / LATEST).glob("*.safetensors")) for run in (whole, cut)]
    assert [path.read_bytes() for path in saved[0]] == [path.read_bytes() for path in saved[1]]

    asked = {"evaluation.max_new_tokens": 4, "evaluation.limit": 6, "evaluation.controls": ["blank"]}
    evaluate(config_of(name, whole, **asked), str(whole / LATEST), tmp_path / "scores", Ranks(), conversations)
    assert read_json(tmp_path / "scores" / RESULT)["scores"]["model"]["perplexity"]["value"] > 1

    trained = weights_directory(whole / LATEST)
    plain: Any = AutoModelForImageTextToText.from_pretrained(base if "peft.dim" in RUNS[name] else trained)
    if "peft.dim" in RUNS[name]:
        plain = PeftModel.from_pretrained(plain, str(trained))
    merge(find_model(whole / LATEST), tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    batch = collate([ConversationDataset(conversations, "validation")[0]], chat)
    expected = logits(plain, batch)
    assert (logits(merged, batch) - expected).abs().max() < 1e-4 * expected.abs().max()
    untrained = logits(AutoModelForImageTextToText.from_pretrained(base), batch)
    assert (untrained - expected).abs().max() > 1e-3 * expected.abs().max()
