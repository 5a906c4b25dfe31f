"""The training loop equals a plain transformers loop, itself with other micro-batches, and itself interrupted."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests.conftest import small_config, tiny_directory
from vlm_core.config import Config
from vlm_core.config.training import FUSED_LOSS
from vlm_core.data.collate import collate
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.loader import plan_epoch
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.families import Family
from vlm_core.files import read_json, read_json_lines
from vlm_core.finetune import finetune
from vlm_core.models.chat import load_chat
from vlm_core.models.freeze import freeze, frozen_parts
from vlm_core.models.load import load_model
from vlm_core.models.lora import apply_lora
from vlm_core.models.weights import load_trained
from vlm_core.run_directory import LATEST, LOWEST_VAL, METRICS, RESULT, VALIDATION
from vlm_core.training.distributed import Ranks
from vlm_core.training.loss import TokenLoss, supervised_tokens
from vlm_core.training.optim import build_scheduler

LORA = {"peft.dim": 4, "peft.dropout": 0.1}


@pytest.fixture(scope="module")
def conversations(small_conversations: Path) -> Path:
    """Few rows: each run here validates on all of them."""
    return small_conversations


def train(directory: Path, conversations: Path, **overrides: Any) -> list[dict[str, Any]]:
    """Trains the small config in `directory` and returns its metrics records."""
    config = small_config(**{"checkpoint.checkpoint_dir": str(directory)} | overrides)
    finetune(config, Ranks(), conversations)
    return read_json_lines(directory / METRICS)[0]


def curve(records: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(record["loss"], record["grad_norm"]) for record in records]


def plain_loop(config: Config, family: Family, conversations: Path, steps: int) -> list[tuple[float, float]]:
    """The readable reference: transformers' own loss, with the usual AdamW and schedule."""
    base = tiny_directory(family.model_type)
    torch.manual_seed(config.rng.seed)
    model: Any = load_model(base, config.model)
    if config.peft:
        model = apply_lora(model, config.peft, family, frozen_parts(config.freeze_config, family))
    else:
        freeze(model, frozen_parts(config.freeze_config, family), family)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.optimizer.lr, betas=(0.9, 0.95), weight_decay=0.01)
    scheduler = build_scheduler(optimizer, config.lr_scheduler, steps)
    dataset, chat = ConversationDataset(conversations, "train"), load_chat(base)
    groups = TokenDataset(build_tokens(conversations, chat), "train").groups
    losses = []
    plan = plan_epoch(
        len(dataset),
        config.step_scheduler.global_batch_size,
        config.rng.seed,
        epoch=0,
        groups=groups if config.packing.enabled else None,
    )
    for indices in plan[:steps]:
        batch = collate([dataset[i] for i in indices], chat)
        loss = model(**batch, num_items_in_batch=torch.tensor(supervised_tokens(batch))).loss
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        losses.append((loss.item(), float(grad_norm)))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return losses


SLOW_TO_REPEAT = ("plain and cached", "packed")  # `make check` runs only the first and the last
SAVINGS = {
    "plain": {"packing.enabled": False, "freeze_config.freeze_vision_tower": False},
    "plain and cached": {"packing.enabled": False},
    "packed": {"packing.max_tokens": 300, "freeze_config.freeze_vision_tower": False},
    "packed and cached": {"packing.max_tokens": 300},
}


@pytest.mark.one_family
@pytest.mark.parametrize(
    "savings",
    [
        pytest.param(savings, id=name, marks=[pytest.mark.slow] if name in SLOW_TO_REPEAT else [])
        for name, savings in SAVINGS.items()
    ],
)
@pytest.mark.parametrize("tuning", [{}, {"peft.dim": 4}], ids=["full", "lora"])
def test_six_steps_equal_a_plain_transformers_loop(
    family: Family, tuning: dict[str, Any], savings: dict[str, Any], conversations: Path, tmp_path: Path
) -> None:
    settings = (
        savings
        | {
            "model.pretrained_model_name_or_path": f"builtin:tiny-{family.model_type}",
            "step_scheduler.max_steps": 6,
            "optimizer.lr": 1e-4,
        }
        | tuning
    )
    ours = curve(train(tmp_path, conversations, **settings))
    reference = plain_loop(small_config(**settings), family, conversations, steps=6)
    # Gemma 3n's AltUp amplifies rounding: a batch differs from its single examples by 9e-6.
    tolerance = 1e-6 if family.model_type == "gemma3" else 2e-5
    assert ours == [pytest.approx(pair, rel=tolerance) for pair in reference]


@pytest.mark.one_family
def test_the_loss_equals_its_definition(family: Family, conversations: Path) -> None:
    base = tiny_directory(family.model_type)
    model = load_model(base, small_config().model).eval()
    dataset = ConversationDataset(conversations, "train")
    batch = collate([dataset[i] for i in range(5)], load_chat(base))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits[:, :-1].float()
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="sum")
    assert TokenLoss(model, load_chat(base))(batch).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_batch_without_labels_adds_exactly_nothing(conversations: Path, tiny_gemma3: Path) -> None:
    model = load_model(tiny_gemma3, small_config().model)
    batch = collate([ConversationDataset(conversations, "train")[0]], load_chat(tiny_gemma3))
    batch["labels"].fill_(-100)
    loss = TokenLoss(model, load_chat(tiny_gemma3))(batch)
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


PLAIN = {"packing.enabled": False}
TINY_3N = {"model.pretrained_model_name_or_path": "builtin:tiny-gemma3n"}


@pytest.mark.parametrize(
    ("common", "division"),
    [(PLAIN, {"step_scheduler.local_batch_size": 2}), ({}, {"packing.max_tokens": 60})]
    + [
        pytest.param(*values, marks=pytest.mark.slow)
        for values in [(PLAIN, {"step_scheduler.local_batch_size": size}) for size in (1, 4)]
        + [({}, {"packing.max_tokens": tokens}) for tokens in (100, 300)]
        + [(tuning, {"compute.gradient_checkpointing": True}) for tuning in (PLAIN, {"peft.dim": 4}, TINY_3N)]
    ],
)
@pytest.mark.slow
def test_micro_batches_do_not_change_the_curve(
    common: dict[str, Any], division: dict[str, Any], conversations: Path, tmp_path: Path
) -> None:
    whole = curve(train(tmp_path / "whole", conversations, **common))
    divided = train(tmp_path / "divided", conversations, **common, **division)
    assert curve(divided) == [pytest.approx(pair, rel=1e-6) for pair in whole]


@pytest.mark.parametrize("tuning", [pytest.param({}, marks=pytest.mark.slow), LORA], ids=["full", "lora"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tuning: dict[str, Any], conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 100 rows in batches of 24: epochs of 5 steps with a short last one, interrupted in the second epoch.
    settings = tuning | {
        "step_scheduler.global_batch_size": 24,
        "step_scheduler.local_batch_size": 12,
        "step_scheduler.num_epochs": 2,
        "step_scheduler.max_steps": 9,
        "step_scheduler.ckpt_every_steps": 7,
    }
    uninterrupted = train(tmp_path / "a", conversations, **settings)

    class Killed(Exception):
        pass

    from vlm_core.training.loop import Trainer

    step = Trainer._optimizer_step

    def killed_at_step_9(trainer: Trainer, batches: Any) -> Any:
        if trainer.progress.step == 9:
            raise Killed
        return step(trainer, batches)

    monkeypatch.setattr(Trainer, "_optimizer_step", killed_at_step_9)
    with pytest.raises(Killed):
        train(tmp_path / "b", conversations, **settings)
    monkeypatch.undo()
    resumed = train(tmp_path / "b", conversations, **settings)
    assert [record["step"] for record in resumed] == list(range(1, 10))
    assert curve(resumed) == curve(uninterrupted)
    elapsed = [record["elapsed_seconds"] for record in resumed]
    assert elapsed == sorted(elapsed)  # the count continues after the interruption
    models = [weights(tmp_path / run / LATEST) for run in "ab"]
    assert models[0].keys() == models[1].keys()
    assert all(models[0][name].equal(models[1][name]) for name in models[0])


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (path,) = (checkpoint / "model").glob("*.safetensors")
    return load_file(path)


@pytest.mark.slow
def test_equal_seeds_give_equal_curves_and_others_differ(conversations: Path, tmp_path: Path) -> None:
    first, second = (curve(train(tmp_path / run, conversations, **LORA)) for run in "ab")
    assert first == second
    assert first != curve(train(tmp_path / "c", conversations, **LORA, **{"rng.seed": 7}))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("model.attn_implementation", "flex_attention", "no backward pass on a CPU"),
        ("loss_fn._target_", FUSED_LOSS, "needs a GPU"),
    ],
)
def test_settings_without_a_cpu_kernel_are_refused_on_a_cpu(
    conversations: Path, tmp_path: Path, key: str, value: str, reason: str
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=reason):
        train(tmp_path, conversations, **{key: value})


def test_a_run_directory_keeps_its_contract(conversations: Path, tmp_path: Path, caplog: Any) -> None:
    settings = {"step_scheduler.ckpt_every_steps": 2, "step_scheduler.val_every_steps": 2}
    records = train(tmp_path, conversations, **settings)
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(record["epoch"] == 0 and record["supervised_tokens"] > 0 for record in records)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} >= {"epoch_0_step_2", "epoch_0_step_3"}
    assert (tmp_path / LATEST).resolve().name == "epoch_0_step_3"
    validation = read_json_lines(tmp_path / VALIDATION)[0]
    assert [record["step"] for record in validation] == [2, 3]
    lowest = min(validation, key=lambda record: record["loss"])["step"]
    assert (tmp_path / LOWEST_VAL).resolve().name == f"epoch_0_step_{lowest}"
    result = read_json(tmp_path / RESULT)
    assert (result["steps"], result["last_loss"]) == (3, records[-1]["loss"])
    assert result["checkpoint"] == str(tmp_path / "epoch_0_step_3")
    with caplog.at_level("INFO"):
        assert train(tmp_path, conversations, **settings) == records
    assert "there is nothing left to do" in caplog.text


@pytest.mark.slow
def test_a_run_resumes_from_a_named_checkpoint(conversations: Path, tmp_path: Path) -> None:
    settings = {"step_scheduler.ckpt_every_steps": 1}
    first = train(tmp_path, conversations, **settings)
    again = train(tmp_path, conversations, **settings, **{"checkpoint.restore_from": "epoch_0_step_1"})
    assert curve(again) == curve(first)
    assert [record["step"] for record in again] == [1, 2, 3]
    with pytest.raises(ValueError, match="not a checkpoint, .*has LATEST, LOWEST_VAL, epoch_0_step_1, "):
        train(tmp_path, conversations, **settings, **{"checkpoint.restore_from": "epoch_0_step_9"})


@pytest.mark.slow
def test_old_checkpoints_are_deleted_and_named_ones_stay(conversations: Path, tmp_path: Path) -> None:
    settings = {
        "step_scheduler.ckpt_every_steps": 1,
        "step_scheduler.max_steps": 5,
        "step_scheduler.val_every_steps": 2,
        "checkpoint.max_recent_checkpoints": 2,
        "optimizer.lr": 1.0,  # the loss rises, so an early one is the lowest
        "lr_scheduler.lr_warmup_steps": 3,
    }
    train(tmp_path, conversations, **settings)
    lowest = (tmp_path / LOWEST_VAL).resolve().name
    names = {path.name for path in tmp_path.glob("epoch_*")}
    assert lowest not in ("epoch_0_step_4", "epoch_0_step_5")
    assert names == {lowest, "epoch_0_step_4", "epoch_0_step_5"}


def test_the_validation_loss_is_over_every_row_once(conversations: Path, tmp_path: Path) -> None:
    train(tmp_path, conversations, **{"step_scheduler.local_batch_size": 4})
    (record,) = read_json_lines(tmp_path / VALIDATION)[0]
    config, base = small_config(), tiny_directory("gemma3")
    model = load_trained(tmp_path / LATEST, base, config.model).eval()
    dataset, chat = ConversationDataset(conversations, "validation"), load_chat(base)
    batches = [collate([dataset[i]], chat) for i in range(len(dataset))]
    with torch.no_grad():
        total = sum(TokenLoss(model, chat)(batch).item() for batch in batches)
    tokens = sum(map(supervised_tokens, batches))
    assert record["supervised_tokens"] == tokens
    assert record["loss"] == pytest.approx(total / tokens, rel=1e-6)


def test_another_run_in_the_directory_is_refused(conversations: Path, tmp_path: Path) -> None:
    train(tmp_path, conversations)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="holds another run \\(optimizer was .*'lr': 0.004"):
        train(tmp_path, conversations, **{"optimizer.lr": 0.5, "step_scheduler.max_steps": 5})
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.one_family
def test_bfloat16_loses_no_small_update(family: Family, conversations: Path, tmp_path: Path) -> None:
    """At the guide's learning rate, most updates of a bfloat16 weight would round to zero."""
    settings = {
        "model.pretrained_model_name_or_path": f"builtin:tiny-{family.model_type}",
        "model.torch_dtype": "torch.bfloat16",
        "optimizer.lr": 1e-5,
        "lr_scheduler.lr_warmup_steps": 0,
        "freeze_config.freeze_vision_tower": True,
    }
    records = train(tmp_path, conversations, **settings)
    plain = train(tmp_path / "fp32", conversations, **settings | {"model.torch_dtype": "float32"})
    assert [r["loss"] for r in records] == [pytest.approx(r["loss"], rel=2e-3) for r in plain]
    assert records[0]["loss"] != plain[0]["loss"]  # it was computed in bfloat16
    before, after = load_model(tiny_directory(family.model_type), small_config().model), weights(tmp_path / LATEST)
    part = "layers.0.self_attn.q_proj.weight"
    (old,) = (p for name, p in before.named_parameters() if name.endswith(part) and "language_model" in name)
    # Qwen's files have the names of its first release: model.layers..., visual.blocks...
    (new,) = (w for name, w in after.items() if name.endswith(part) and "vis" not in name)
    assert (old != new).float().mean() > 0.9
    assert {str(w.dtype) for name, w in after.items() if "vision_tower" in name or "blocks" in name} == {
        "torch.bfloat16"
    }


@pytest.mark.slow
def test_lora_in_bfloat16_is_near_float32(family: Family, conversations: Path, tmp_path: Path) -> None:
    settings = LORA | {
        "model.pretrained_model_name_or_path": f"builtin:tiny-{family.model_type}",
        "peft.dropout": 0.0,
        "freeze_config.freeze_vision_tower": True,
    }
    plain = train(tmp_path / "fp32", conversations, **settings)
    records = train(tmp_path / "bf16", conversations, **settings | {"model.torch_dtype": "bfloat16"})
    assert [r["loss"] for r in records] == [pytest.approx(r["loss"], rel=3e-3) for r in plain]
    assert {str(w.dtype) for w in weights(tmp_path / "bf16" / LATEST).values()} == {"torch.float32"}


def test_changed_data_is_not_trained_on_silently(conversations: Path, tmp_path: Path) -> None:
    train(tmp_path, conversations)
    other = prepare_conversations(small_config(**{"dataset.path_or_dataset": "builtin:phantom?images=20"}))
    with pytest.raises(ValueError, match="was trained on other data"):
        train(tmp_path, other[0], **{"step_scheduler.max_steps": 9})


def test_two_runs_cannot_write_to_one_directory(conversations: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError, match="another run is writing"):
        train(tmp_path, conversations)
    assert not (tmp_path / METRICS).exists()


def test_too_long_examples_are_dropped_or_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limit = {"checkpoint.checkpoint_dir": str(tmp_path), "dataset.max_length": 60, "dataset.max_reject_share": 1.0}
    with caplog.at_level(logging.WARNING):
        result = finetune(small_config(**limit), Ranks())
    assert result["steps"] == 3
    assert re.search(
        r"of 340 examples of train, \d+ are longer than dataset.max_length=60 \(train-\d+.*left out", caplog.text
    )
    with pytest.raises(ValueError, match=r"max_length=60 \(train-\d+.*max_reject_share=0.0 allows fewer"):
        finetune(small_config(**limit | {"dataset.max_reject_share": 0.0}), Ranks())


def test_a_batch_without_images_leaves_no_parameter_without_a_gradient(family: Family) -> None:
    """DDP waits for the gradients of all parameters, including the projector's."""
    base = tiny_directory(family.model_type)
    model, chat = load_model(base, small_config().model), load_chat(base)
    text = [{"type": "text", "text": "What is a lesion?"}]
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    TokenLoss(model, chat)(collate([{"conversation": turns}], chat)).backward()
    waiting = [name for name, p in model.named_parameters() if p.grad is None and "audio" not in name]
    assert waiting == []
