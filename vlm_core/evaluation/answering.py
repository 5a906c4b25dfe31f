"""Asks a model the questions of a split under each condition. Answers that are stored already are reused."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm_core.cache import locked
from vlm_core.config import Config
from vlm_core.data.batches import DecodedImages, ImageInputs
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.conversation_dataset import ConversationDataset, image_sizes
from vlm_core.data.kept_images import keep_images
from vlm_core.data.packing import Group, group_of
from vlm_core.data.rejects import describe_rejects
from vlm_core.data.token_cache import TokenDataset, TokenizedExample, build_tokens
from vlm_core.evaluation.conditions import Asked, Substitutes, ask_reworded, ask_under, black_image
from vlm_core.evaluation.metrics import ScoredAnswer
from vlm_core.evaluation.protocols import PROTOCOLS, with_request
from vlm_core.evaluation.result_names import BLANK, QUESTION_ONLY
from vlm_core.evaluation.store import Store
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.prompts import Prompts
from vlm_core.generation.sampling import GenerationSettings
from vlm_core.home import medpix_home
from vlm_core.models.frozen_tower import DetachedTower
from vlm_core.models.model_reference import ModelFiles
from vlm_core.models.weights import is_adapter, weights_directory
from vlm_core.progress import ProgressBar
from vlm_core.training.distributed import Ranks, barrier, main_rank_first
from vlm_core.training.vision_cache import SameFeatures, cached_features

logger = logging.getLogger(__name__)


class Questions:
    """The questions of an evaluation: rows of the validation split, and the images of another case for each."""

    def __init__(self, conversations: Path, chosen: list[int], shuffled: Substitutes | None) -> None:
        dataset = ConversationDataset(conversations, "validation")
        self.conversations, self.chosen, self.shuffled = conversations, chosen, shuffled
        self.rows: list[dict[str, Any]] = [dataset.conversations[i] for i in chosen]
        self.hashes: list[str] = list(dataset.images["sha256"])  # of every image, by index
        self.sizes = image_sizes(conversations)
        self.closed_questions: dict[str, list[str]] = dataset.manifest["closed_questions"]

    def under(self, condition: str, tokens: TokenDataset, chat: ChatModel) -> Asked:
        """Returns the questions as they are asked under `condition`: a control, or a protocol that adds a request."""
        examples = [tokens.of_row(i) for i in self.chosen]
        if condition in PROTOCOLS:
            words = [with_request(condition, row["conversation"], self.closed_questions) for row in self.rows]
            return ask_reworded(condition, examples, words, self.hashes, chat)
        return ask_under(condition, examples, self.rows, self.shuffled, self.hashes, self.sizes, chat)


def shown_rows(files: ModelFiles, conversations: Path) -> list[int]:
    """Returns the rows of the validation split that the model in `files` can be shown; warns of the others."""
    tokens = TokenDataset(build_tokens(conversations, files.chat), "validation")
    if tokens.rejects:
        logger.warning("left out of the evaluation: %s", describe_rejects(tokens.rejects))
    return sorted(tokens.shown_rows())


def answer_questions(
    files: ModelFiles, questions: Questions, conditions: Sequence[str], config: Config, ranks: Ranks, name: str
) -> dict[str, list[ScoredAnswer]]:
    """Returns `{condition: one answer per question}` of the model in `files`; every rank answers its share.

    `name` labels the progress bar. The model is loaded only if an answer is missing.
    """
    chat = files.chat
    with main_rank_first(ranks):
        tokens = TokenDataset(build_tokens(questions.conversations, chat), "validation")
    asked = [questions.under(condition, tokens, chat) for condition in conditions]
    stores = _Stores.of(files, chat, config)
    with locked(stores.lock) if ranks.is_main else nullcontext():  # A second job with the same model waits.
        barrier()
        stores.refresh()
        work = stores.work(asked, chat)
        is_missing = any(item.missing for item in work)
        barrier()  # No rank may add to the stores before all have seen what is missing.
        if is_missing:
            shares = [item.of_rank(config.evaluation.batch_size, ranks) for item in work]
            _Asker(files, questions, config, ranks, stores).ask(shares, name)
        barrier()
    stores.refresh()
    return {item.condition: stores.scored_answers(item) for item in asked}


@dataclass(frozen=True)
class _Work:
    """What to ask a model with one kind of images: distinct examples, each a question with its reference.

    Each prompt is answered once, by the first of the examples that have it; every example is scored.
    """

    stores: "_Stores"
    conditions: tuple[str, ...]
    examples: Prompts
    answered_keys: list[str]
    prompt_keys: dict[int, str]  # of the examples that are answered

    @classmethod
    def of(cls, stores: "_Stores", asked: Sequence[Asked], chat: ChatModel) -> "_Work":
        """Returns the distinct questions of `asked`: without images, or in two conditions, some are equal."""
        found: dict[str, tuple[str, TokenizedExample]] = {}
        for item in asked:
            for key, prompt, example in zip(item.answered_keys, item.prompt_keys, item.answered, strict=True):
                found.setdefault(key, (prompt, example))
        firsts = {prompt: number for number, (prompt, _) in reversed([*enumerate(found.values())])}
        examples = Prompts([example for _, example in found.values()], chat)
        keys = {number: prompt for prompt, number in firsts.items()}
        return cls(stores, tuple(item.condition for item in asked), examples, [*found], keys)

    def of_rank(self, batch_size: int, ranks: Ranks) -> "_Work":
        """Returns one rank's share."""
        mine = self.examples.share(batch_size, ranks.rank, ranks.world_size)
        prompts = {number: self.prompt_keys[i] for number, i in enumerate(mine) if i in self.prompt_keys}
        keys = [self.answered_keys[i] for i in mine]
        return _Work(self.stores, self.conditions, self.examples.select(mine), keys, prompts)

    def unanswered(self, members: Sequence[int]) -> dict[int, str]:
        """Returns the keys of the prompts that `members` have to answer and that no store has."""
        keys = ((i, self.prompt_keys[i]) for i in members if i in self.prompt_keys)
        return {i: key for i, key in keys if key not in self.stores.answers}

    def is_missing(self, number: int) -> bool:
        """Returns whether the answer or the likelihood of an example is not stored yet."""
        unscored = self.answered_keys[number] not in self.stores.likelihoods
        return unscored or bool(self.unanswered([number]))

    @property
    def missing(self) -> set[str]:
        """The examples that are not answered and scored yet, by their keys."""
        return {key for number, key in enumerate(self.answered_keys) if self.is_missing(number)}

    def batches(self, batch_size: int) -> Iterator[list[Group]]:
        """Yields the examples of each batch that are not answered and scored yet.

        All examples are divided into batches first. So a resumed evaluation computes the same answers, bit for bit, as
        one that was never interrupted.
        """
        for groups in self.examples.batches(batch_size):
            missing = [[i for i in group.members if self.is_missing(i)] for group in groups]
            if any(missing):
                yield [group_of(members, self.examples) for members in missing if members]


@dataclass(frozen=True)
class _Stores:
    """The stores of a model's answers and of its likelihoods of the references."""

    answers: Store
    likelihoods: Store
    settings: GenerationSettings

    @classmethod
    def of(cls, files: ModelFiles, chat: ChatModel, config: Config) -> "_Stores":
        root, evaluation = medpix_home() / "cache" / "answers", config.evaluation
        model = {
            "model": files.fingerprint,
            "processor": chat.fingerprint(),
            "images": chat.processor.image_processor.to_dict(),
        }
        if evaluation.merge_lora and is_adapter(weights_directory(files.weights)):
            model["merge_lora"] = True  # in bfloat16 other weights
        settings = GenerationSettings(
            evaluation.max_new_tokens, evaluation.temperature, evaluation.top_p, config.rng.seed
        )
        return cls(Store(root, model | settings.effective), Store(root, model | {"likelihood": True}), settings)

    @property
    def lock(self) -> Path:
        self.answers.directory.parent.mkdir(parents=True, exist_ok=True)
        return self.answers.directory.parent / f".{self.answers.directory.name}.lock"

    def refresh(self) -> None:
        self.answers.refresh()
        self.likelihoods.refresh()

    def work(self, asked: Sequence[Asked], chat: ChatModel) -> list[_Work]:
        """Returns what to ask. Conditions that show the data's own images share the prefixes of equal images.

        Questions without images stay apart: in a batch with long rows they would be padded to these.
        """
        apart = (BLANK, QUESTION_ONLY)
        kinds = [[item for item in asked if item.condition not in apart]]
        kinds += [[item] for item in asked if item.condition in apart]
        return [_Work.of(self, kind, chat) for kind in kinds if kind]

    def scored_answers(self, asked: Asked) -> list[ScoredAnswer]:
        pairs = zip(asked.prompt_keys, asked.answered_keys, strict=True)
        return [
            ScoredAnswer(
                text=self.answers[prompt]["text"],
                tokens=self.answers[prompt]["tokens"],
                truncated=self.answers[prompt]["truncated"],
                logprob=self.likelihoods[answered]["logprob"],
                reference_tokens=self.likelihoods[answered]["tokens"],
                thought=self.answers[prompt]["thought"],
                confidence=math.exp(self.answers[prompt]["logprob"]),
            )
            for prompt, answered in pairs
        ]


class _Asker:
    """A loaded model with the images of the questions."""

    def __init__(self, files: ModelFiles, questions: Questions, config: Config, ranks: Ranks, stores: _Stores) -> None:
        self.config, self.ranks, self.stores = config, ranks, stores
        merge, structured = config.evaluation.merge_lora, config.packing.structured_attention
        self.answerer = Answerer.load(files, ranks.local_rank, merge_lora=merge, structured=structured)
        self.images, self.blank = self._image_inputs(questions.conversations)

    def _image_inputs(self, conversations: Path) -> tuple[ImageInputs, ImageInputs]:
        """Returns (the model's inputs for the images, its inputs for a black image in place of each).

        If the vision cache has all images, both are features, and the vision tower is removed from the model.
        """
        model, chat, black = self.answerer.model, self.answerer.chat, black_image()
        if self.config.vision_cache.enabled and chat.caches_features:
            features = cached_features(model, chat, conversations)
            if features:
                logger.info("vision cache: it has all images, so the vision tower is not used")
                blank = SameFeatures.of(black, model, chat)
                DetachedTower(model, chat.family)
                return features, blank
        images = DecodedImages.of(conversations, chat)
        return keep_images(images, chat), keep_images(images.replaced(black), chat)

    def ask(self, work: Sequence[_Work], name: str) -> None:
        """Answers the questions in `work`, and stores each batch before the next one starts."""
        total, size = len(set().union(*(item.missing for item in work))), self.config.evaluation.batch_size
        with ProgressBar(total, f"evaluate {name}", "answer", enabled=self.ranks.is_main) as progress:
            for item in work:
                for groups in item.batches(size):
                    self._ask(item, groups)
                    progress.update(sum(len(group.members) for group in groups), ", ".join(item.conditions))

    @torch.no_grad()
    def _ask(self, item: _Work, groups: Sequence[Group]) -> None:
        images = self.blank if BLANK in item.conditions else self.images
        keys = item.unanswered([i for group in groups for i in group.members])
        answers, scores = self.answerer.answer_and_score(item.examples, groups, images, self.stores.settings, keys)
        self.stores.answers.add({keys[i]: vars(answer) for i, answer in answers.items()})
        new = {item.answered_keys[i]: scored._asdict() for i, scored in scores.items()}
        known = self.stores.likelihoods.records
        self.stores.likelihoods.add({key: record for key, record in new.items() if key not in known})
