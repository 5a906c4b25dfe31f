"""The model types that appeared with transformers 5.23 train, resume and are evaluated as generic models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import small_config
from tests.other_models import TODAY, directory_of
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.evaluate import evaluate
from vlm_core.files import read_json, read_json_lines
from vlm_core.finetune import finetune
from vlm_core.models.chat import load_chat
from vlm_core.models.freeze import freeze, frozen_parts
from vlm_core.models.load import load_model
from vlm_core.models.weights import weights_directory
from vlm_core.run_directory import LATEST, METRICS, PARAMETERS, RESULT
from vlm_core.training.distributed import Ranks
from vlm_core.training.plan import plan_run
from vlm_core.training.setup import gather


@pytest.fixture(params=TODAY)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def config_of(name: str, directory: Path | None = None, **overrides: Any) -> Any:
    settings = {
        "model.pretrained_model_name_or_path": str(directory_of(name)),
        "step_scheduler.global_batch_size": 4,
        "step_scheduler.local_batch_size": 4,
        "step_scheduler.max_steps": 3,
        "step_scheduler.ckpt_every_steps": 1,
        "packing.enabled": False,
        "vision_cache.enabled": False,
        "checkpoint.checkpoint_dir": directory and str(directory),
    }
    return small_config(**settings | overrides)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [{}, {"peft.dim": 4}], ids=["full", "lora"])
def test_a_run_is_planned_killed_resumed_and_evaluated(
    name: str, tuning: dict[str, Any], conversations: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    chat = load_chat(directory_of(name))
    plan = plan_run(
        config_of(name, **tuning),
        directory_of(name),
        TokenDataset(build_tokens(conversations, chat), "train"),
        chat,
        world_size=1,
    )
    finetune(config_of(name, whole, **tuning), Ranks(), conversations)
    shutil.copytree(whole, cut, symlinks=True)
    finetune(config_of(name, cut, **tuning | {"checkpoint.restore_from": "epoch_0_step_2"}), Ranks(), conversations)
    losses = [[record["loss"] for record in read_json_lines(run / METRICS)[0]] for run in (whole, cut)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    saved = [weights_directory(run / LATEST).glob("*.safetensors") for run in (whole, cut)]
    assert [path.read_bytes() for path in sorted(saved[0])] == [path.read_bytes() for path in sorted(saved[1])]
    counts = read_json(whole / PARAMETERS)["total"]
    assert [plan.trained, plan.frozen] == [counts["trainable"], counts["frozen"]]
    asked = config_of(name, **{"evaluation.max_new_tokens": 4, "evaluation.limit": 6, "evaluation.controls": []})
    evaluate(asked, str(whole / LATEST), tmp_path / "scores", Ranks(), conversations)
    assert read_json(tmp_path / "scores" / RESULT)["scores"]["model"]["perplexity"]["value"] > 1


def test_every_table_with_a_row_per_token_is_an_embedding(name: str) -> None:
    """The per-layer embeddings of Gemma 4 E2B are half of that model: `freeze_embeddings` freezes them too."""
    config, family = config_of(name, **{"freeze_config.freeze_embeddings": True}), load_chat(directory_of(name)).family
    model = load_model(directory_of(name), config.model)
    freeze(model, frozen_parts(config.freeze_config, family), family)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tables = {name for name, _ in model.named_parameters() if "embed_tokens" in name}
    assert len(tables) == (2 if name == "gemma4_e2b" else 1)
    assert not trained & tables
    assert any("layers.0" in name for name in trained)


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
