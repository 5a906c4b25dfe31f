"""The verdict: what counts as learnt, what does not, and how odd answers are named."""

from typing import Any

import pytest

from vlm_core.evaluation.result_names import p_value
from vlm_core.evaluation.verdict import odd_answers, verdict

ANSWERS = ["Yes", "No", "A mass on the left", "CT"] * 5


def change(value: float, low: float | None, p: float | None = 0.001) -> dict[str, Any]:
    return {"value": value, "low": low, "high": None if low is None else 2 * value - low, "p": p}


def score(value: float, cases: bool) -> dict[str, Any]:
    return {"value": value, "low": value - 0.05 if cases else None, "high": value + 0.05 if cases else None}


def found(own: float = 0.6, cases: bool = True, logprob: float | None = -1.0, **floors: float) -> dict[str, Any]:
    """Returns an evaluation's result: the model's token F1, and that of each floor with an interval of 0.1 around."""
    scores = {name: {"token_f1": score(value, cases)} for name, value in floors.items()}
    scores["model"] = {"token_f1": score(own, cases), "logprob": {"value": logprob}}
    unknown = {"value": None, "low": None, "high": None, "p": None}
    differences = {
        name: {"token_f1": change(own - value, own - value - 0.1 if cases else None), "closed_accuracy": unknown}
        for name, value in floors.items()
    }
    baseline = differences.pop("commonest")
    return {"scores": scores, "differences": {"commonest": baseline}, "control_differences": differences}


def judged(result: dict[str, Any], metric: str = "token_f1", *, has_images: bool = True) -> tuple[bool | None, str]:
    found = verdict(result, metric, ANSWERS, has_images=has_images, quote=True)
    return found["learnt"], found["text"]


LOW = {"commonest": 0.31, "question_only": 0.3, "shuffled": 0.35}


@pytest.mark.parametrize(
    ("result", "learnt", "text"),
    [
        (
            found(**LOW),
            True,
            "has learnt: its token F1 0.600 [0.550, 0.650] is above 0.310 (what the commonest answer scores), 0.300",
        ),
        (
            found(0.004, **LOW),
            False,
            "has not learnt: its token F1 0.004 is not above 0.310, what the commonest answer scores",
        ),
        (found(0.31, **LOW), False, "has not learnt: its token F1 0.310 is not above 0.310"),  # a tie is not enough
        (
            found(0.4, **LOW),
            False,
            "has not learnt: its token F1 0.400 is not clearly above 0.310, what the commonest answer scores "
            "(difference +0.090 [-0.010, +0.190])",
        ),
        (found(0.4, cases=False, **LOW), True, "; so few cases have no intervals: it may be chance"),
        (
            found(**LOW | {"question_only": 0.608}),
            False,
            "has not learnt to look: its token F1 0.600 is not above 0.608, what it scores without its images",
        ),
        (
            found(**LOW | {"shuffled": 0.55}),
            False,
            "has not learnt to look: its token F1 0.600 is not clearly above 0.550, what it scores with another case's",
        ),
        (found(commonest=0.31), None, "may have learnt: nothing shows whether it looks"),
        (found(commonest=0.31, question_only=0.2), True, "has learnt"),
        (found(logprob=None, **LOW), False, "its log-probability is not a finite number"),
    ],
)
def test_a_model_has_to_be_above_every_floor(result: dict[str, Any], learnt: bool | None, text: str) -> None:
    said = judged(result)
    assert said[0] is learnt
    assert text in said[1]


def test_a_floor_without_the_metric_is_compared_in_token_f1() -> None:
    """The commonest answer has no likelihood; the controls have."""
    result = found(**LOW)
    for name, value in {"model": -1.0, "question_only": -2.0, "shuffled": -1.5}.items():
        result["scores"][name]["logprob"] = {"value": value, "low": None, "high": None}
    result["differences"]["commonest"]["logprob"] = {"value": None, "low": None, "high": None, "p": None}
    for name, value in {"question_only": 1.0, "shuffled": 0.5}.items():
        result["control_differences"][name]["logprob"] = change(value, 0.2)
    learnt, text = judged(result, "logprob")
    assert learnt is True
    assert text == (
        "has learnt: its token F1 0.600 [0.550, 0.650] is above 0.310 (what the commonest answer scores); "
        "its log-probability per token -1.000 is above -2.000 (what it scores without its images), "
        "-1.500 (what it scores with another case's images)"
    )
    result["control_differences"]["shuffled"]["logprob"] = change(0.5, -0.2)
    assert "its log-probability per token -1.000 is not clearly above -1.500" in judged(result, "logprob")[1]


def test_questions_without_images_need_no_control() -> None:
    assert judged(found(**LOW | {"question_only": 0.6, "shuffled": 0.6}), has_images=False)[0] is True


def test_a_metric_without_a_value_falls_back_to_token_f1() -> None:
    assert "its token F1 0.600 [0.550, 0.650] is above 0.310" in judged(found(**LOW), "closed_accuracy")[1]


@pytest.mark.parametrize(
    ("answers", "quote", "said"),
    [
        (
            ["should should should", "Should should, should should."] * 10,
            False,
            "100% of its answers repeat a few words",
        ),
        (["should should should"] * 10, True, "100% of its answers repeat a few words (“should should should”)"),
        (["The mass, the mass, the mass and mass and", "x " * 30] * 10, True, "100% of its answers repeat a few words"),
        (["A mass in the left lung, no mass in the right."] * 5 + ["No", "Yes"] * 3, True, None),
        (["", " . "] * 6 + ["Yes"] * 8, True, "60% of its answers are empty"),
        (["No"] * 19 + ["Yes"], True, "95% of its answers are the same (“no”)"),
        (["[a link](https://x) <b>" + 50 * "x"] * 10, True, "are the same (“linkhttpsx b" + 28 * "x" + "…”)"),
        (["No"] * 17 + ["Yes"] * 3, True, None),
        (["No"] * 9, True, None),  # too few to tell
    ],
)
def test_odd_answers_are_named(answers: list[str], quote: bool, said: str | None) -> None:
    named = odd_answers(answers, quote=quote)
    assert named == said if said is None else said in (named or "")
    assert quote or "“" not in (named or "")


def test_odd_answers_stand_in_the_verdict() -> None:
    text = verdict(found(0.004, **LOW), "token_f1", ["should should should"] * 12, has_images=True, quote=True)["text"]
    assert text.endswith("; 100% of its answers repeat a few words (“should should should”)")


@pytest.mark.parametrize(
    ("p", "said"),
    [(0.001, "p < 0.001"), (0.0, "p < 0.001"), (0.002, "p = 0.002"), (0.0345, "p = 0.035"), (1.0, "p = 1"), (None, "")],
)
def test_a_p_value_is_never_more_exact_than_the_draws(p: float | None, said: str) -> None:
    assert p_value({"p": p}) == said
