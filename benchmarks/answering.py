"""Measures answers with the likelihood of the reference: from a shared prefix, and with `model.generate`.

Also measures reading a dataset.
"""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn import functional

from benchmarks.memory import PeakMemory
from vlm_core.config import Config
from vlm_core.data.batches import DecodedImages
from vlm_core.data.chat_model import Batch
from vlm_core.data.collate import IGNORE_INDEX, collate, collate_prompts
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.token_cache import TokenDataset, TokenizedExample, build_tokens
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.decode import answer_and_score, stop_tokens, without_answer
from vlm_core.generation.prompts import Prompts
from vlm_core.generation.sampling import Decoding, most_likely
from vlm_core.home import medpix_home
from vlm_core.models.chat import load_chat
from vlm_core.models.forward import on_device
from vlm_core.models.model_reference import find_model


def answer_ours(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Generates answers and scores the references from shared prefixes, as `vlm_core.evaluate` does, from pixels."""
    answerer, tokens, images = _questions(config, conversations)
    examples = Prompts(tokens, answerer.chat)
    decoding = Decoding(stop_tokens(answerer.chat), config.evaluation.max_new_tokens, most_likely)
    answers: dict[int, list[int]] = {}
    logprob = 0.0
    with PeakMemory() as memory:
        started = time.monotonic()
        for groups in examples.batches(config.evaluation.batch_size):
            rows = [[examples.prompts[i] for i in group.members] for group in groups]
            members = [i for group in groups for i in group.members]
            ids, scores = answer_and_score(answerer.model, answerer.chat, rows, images, decoding, range(len(members)))
            answers |= dict(zip(members, ids, strict=True))
            logprob += sum(score.logprob for score in scores)
        seconds = time.monotonic() - started
    return _result([answers[i] for i in range(len(examples))], logprob, seconds, memory)


def _result(answers: list[list[int]], logprob: float, seconds: float, memory: PeakMemory) -> dict[str, Any]:
    """Returns a record. Its `answers` is a digest of the generated ids; `losses` has the mean one of the references."""
    digest = hashlib.sha256(json.dumps(answers).encode()).hexdigest()
    return {
        "seconds": seconds,
        "answered": len(answers),
        "answers": digest,
        "losses": [-logprob / len(answers)],
        "peak_mb": memory.megabytes,
    }


def answer_batched(config: Config, conversations: Path, steps: int, batch_size: int = 16) -> dict[str, Any]:
    """Generates answers with `model.generate` on batches of questions, and scores the references in a second pass."""
    answerer, _, _ = _questions(config, conversations)
    dataset = ConversationDataset(conversations, "train")
    stops = list(stop_tokens(answerer.chat))
    answers: list[list[int]] = []
    logprob = 0.0
    with PeakMemory() as memory, torch.no_grad():
        started = time.monotonic()
        for start in range(0, len(dataset), batch_size):
            rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
            asked = [{"conversation": without_answer(row["conversation"])} for row in rows]
            inputs = on_device(collate_prompts(asked, answerer.chat), answerer.model)
            length = config.evaluation.max_new_tokens
            output = answerer.model.generate(
                **inputs, max_new_tokens=length, do_sample=False, eos_token_id=stops, pad_token_id=0
            )
            answers += output[:, inputs["input_ids"].shape[1] :].tolist()
            logprob += _reference_logprob(answerer.model, on_device(collate(rows, answerer.chat), answerer.model))
        seconds = time.monotonic() - started
    return _result(answers, logprob, seconds, memory)


def _reference_logprob(model: Any, batch: Batch) -> float:
    targets = batch.pop("labels")[:, 1:]
    chosen = targets != IGNORE_INDEX
    logits = model(**batch).logits[:, :-1][chosen].float()
    return -float(functional.cross_entropy(logits, targets[chosen], reduction="sum"))


def answer_one_by_one(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Does the same, one question at a time."""
    return answer_batched(config, conversations, steps, batch_size=1)


def _questions(config: Config, conversations: Path) -> tuple[Answerer, list[TokenizedExample], DecodedImages]:
    answerer = Answerer.load(find_model(None, config.model))
    tokens = TokenDataset(build_tokens(conversations, answerer.chat), "train")
    examples = [tokens[i] for i in range(len(tokens))]
    return answerer, examples, DecodedImages.of(conversations, answerer.chat)


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
