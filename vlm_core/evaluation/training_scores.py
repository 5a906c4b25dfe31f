"""Scores while training: the same few validation questions are answered and scored at each validation."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vlm_core.config import Config
from vlm_core.data.batches import ImageInputs
from vlm_core.data.closed_questions import closed_kind, possible_answers
from vlm_core.data.conversation import last_question
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.token_cache import TokenDataset
from vlm_core.evaluation.metrics import (
    METRICS,
    PRIMARY,
    Expected,
    Metric,
    ScoredAnswer,
    Use,
    columns_of,
    metrics_for,
    rounded,
)
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.samples import answers_of
from vlm_core.training.distributed import same_as_main

LOSS = "loss"


class TrainingScores:
    """Some questions of the validation split, drawn with the run's seed, and the metrics of their answers."""

    def __init__(self, config: Config, conversations: Path, tokens: TokenDataset) -> None:
        """Raises ValueError if `checkpoint.best_metric` has no value on these questions, whatever the answers are."""
        self.best, count = config.checkpoint.best_metric, config.step_scheduler.val_questions
        drawn = np.random.default_rng(config.rng.seed).permutation(len(tokens))[:count]
        self.tokens, self.chosen = tokens, sorted(drawn.tolist())
        self.longest = config.evaluation.max_new_tokens
        dataset = ConversationDataset(conversations, "validation")
        closed = dataset.manifest["closed_questions"]
        turns = [dataset.conversations[tokens.row_of(i)]["conversation"] for i in self.chosen]
        self.expected = [_expected(*last_question(conversation), closed) for conversation in turns]
        self.metrics = list(dict.fromkeys([*metrics_for(Use.TRAINING), *self._deciding()]))
        self._require_value()

    def _deciding(self) -> list[Metric]:
        """Returns the metrics that LOWEST_VAL goes by; none if it goes by the loss."""
        if self.best == LOSS:
            return []
        return [METRICS[name] for name in (self.best, METRICS[self.best].avoided_by) if name]

    def _require_value(self) -> None:
        """Scores the references themselves: if they have no value, no answers have one."""
        if self.best != LOSS and self.scores([expected.reference for expected in self.expected])[self.best] is None:
            raise ValueError(
                f"checkpoint.best_metric={self.best} has no value on the {len(self.chosen)} validation questions that "
                f"are drawn; raise step_scheduler.val_questions, or use another metric, such as {PRIMARY}"
            )

    def scores(self, texts: Sequence[str]) -> dict[str, float | None]:
        """Returns `{metric: score}` of answers to the drawn questions; None if there was nothing to score."""
        columns = columns_of([ScoredAnswer(text) for text in texts], self.expected, self.metrics)
        sums = {name: column.sum() for name, column in columns.items()}
        return {metric.name: rounded(float(metric.score(sums))) for metric in self.metrics}

    def scorer(self, answerer: Answerer, images: ImageInputs) -> Callable[[], dict[str, float | None]]:
        """Returns a function that answers and scores the questions. All ranks must call it; all get the same scores."""
        answer = answers_of(answerer, self.tokens, self.chosen, images, self.longest)
        return lambda: same_as_main(self.scores([answer.text for answer in answer()]))

    def criterion(self, loss: float, scores: Mapping[str, float | None]) -> float:
        """Returns what LOWEST_VAL has least of: the validation loss, a score of errors, or 1 minus another score.

        What is left out counts as an error too: otherwise a model that says nothing would be the best.
        """
        if self.best == LOSS:
            return loss
        values = [scores[metric.name] for metric in self._deciding()]
        known = [value for value in values if value is not None]
        if len(known) < len(values) or not math.isfinite(loss):
            return math.nan
        return sum(known) if METRICS[self.best].is_error else 1 - sum(known)


def _expected(question: str, reference: str, closed: Mapping[str, list[str]]) -> Expected:
    return Expected(reference, possible_answers(closed_kind(question, reference, closed), closed), question)
