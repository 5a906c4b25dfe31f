"""The guide's configuration works as written: its YAML blocks load unchanged, and mean what they say."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.conftest import small_config
from vlm_core.arguments import generate_parser
from vlm_core.config import OptimizerConfig
from vlm_core.data.collate import collate
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.families import GEMMA3
from vlm_core.files import read_json, read_json_lines
from vlm_core.finetune import finetune
from vlm_core.guide import GENERATE_FLAGS, translate
from vlm_core.models.chat import FastChat
from vlm_core.models.load import load_processor
from vlm_core.models.model_reference import find_model
from vlm_core.models.weights import load_trained
from vlm_core.recipe import load_config
from vlm_core.run_directory import LATEST, LOSS_PLOT, LOWEST_VAL, METRICS, PROGRESS, VALIDATION
from vlm_core.training.distributed import Ranks
from vlm_core.training.optim import build_optimizer

GUIDE = """
dataloader:
  _target_: torchdata.stateful_dataloader.StatefulDataLoader
  batch_size: 1
  collate_fn:
    _target_: nemo_automodel.datasets.vlm.collate_fns.qwen2_5_collate_fn
freeze_config:
  freeze_embeddings: true        # Freeze embeddings
  freeze_vision_tower: true      # Freeze vision encoder (recommended for VLMs)
  freeze_audio_tower: true       # Freeze audio encoder (for multimodal models)
  freeze_language_model: false   # Allow language model adaptation
peft:
  peft_fn: nemo_automodel._peft.lora.apply_lora_to_linear_modules
  match_all_linear: False
  exclude_modules:  # exclude all vision and audio modules and lm_head
    - "*vision_tower*"
    - "*vision*"
    - "*visual*"
    - "*audio*"
    - "*image_encoder*"
    - "*lm_head*"
  dim: 8
  alpha: 32
  use_triton: True
checkpoint:
  enabled: true
  checkpoint_dir: vlm_checkpoints/
  model_save_format: torch_save  # or "safetensors"
  save_consolidated: false
loss_fn:
  _target_: nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy
optimizer:
  _target_: torch.optim.AdamW
  lr: 1e-5
  weight_decay: 0.01
  betas: [0.9, 0.95]
dataset:
  _target_: nemo_automodel.datasets.vlm.datasets.make_medpix_vqa_dataset
  path_or_dataset: builtin:phantom?images=40
  split: train[:60]
model:
  pretrained_model_name_or_path: builtin:tiny-gemma3
  torch_dtype: torch.float32
step_scheduler: {max_steps: 2}
wandb:
  project: nemo_automodel_vlm
  entity: your_entity
  name: gemma3_medpix_vqa_experiment
  save_dir: ./wandb_logs
"""


@pytest.mark.slow
def test_the_guides_blocks_load_and_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guide.yaml").write_text(GUIDE)
    config = load_config(tmp_path / "guide.yaml")
    assert config.step_scheduler.local_batch_size == 1
    assert config.checkpoint.save_consolidated == "never"
    assert config.peft is not None
    assert config.peft.use_triton
    assert load_config(tmp_path / "guide.yaml", yaml.safe_load(config.to_yaml())) == config
    with caplog.at_level(logging.INFO):
        assert finetune(config, Ranks())["steps"] == 2
    by_hand = f"to send it by hand: python -m tasks.trackers.wandb_run --follow {tmp_path / 'vlm_checkpoints'}"
    assert by_hand in caplog.text
    assert "an adapter is saved in safetensors" in caplog.text
    assert (tmp_path / "vlm_checkpoints" / LATEST / "model" / "adapter_model.safetensors").is_file()


LINEAR = "torch.optim.lr_scheduler.LinearLR"


def test_a_schedule_may_go_by_the_name_of_its_class() -> None:
    assert small_config(**{"lr_scheduler._target_": LINEAR}).lr_scheduler.lr_decay_style == "linear"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("loss_fn._target_", "torch.nn.CrossEntropyLoss", "there is one loss"),
        (
            "lr_scheduler._target_",
            "torch.optim.lr_scheduler.StepLR",
            "is not a supported schedule; use one of",
        ),
        (
            "lr_scheduler",
            {"_target_": LINEAR, "lr_decay_style": "cosine"},
            "and lr_scheduler.lr_decay_style=cosine are one setting",
        ),
        ("dataloader.batch_size", 4, "batch_size=4 and step_scheduler.local_batch_size=8 are one setting"),
        ("peft.peft_fn", "os.system", "apply_lora_to_linear_modules"),
        ("wandb", {"project": "p", "api_key": "secret"}, "unknown config key 'wandb.api_key'"),
    ],
)
def test_what_is_not_the_guides_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**{key: value})


def test_flags_of_the_guides_script_are_named_and_not_needed(caplog: pytest.LogCaptureFixture) -> None:
    command = ["--is-peft", "--peft-exclude-modules", "*vision*", "*lm_head*", "--prompt=Why?"]
    assert vars(generate_parser(None).parse_args(command)) == vars(generate_parser(None).parse_args(["--prompt=Why?"]))
    for flag, reason in GENERATE_FLAGS.items():
        assert f"{flag} has no effect: {reason}" in caplog.text


def test_an_override_replaces_the_same_setting_in_the_other_dialect(tmp_path: Path) -> None:
    (tmp_path / "guide.yaml").write_text(GUIDE)
    ours = {"step_scheduler.local_batch_size": 2, "checkpoint.save_consolidated": "final"}
    config = load_config(tmp_path / "guide.yaml", ours)
    assert (config.step_scheduler.local_batch_size, config.checkpoint.save_consolidated) == (2, "final")
    guides = {"dataloader.batch_size": 3, "checkpoint.save_consolidated": True, "model.torch_dtype": "torch.bfloat16"}
    config = load_config(tmp_path / "guide.yaml", ours | guides | {"step_scheduler.local_batch_size": 3})
    assert (config.step_scheduler.local_batch_size, config.checkpoint.save_consolidated) == (3, "every")
    assert config.model.torch_dtype == "bfloat16"
    mine = {"dataset._target_": "mine.rows", "dataloader.collate_fn._target_": "mine.collate"}
    (tmp_path / "mine.yaml").write_text(load_config(tmp_path / "guide.yaml", mine).to_yaml())
    config = load_config(tmp_path / "mine.yaml", dict.fromkeys(mine))
    assert (config.dataset.target, config.dataloader.collate_fn.target) == (None, None)


def test_translation_touches_nothing_else() -> None:
    tree = yaml.safe_load(small_config().to_yaml())
    assert translate(tree) == tree
    older = {"dataloader": {"_target_": None, "batch_size": None}, "peft": None, "lr_scheduler": {"_target_": None}}
    assert translate(older) == {"dataloader": {}, "peft": None, "lr_scheduler": {}}
    wrong = {"model": 3, "dataset": ["a"], "lr_scheduler": None}
    assert translate(wrong) == wrong  # validation names what is wrong
    with pytest.raises(ValueError, match="only StatefulDataLoader is supported"):
        translate({"dataloader": {"_target_": "torch.utils.data.DataLoader"}})


def train(directory: Path, conversations: Path, **overrides: Any) -> dict[str, Any]:
    return finetune(small_config(**{"checkpoint.checkpoint_dir": str(directory)} | overrides), Ranks(), conversations)


def test_an_optimizer_of_torch(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(2, 2)
    made = build_optimizer(model, OptimizerConfig(_target_="torch.optim.Adam", lr=0.1, betas=(0.8, 0.9)))
    assert type(made) is torch.optim.Adam
    assert (made.defaults["lr"], made.defaults["betas"]) == (0.1, (0.8, 0.9))
    assert not caplog.text
    made = build_optimizer(model, OptimizerConfig(_target_="torch.optim.SGD", betas=(0.8, 0.9)))
    assert type(made) is torch.optim.SGD
    assert "optimizer.betas has no effect: SGD does not take it" in caplog.text
    # Its eps is a pair: the setting of that name is another one.
    assert isinstance(build_optimizer(model, OptimizerConfig(_target_="torch.optim.Adafactor")).defaults["eps"], tuple)
    with pytest.raises(ValueError, match="is not supported"):
        build_optimizer(model, OptimizerConfig(_target_="torch.optim.LBFGS"))


@pytest.mark.parametrize("target", ["torch.optim.Optimizer", "torch.optim.lr_scheduler", "torch.hub.load", "os.system"])
def test_what_is_no_optimizer_is_refused_before_anything_is_loaded(target: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a torch optimizer; use for example torch.optim.AdamW"):
        finetune(small_config(**{"optimizer._target_": target, "checkpoint.checkpoint_dir": str(tmp_path)}), Ranks())
    assert list(tmp_path.iterdir()) == []


def test_training_stops_when_the_validation_loss_no_longer_falls(
    conversations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # At this learning rate nothing is learnt: the loss rises from the first step on.
    settings = {"optimizer.lr": 5.0, "lr_scheduler.lr_warmup_steps": 0, "step_scheduler.max_steps": 30}
    settings |= {"step_scheduler.val_every_steps": 1, "step_scheduler.early_stop_patience": 2}
    result = train(tmp_path, conversations, **settings)
    losses = [record["loss"] for record in read_json_lines(tmp_path / VALIDATION)[0]]
    assert result["steps"] == len(losses) < 30
    assert min(losses) == losses[-3]
    assert Path(result["checkpoint"]) == (tmp_path / LOWEST_VAL).resolve()  # what is evaluated is the best
    progress = read_json(tmp_path / LATEST / PROGRESS)
    assert (progress["step"], progress["validations_since_lowest"]) == (len(losses), 2)
    # The same command finds it finished.
    caplog.set_level(logging.INFO)
    assert train(tmp_path, conversations, **settings) == result
    assert "is finished at" in caplog.text


def logits(model: Any, conversations: Path, processor: Any) -> torch.Tensor:
    batch = collate([ConversationDataset(conversations, "train")[0]], FastChat(processor, GEMMA3))
    with torch.no_grad():
        return model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits


@pytest.mark.slow
def test_a_distributed_checkpoint_resumes_and_loads_everywhere(
    conversations: Path, tmp_path: Path, tiny_gemma3: Path
) -> None:
    saved = {"checkpoint.model_save_format": "torch_save"}
    plain = train(tmp_path / "plain", conversations)
    whole = train(tmp_path / "whole", conversations, **saved)
    train(tmp_path / "parts", conversations, **saved, **{"step_scheduler.ckpt_every_steps": 2})
    # Goes on from the second of three steps.
    (tmp_path / "parts" / LATEST).unlink()
    again = {"checkpoint.restore_from": "epoch_0_step_2", "step_scheduler.ckpt_every_steps": 2}
    train(tmp_path / "parts", conversations, **saved, **again)
    curves = [
        [record["loss"] for record in read_json_lines(tmp_path / name / METRICS)[0]]
        for name in ("plain", "whole", "parts")
    ]
    assert curves[0] == curves[1] == curves[2]
    processor = load_processor(tiny_gemma3)
    expected = logits(
        AutoModelForImageTextToText.from_pretrained(f"{plain['checkpoint']}/model"), conversations, processor
    )
    files = find_model(str(tmp_path / "parts" / LATEST))
    assert logits(load_trained(files.weights, files.base, files.config), conversations, processor).equal(expected)
    # Only the last one has a directory for plain transformers as well.
    assert not (tmp_path / "parts" / "epoch_0_step_2" / "model" / "consolidated").exists()
    consolidated = AutoModelForImageTextToText.from_pretrained(f"{whole['checkpoint']}/model/consolidated")
    assert logits(consolidated, conversations, processor).equal(expected)
    assert load_processor(Path(whole["checkpoint"]) / "model" / "consolidated")
    assert (tmp_path / "whole" / LOSS_PLOT).read_bytes().startswith(b"\x89PNG")
