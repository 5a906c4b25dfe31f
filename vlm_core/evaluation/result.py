"""Puts the scores of an evaluation together: the content of `result.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_core.config import Config
from vlm_core.evaluation.calibration import calibration
from vlm_core.evaluation.deciding import deciding
from vlm_core.evaluation.engines import control_scores
from vlm_core.evaluation.metrics import Columns, ScoredAnswer
from vlm_core.evaluation.protocols import score_protocol
from vlm_core.evaluation.result_names import COMMONEST, MODEL
from vlm_core.evaluation.scores import Question, assertion_counts, score
from vlm_core.evaluation.verdict import verdict


@dataclass(frozen=True)
class Answers:
    """All answers of an evaluation, one per question.

    `variants` has those of each model and control, by name. `under` has those to the questions with the request of a
    protocol, by its name and by model. `by_engine` has those of models behind endpoints, by label and by condition.
    """

    variants: dict[str, list[ScoredAnswer]]
    under: dict[str, dict[str, list[ScoredAnswer]]]
    by_engine: dict[str, dict[str, list[ScoredAnswer]]]


def result_of(
    config: Config,
    questions: Sequence[Question],
    columns: dict[str, Columns],
    answers: Answers,
    about: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the content of `result.json`, except the seconds.

    `columns` are those of `columns_by_variant`, `about` says what was evaluated and how, and `manifest` is that of the
    conversation cache.
    """
    seed, metric, own = config.rng.seed, config.registry.metric, answers.variants[MODEL]
    compared, cases = [*about["compared"]], [question.case_id for question in questions]
    result = score(questions, columns, [COMMONEST, *compared], seed) | dict(about)
    result["deciding"] = deciding(questions, columns, compared, metric, seed)
    result["assertions"] = assertion_counts(questions, answers.variants)
    result["calibration"] = calibration(own, columns[MODEL], cases, manifest["closed_questions"])
    result["engines"] = {name: control_scores(questions, given, seed) for name, given in answers.by_engine.items()}
    result["protocols"] = {
        name: score_protocol(name, questions, answers.under.get(name) or answers.variants, seed)
        for name in config.evaluation.protocols
    }
    result["verdict"] = verdict(
        result,
        metric,
        [answer.text for answer in own],
        has_images=any(question.image_sha256 for question in questions),
        quote=config.report.images,
    )
    result["dataset_fingerprint"] = manifest["fingerprint"]
    result["dataset_rows"], result["dataset_cases"] = sum(manifest["rows"].values()), manifest["cases"]
    result["examples_with_images_of_training"] = sum(question.seen_image for question in questions)
    if not config.report.images:
        result["closed_questions"] = _numbered(result["closed_questions"])
    return result


def _numbered(closed_questions: dict[str, Any]) -> dict[str, Any]:
    """Returns the scores of closed questions with numbers in place of the question texts."""
    return {f"closed question {number}": row for number, row in enumerate(closed_questions.values(), start=1)}
