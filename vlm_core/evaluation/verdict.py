"""Says in one sentence whether a model has learnt: whether it beats answers that need no learning and no image.

The floors are the commonest answer, the questions without their images, and the questions with another case's images.
A model has learnt if it is above all of them, and if the interval of each difference excludes 0 (fewer than 10 cases
have no intervals).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_core.data.closed_questions import normalize
from vlm_core.evaluation.metrics import METRICS, PRIMARY
from vlm_core.evaluation.result_names import COMMONEST, MODEL, QUESTION_ONLY, SHUFFLED, with_interval

FLOORS = {
    COMMONEST: "what the commonest answer scores",
    QUESTION_ONLY: "what it scores without its images",
    SHUFFLED: "what it scores with another case's images",
}
ENOUGH_ANSWERS = 10  # fewer answers may be equal by chance
MOSTLY, NEARLY_ALL = 0.5, 0.9  # shares of the answers
REPEATS = 3  # an answer whose words occur this often, on average, is repetition
QUOTED = 40  # characters of an answer


def verdict(
    result: Mapping[str, Any], metric: str, answers: Sequence[str], *, has_images: bool, quote: bool
) -> dict[str, Any]:
    """Returns `{learnt, metric, text}` of an evaluation's `result`; `answers` are the model's own texts.

    `learnt` is None if no control was asked that would show whether the model looks; `has_images` says whether the
    questions show images at all. Only with `quote` may the text hold words of an answer.
    """
    learnt, text = _judge(result, metric, has_images=has_images)
    oddity = odd_answers(answers, quote=quote)
    return {"learnt": learnt, "metric": metric, "text": f"{text}; {oddity}" if oddity else text}


def _judge(result: Mapping[str, Any], metric: str, *, has_images: bool) -> tuple[bool | None, str]:
    scores = result["scores"]
    if scores[MODEL]["logprob"]["value"] is None:
        return False, "has not learnt: its log-probability is not a finite number, as with weights that hold NaN"
    differences = {COMMONEST: result["differences"][COMMONEST]}
    if has_images:
        differences |= result["control_differences"]
    for name, difference in differences.items():
        failure = _failure(scores, difference, name, _comparable(difference, metric))
        if failure:
            return False, failure
    if has_images and len(differences) == 1:
        return None, (
            "may have learnt: nothing shows whether it looks, since evaluation.controls has neither question_only nor "
            "shuffled"
        )
    has_intervals = scores[MODEL][PRIMARY]["low"] is not None
    chance = "" if has_intervals else "; so few cases have no intervals: it may be chance"
    return True, f"has learnt: {_floors(scores, differences, metric)}{chance}"


def _floors(scores: Mapping[str, Any], differences: Mapping[str, Any], metric: str) -> str:
    """Returns what the model is above, by the metric that each floor is compared in."""
    by_metric: dict[str, list[str]] = {}
    for name, difference in differences.items():
        compared = _comparable(difference, metric)
        by_metric.setdefault(compared, []).append(f"{scores[name][compared]['value']:.3f} ({FLOORS[name]})")
    return "; ".join(
        f"its {METRICS[compared].words} {with_interval(scores[MODEL][compared])} is above {', '.join(floors)}"
        for compared, floors in by_metric.items()
    )


def _comparable(difference: Mapping[str, Any], metric: str) -> str:
    """Returns `metric`, or the primary one if the two have no value in it: the commonest answer has no likelihood."""
    return metric if difference[metric]["value"] is not None else PRIMARY


def _failure(scores: Mapping[str, Any], difference: Mapping[str, Any], name: str, metric: str) -> str | None:
    """Returns why the model is not above a floor, None if it is."""
    change = difference[metric]
    if change["value"] > 0 and (change["low"] is None or change["low"] > 0):
        return None
    what = "has not learnt" if name == COMMONEST else "has not learnt to look"
    own, floor = (scores[variant][metric]["value"] for variant in (MODEL, name))
    clearly, why = "", ""
    if change["value"] > 0:
        clearly, why = "clearly ", f" (difference {with_interval(change, sign='+')})"
    return f"{what}: its {METRICS[metric].words} {own:.3f} is not {clearly}above {floor:.3f}, {FLOORS[name]}{why}"


def odd_answers(answers: Sequence[str], *, quote: bool) -> str | None:
    """Returns what is wrong with answers that are mostly empty, mostly repetition, or nearly all equal."""
    if len(answers) < ENOUGH_ANSWERS:
        return None
    plain = [normalize(answer) for answer in answers]
    commonest = Counter(plain).most_common(1)[0][0]
    kinds = {
        "are empty": ([text for text in plain if not text], MOSTLY),
        "repeat a few words": ([text for text in plain if _repeats(text)], MOSTLY),
        "are the same": ([text for text in plain if text == commonest], NEARLY_ALL),
    }
    for what, (found, enough) in kinds.items():
        if len(found) >= enough * len(answers):
            words = _quoted(Counter(found).most_common(1)[0][0]) if quote else ""
            return f"{len(found) / len(answers):.0%} of its answers {what}{words}"
    return None


def _repeats(text: str) -> bool:
    words = text.split()
    return len(words) >= REPEATS and REPEATS * len(set(words)) <= len(words)


def _quoted(text: str) -> str:
    """Returns a normalised answer in brackets: it has no punctuation, so it cannot be markup."""
    shown = "".join(c for c in text if c.isprintable())
    return f" (“{shown[:QUOTED]}{'…' if len(shown) > QUOTED else ''}”)" if shown else ""
