"""Whole runs of Gemma 4: planned, killed, resumed, evaluated, merged and loaded without this project."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.conftest import small_config, tiny_directory
from vlm_core.data.collate import collate
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.evaluate import evaluate
from vlm_core.export import merge
from vlm_core.files import read_json, read_json_lines
from vlm_core.finetune import finetune
from vlm_core.models.chat import FastChat, load_chat
from vlm_core.models.freeze import freeze, frozen_parts
from vlm_core.models.load import load_model
from vlm_core.models.model_reference import find_model
from vlm_core.models.weights import weights_directory
from vlm_core.run_directory import LATEST, METRICS, PARAMETERS, RESULT
from vlm_core.training.distributed import Ranks
from vlm_core.training.plan import plan_run
from vlm_core.training.setup import gather

EVA = {"peft.dim": 4, "peft.init_lora_weights": "eva"}  # ranks by the data


def config_of(name: str, directory: Path | None = None, **overrides: Any) -> Any:
    settings = {
        "model.pretrained_model_name_or_path": f"builtin:tiny-{name}",
        "step_scheduler.ckpt_every_steps": 1,
        "lr_scheduler.lr_warmup_steps": 0,
        "checkpoint.checkpoint_dir": directory and str(directory),
    }
    return small_config(**settings | overrides)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tuning"),
    [("gemma4", {"peft.dim": 4}), ("gemma4_26b", {}), ("gemma4_unified", EVA)],
    ids=["small-lora", "large-full", "unified-eva"],
)
def test_a_run_is_planned_killed_resumed_evaluated_and_exported(
    name: str, tuning: dict[str, Any], conversations: Path, tmp_path: Path
) -> None:
    whole, cut, base = tmp_path / "whole", tmp_path / "cut", tiny_directory(name)
    chat = load_chat(base)
    tokens = TokenDataset(build_tokens(conversations, chat), "train")
    plan = plan_run(config_of(name, **tuning), base, tokens, chat, world_size=1)
    finetune(config_of(name, whole, **tuning), Ranks(), conversations)
    shutil.copytree(whole, cut, symlinks=True)
    finetune(config_of(name, cut, **tuning | {"checkpoint.restore_from": "epoch_0_step_2"}), Ranks(), conversations)
    losses = [[record["loss"] for record in read_json_lines(run / METRICS)[0]] for run in (whole, cut)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    saved = [weights_directory(run / LATEST).glob("*.safetensors") for run in (whole, cut)]
    assert [path.read_bytes() for path in sorted(saved[0])] == [path.read_bytes() for path in sorted(saved[1])]
    counts = read_json(whole / PARAMETERS)
    tower = sum(counts.get("vision_tower", {}).values())  # not on the device: its features are cached
    moved = 0.2 if tuning == EVA else 0  # ranks move to modules of other sizes
    assert plan.trained == pytest.approx(counts["total"]["trainable"], rel=moved)
    assert plan.frozen == counts["total"]["frozen"] - tower
    asked = config_of(name, **{"evaluation.max_new_tokens": 4, "evaluation.limit": 6, "evaluation.controls": []})
    evaluate(asked, str(whole / LATEST), tmp_path / "scores", Ranks(), conversations)
    assert read_json(tmp_path / "scores" / RESULT)["scores"]["model"]["perplexity"]["value"] > 1
    exported = tmp_path / "exported"
    merge(find_model(str(whole / LATEST), None), exported)
    plain = FastChat(AutoProcessor.from_pretrained(exported), chat.family)
    batch = collate([ConversationDataset(conversations, "train")[0]], plain)
    models: list[Any] = [AutoModelForImageTextToText.from_pretrained(path).eval() for path in (base, exported)]
    if tuning:
        adapted = PeftModel.from_pretrained(
            AutoModelForImageTextToText.from_pretrained(base), str(weights_directory(whole / LATEST))
        )
        models.append(adapted.eval())
    else:
        models.append(AutoModelForImageTextToText.from_pretrained(weights_directory(whole / LATEST)).eval())
    with torch.no_grad():
        before, merged, loaded = (model(**batch).loss for model in models)
    assert float(merged) == pytest.approx(float(loaded), rel=1e-5)
    assert float(before) > float(loaded)


@pytest.mark.parametrize("name", ["gemma4", "gemma4_26b"])
def test_every_table_with_a_row_per_token_is_an_embedding(name: str) -> None:
    """The per-layer embeddings of Gemma 4 E2B are half of that model: `freeze_embeddings` freezes them too."""
    directory, config = tiny_directory(name), small_config(**{"freeze_config.freeze_embeddings": True})
    family = load_chat(directory).family
    model = load_model(directory, config.model)
    freeze(model, frozen_parts(config.freeze_config, family), family)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tables = {name for name, _ in model.named_parameters() if "embed_tokens" in name}
    assert len(tables) == (2 if name == "gemma4" else 1)
    assert not trained & tables
    assert any("layers.0" in name for name in trained)


def test_a_model_without_a_tower_has_nothing_to_cache(
    conversations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = gather(config_of("gemma4_unified", tmp_path / "run"), tmp_path / "run", Ranks(), conversations)
    assert "vision_cache has no effect: the model type gemma4_unified has no vision tower" in caplog.text
    assert inputs.config.packing.enabled
    assert not inputs.config.vision_cache.enabled


def test_earlier_answers_without_a_prompt_of_their_own_are_an_error(tmp_path: Path) -> None:
    """Gemma 4's template shows an earlier answer without the empty thought that it was asked with."""
    turns = [("user", "Which organ?"), ("assistant", "Lung."), ("user", "Which side?"), ("assistant", "Left.")]
    rows = [{"messages": [{"role": role, "content": f"{text} {i}"} for role, text in turns]} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"dataset.image_column": None, "dataset.conversation_column": "messages"}
    settings = {"dataset.path_or_dataset": str(tmp_path / "rows.jsonl"), **columns}
    with pytest.raises(ValueError, match=r"\d+ examples of train have answers before the last one.*=last_answer"):
        gather(config_of("gemma4_26b", tmp_path / "run", **settings), tmp_path / "run", Ranks())
    last = {"dataset.train_on": "last_answer"}
    inputs = gather(config_of("gemma4_26b", tmp_path / "run", **settings | last), tmp_path / "run", Ranks())
    example, tokenizer = inputs.train[0], inputs.chat.processor.tokenizer
    pairs = list(zip(example.input_ids, example.supervised, strict=True))
    asked, answered = (tokenizer.decode([i for i, target in pairs if target is kind]) for kind in (False, True))
    assert asked.count("<|turn>model\nLung.") == 1
    assert "<|turn>model\n<|channel>thought\n<channel|>" in asked
    assert answered.startswith("Left. ")
    assert answered.endswith("<turn|>")
