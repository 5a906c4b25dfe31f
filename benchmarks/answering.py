"""Measures generation: from a shared prefix, and with `model.generate`. Also measures reading a dataset."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.memory import PeakMemory
from vlm_core.config import Config
from vlm_core.data.batches import DecodedImages
from vlm_core.data.collate import collate_prompts
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.decode import generate_ids, stop_tokens, without_answer
from vlm_core.generation.prompts import Prompts, prompt_of
from vlm_core.generation.sampling import Decoding, most_likely
from vlm_core.home import medpix_home
from vlm_core.models.chat import load_chat
from vlm_core.models.model_reference import find_model


def answer_ours(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Generates answers from shared prefixes, as `vlm_core.evaluate` does, from pixels."""
    answerer, prompts, images = _questions(config, conversations)
    decoding = Decoding(stop_tokens(answerer.chat), config.evaluation.max_new_tokens, most_likely)
    answers: dict[int, list[int]] = {}
    with PeakMemory() as memory:
        started = time.monotonic()
        for groups in prompts.batches(config.evaluation.batch_size):
            rows = [[prompts.prompts[i] for i in group.members] for group in groups]
            ids = generate_ids(answerer.model, answerer.chat, rows, images, decoding)
            answers |= dict(zip((i for group in groups for i in group.members), ids, strict=True))
        seconds = time.monotonic() - started
    return _result([answers[i] for i in range(len(prompts))], seconds, memory)


def _result(answers: list[list[int]], seconds: float, memory: PeakMemory) -> dict[str, Any]:
    """Returns a record. Its `answers` is a digest of the generated ids: equal ids give equal digests."""
    digest = hashlib.sha256(json.dumps(answers).encode()).hexdigest()
    return {"seconds": seconds, "answered": len(answers), "answers": digest, "peak_mb": memory.megabytes}


def answer_batched(config: Config, conversations: Path, steps: int, batch_size: int | None = None) -> dict[str, Any]:
    """Generates answers with `model.generate` on batches of questions, padded on the left."""
    answerer, prompts, _ = _questions(config, conversations)
    dataset = ConversationDataset(conversations, "train")
    size = batch_size or config.evaluation.batch_size
    answers: list[list[int]] = []
    with PeakMemory() as memory:
        started = time.monotonic()
        for start in range(0, len(prompts), size):
            rows = [dataset[i] for i in range(start, min(start + size, len(prompts)))]
            asked = [{"conversation": without_answer(row["conversation"])} for row in rows]
            inputs = collate_prompts(asked, answerer.chat).items()
            moved = {key: value.to(answerer.model.device) for key, value in inputs}
            output = answerer.model.generate(
                **moved,
                max_new_tokens=config.evaluation.max_new_tokens,
                do_sample=False,
                eos_token_id=list(stop_tokens(answerer.chat)),
                pad_token_id=0,
            )
            answers += output[:, moved["input_ids"].shape[1] :].tolist()
        seconds = time.monotonic() - started
    return _result(answers, seconds, memory)


def answer_one_by_one(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Generates answers with `model.generate`, one question at a time."""
    return answer_batched(config, conversations, steps, batch_size=1)


def _questions(config: Config, conversations: Path) -> tuple[Answerer, Prompts, DecodedImages]:
    answerer = Answerer.load(find_model(None, config.model))
    tokens = TokenDataset(build_tokens(conversations, answerer.chat), "train")
    prompts = Prompts([prompt_of(tokens[i]) for i in range(len(tokens))], answerer.chat)
    return answerer, prompts, DecodedImages.of(conversations, answerer.chat)


def read_cold(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Builds conversations and token ids of a dataset with empty caches."""
    shutil.rmtree(medpix_home() / "cache" / "conversations", ignore_errors=True)
    shutil.rmtree(medpix_home() / "cache" / "tokens", ignore_errors=True)
    return read_warm(config, conversations, steps)


def read_warm(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Does the same with filled caches: the time that a second run needs before its first step."""
    base = Path(config.model.pretrained_model_name_or_path)
    chat = load_chat(base)
    before = psutil.Process().io_counters().read_chars
    with PeakMemory() as memory:
        started = time.monotonic()
        conversations, _ = prepare_conversations(config)
        tokens = TokenDataset(build_tokens(conversations, chat), "train")
        seconds = time.monotonic() - started
    read = psutil.Process().io_counters().read_chars - before
    return {"seconds": seconds, "answered": len(tokens), "peak_mb": memory.megabytes, "bytes_read": read}
