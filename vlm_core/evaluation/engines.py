"""Models behind endpoints in `compare_with`, as `NAME=openai:MODEL@URL`: they answer the questions of local models.

So a model that vLLM serves, or a commercial one, stands in the same report. It gets questions and images, and gives
texts only: scores that need likelihoods or confidences have no value for it.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final

from PIL import Image

from vlm_core.config import Config
from vlm_core.config.evaluation import ENGINE
from vlm_core.data.conversation import (
    Conversation,
    Part,
    images_of,
    map_images,
    map_parts,
    own_value,
    text_part,
    without_images,
)
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.images import decode_image
from vlm_core.evaluation.answering import Questions
from vlm_core.evaluation.conditions import black_image
from vlm_core.evaluation.endpoint import Endpoint
from vlm_core.evaluation.intervals import CaseBootstrap, difference, interval
from vlm_core.evaluation.metrics import ScoredAnswer, Use, columns_of, metrics_for
from vlm_core.evaluation.protocols import PROTOCOLS, with_request
from vlm_core.evaluation.result_names import BLANK, QUESTION_ONLY, RIGHT, SHUFFLED
from vlm_core.evaluation.scores import Question
from vlm_core.evaluation.store import Store
from vlm_core.home import medpix_home
from vlm_core.training.distributed import Ranks, decided_by_main

ALLOWED: Final = "MEDPIX_ENGINES"  # environment variable: addresses that questions and images may be sent to
BLACK = -1  # stands for the index of an image


class Engine(Endpoint):
    """A model behind an endpoint that answers questions about images."""

    allowed_by, role, sends = ALLOWED, "the engine", "questions and images"

    @classmethod
    def of(cls, reference: str) -> "Engine":
        """Returns the engine of `openai:MODEL@URL`; raises ValueError if it is none, or may not be asked."""
        found = re.fullmatch(rf"{ENGINE}(.+?)@(https?://.+)", reference)
        if not found:
            raise ValueError(f"{reference!r} is not openai:MODEL@URL, such as openai:qwen3@http://127.0.0.1:8000/v1")
        return cls(model=found[1], url=found[2])

    @cached_property
    def fingerprint(self) -> str:
        """What tells it from other models."""
        return f"{ENGINE}{self.model}@{self.url}"

    def answers(self, questions: Questions, conditions: Sequence[str], config: Config) -> dict[str, list[ScoredAnswer]]:
        """Returns `{condition: one answer per question}`; answers that are stored are not asked again."""
        evaluation, dataset = config.evaluation, ConversationDataset(questions.conversations, "validation")
        settings = {
            "max_tokens": evaluation.max_new_tokens,
            "temperature": evaluation.temperature,
            "top_p": evaluation.top_p,
            "seed": config.rng.seed,
        }
        store = Store(medpix_home() / "cache" / "answers", {"engine": self.fingerprint, **settings})
        asked = {c: [_asked(c, row, questions) for row in questions.rows] for c in conditions}
        keys = {c: [_key(one, questions.hashes) for one in found] for c, found in asked.items()}
        distinct = {key: one for c in conditions for key, one in zip(keys[c], asked[c], strict=True)}
        missing = {key: one for key, one in distinct.items() if key not in store}
        self.ask_all(missing, lambda one: self._answer(one, dataset, settings), store, "answer")
        return {c: [ScoredAnswer(**_fields(store[key])) for key in found] for c, found in keys.items()}

    def _answer(self, asked: Conversation, dataset: ConversationDataset, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `{text, tokens, truncated}` of one question; raises ValueError for a reply without an answer."""
        messages: Any = map_parts(asked, lambda part: _sent(part, dataset))
        reply = self.client.chat.completions.create(model=self.model, messages=messages, **settings)
        choices, usage = getattr(reply, "choices", None), getattr(reply, "usage", None)
        if not choices:
            raise ValueError("a reply is not a chat completion")
        return {
            "text": (choices[0].message.content or "").strip(),
            "tokens": usage.completion_tokens if usage else 0,
            "truncated": choices[0].finish_reason == "length",
        }


def _asked(condition: str, row: Mapping[str, Any], questions: Questions) -> Conversation:
    """Returns what is asked under a condition, without the last answer; its images are indices, or BLACK."""
    conversation: Conversation = row["conversation"]
    if condition in PROTOCOLS:
        conversation = with_request(condition, conversation, questions.closed_questions)
    elif condition == QUESTION_ONLY:
        conversation = without_images(conversation)
    elif condition == BLANK:
        conversation = map_images(conversation, lambda index: BLACK)
    elif condition == SHUFFLED and (shown := images_of(conversation)):
        assert questions.shuffled is not None
        others = iter(questions.shuffled[tuple(shown)])
        conversation = map_images(conversation, lambda index: next(others))
    return conversation[:-1]


def _key(asked: Conversation, hashes: Sequence[str]) -> str:
    """Returns the key of a question: its texts, and the pixels of its images."""
    named = map_images(asked, lambda index: BLANK if index == BLACK else hashes[index])
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _sent(part: Part, dataset: ConversationDataset) -> Any:
    """Returns a part as the protocol of OpenAI has it; an image, held as its index, becomes a PNG."""
    value = own_value(part)
    if isinstance(value, str):
        return text_part(value)
    image = black_image() if value == BLACK else decode_image(dataset.images[value]["encoded"])
    return {"type": "image_url", "image_url": {"url": _png_uri(image)}}


def _png_uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _fields(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("text", "tokens", "truncated")}


def ask_engines(
    engines: Mapping[str, Engine], questions: Questions, conditions: Sequence[str], config: Config, ranks: Ranks
) -> dict[str, dict[str, list[ScoredAnswer]]]:
    """Returns `{label: {condition: answers}}` of all engines, which the main rank asks."""
    return {
        label: decided_by_main(ranks, lambda engine=engine: engine.answers(questions, conditions, config))
        for label, engine in engines.items()
    }


def control_scores(
    questions: Sequence[Question], answers: Mapping[str, Sequence[ScoredAnswer]], seed: int
) -> dict[str, Any]:
    """Returns `{metric: {condition: score, "adds": right minus shuffled images}}` of an engine's answers.

    The metrics are the headlines. "adds" is missing if the control with shuffled images was not asked.
    """
    metrics, expected = metrics_for(Use.HEADLINE), [question.expected for question in questions]
    bootstrap = CaseBootstrap([question.case_id for question in questions], seed)
    scored = {c: bootstrap.scores(columns_of(given, expected, metrics), metrics) for c, given in answers.items()}
    found = {m.name: {c: interval(scores[m.name]) for c, scores in scored.items()} for m in metrics}
    if SHUFFLED in scored:
        for metric, row in found.items():
            row["adds"] = difference(scored[RIGHT][metric], scored[SHUFFLED][metric])
    return found
