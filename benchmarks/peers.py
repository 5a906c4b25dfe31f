"""Trains with TRL's SFTTrainer on the same examples in the same optimizer steps."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Image, Sequence, Value
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.memory import PeakMemory
from benchmarks.training import WARM_UP, order_of, repeated, with_plain_lora
from benchmarks.workload import BFLOAT16, decode
from vlm_core.config import Config
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.conversation import images_of, questions_and_answers
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.families import GEMMA3
from vlm_core.models.chat import load_chat
from vlm_core.models.prepare import prepare_model

FEATURES = Features({"images": Sequence(Image()), "prompt": Value("string"), "completion": Value("string")})


def trl(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Trains with completion-only loss; TRL's bf16 and gradient checkpointing are off, as for the other contenders."""
    base = Path(config.model.pretrained_model_name_or_path)
    chat = load_chat(base)
    dataset = Dataset.from_list(list(_rows(config, conversations, chat, steps)), features=FEATURES)
    clock = Clock()
    with PeakMemory() as memory:
        trainer = SFTTrainer(
            model=prepare_model(with_plain_lora(config), base, GEMMA3, None),
            processing_class=chat.processor,
            train_dataset=dataset,
            callbacks=[clock],
            args=_arguments(config, steps),
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": clock.ends[steps] - clock.ends[WARM_UP], "losses": losses, "peak_mb": memory.megabytes}


class Clock(TrainerCallback):
    """Records the time at which each optimizer step ended."""

    def __init__(self) -> None:
        self.ends: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends[state.global_step] = time.monotonic()


def _rows(config: Config, conversations: Path, chat: ChatModel, steps: int) -> Iterator[dict[str, Any]]:
    source = ConversationDataset(conversations, "train")
    tokens = TokenDataset(build_tokens(conversations, chat), "train")
    for index in (i for step in repeated(order_of(config, tokens), steps) for i in step):
        conversation = source.conversations[index]["conversation"]
        (image,), ((question, answer),) = images_of(conversation), questions_and_answers(conversation)
        yield {
            "images": [decode(source.images[image]["encoded"])],
            # Plain texts, not conversations: those would also supervise the line break after the answer.
            "prompt": f"<bos><start_of_turn>user\n<start_of_image>{question}<end_of_turn>\n<start_of_turn>model\n",
            "completion": f"{answer}<end_of_turn>",
        }


def _arguments(config: Config, steps: int) -> SFTConfig:
    schedule = config.step_scheduler
    return SFTConfig(
        output_dir=str(Path(config.checkpoint.checkpoint_dir or "") / "trl"),
        max_length=None,
        bf16=BFLOAT16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        completion_only_loss=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=schedule.local_batch_size,
        gradient_accumulation_steps=schedule.batch_size // schedule.local_batch_size,
        max_steps=steps,
        learning_rate=config.optimizer.lr,
        lr_scheduler_type="constant",
        adam_beta1=config.optimizer.betas[0],
        adam_beta2=config.optimizer.betas[1],
        weight_decay=0.01,
    )
