"""Confidence: the expected calibration error and the risk-coverage curve equal plain computations."""

import numpy as np
import pytest
import torch
from sklearn.calibration import _SigmoidCalibration, calibration_curve

from vlm_core.evaluation.calibration import calibration
from vlm_core.evaluation.metrics import METRICS, Expected, ScoredAnswer, columns_of
from vlm_core.evaluation.served_confidence import calibrated, fit, identity_of
from vlm_core.generation.sampling import Recorded, most_likely

METRIC = METRICS["calibration_error"]
CASES = [f"c{number // 4}" for number in range(2000)]


def answered(confidence: np.ndarray, right: np.ndarray) -> tuple[list[ScoredAnswer], dict[str, np.ndarray]]:
    answers = [ScoredAnswer("yes" if is_right else "no", confidence=c)
               for c, is_right in zip(confidence.tolist(), right, strict=True)]  # fmt: skip
    return answers, columns_of(
        answers, [Expected("yes", ("no", "yes"))] * len(answers), [METRIC, METRICS["closed_accuracy"]]
    )


def error_of(columns: dict[str, np.ndarray]) -> float:
    return float(METRIC.score({name: np.asarray(column.sum()) for name, column in columns.items()}))


def test_the_error_and_the_bins_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(size=400)
    right = generator.uniform(size=400) < confidence**2  # overconfident
    answers, columns = answered(confidence, right)
    accuracy, mean = calibration_curve(right, confidence, n_bins=10)
    found = calibration(answers, columns, CASES[: len(answers)], {})
    assert found is not None
    assert [entry["accuracy"] for entry in found["bins"]] == pytest.approx(accuracy, abs=1e-4)
    assert [entry["confidence"] for entry in found["bins"]] == pytest.approx(mean, abs=1e-4)
    counts = [entry["questions"] for entry in found["bins"]]
    assert error_of(columns) == pytest.approx(np.average(np.abs(accuracy - mean), weights=counts))


def test_the_curve_answers_the_most_confident_questions_first() -> None:
    confidence = np.array([0.9] * 10 + [0.8] * 10 + [0.3] * 20)
    right = np.array([True] * 10 + [True] * 8 + [False] * 2 + [True] * 10 + [False] * 10)
    found = calibration(*answered(confidence, right), CASES[: len(right)], {})
    assert found is not None
    assert found["curve"] == [[0.25, 0.0], [0.5, 0.1], [1.0, 0.3]]
    assert found["coverage"] == {"0.01": 0.25, "0.05": 0.25, "0.1": 0.5}


def test_few_closed_questions_and_answers_without_confidence_have_none() -> None:
    right = np.ones(19, dtype=bool)
    assert calibration(*answered(np.full(19, 0.5), right), CASES[:19], {}) is None
    answers = [ScoredAnswer("yes", generated=False)] * 30
    columns = columns_of(answers, [Expected("yes", ("no", "yes"))] * 30)
    assert calibration(answers, columns, CASES[:30], {}) is None
    assert np.isnan(error_of(columns))


def test_served_confidence_is_platt_s_and_corrects_the_error_on_other_cases() -> None:
    generator = np.random.default_rng(1)
    confidence = generator.uniform(size=2000)
    right = generator.uniform(size=2000) < confidence**3  # overconfident
    fitted = fit(confidence, right)
    reference = _SigmoidCalibration().fit(np.log(confidence / (1 - confidence)), right)
    assert (fitted["slope"], fitted["intercept"]) == pytest.approx((-reference.a_, -reference.b_), abs=1e-3)
    found = calibration(*answered(confidence, right), CASES, {"Which side?": ["left", "right"]})
    assert found is not None
    served = found["served"]
    assert (served["slope"], served["closed"]) == (fitted["slope"], [identity_of("Which side?")])
    assert served["uncorrected"] == pytest.approx(error_of(answered(confidence, right)[1]), abs=1e-4)
    assert served["error"] < 0.3 * served["uncorrected"]
    assert "Which" not in str(found)
    few = calibration(*answered(confidence[:40], right[:40]), ["c1", "c2"] * 20, {})
    assert few is not None
    assert few["served"]["error"] is None


def test_extremes_are_corrected_to_numbers() -> None:
    sure = np.array([0.0, 0.3, 1.0] * 10)
    for right in (np.ones(30), np.zeros(30), np.array([1, 0, 0] * 10)):  # surest when wrong
        corrected = calibrated(sure, fit(sure, right))
        assert np.isfinite(corrected).all()
        assert (np.diff(corrected[:3]) >= -1e-9).all()
        assert corrected.mean() == pytest.approx(right.mean(), abs=0.1)


def test_an_answer_s_probability_ends_with_it() -> None:
    logits = torch.randn(4, 2, 5)
    chosen = Recorded(most_likely, {int(logits[1, 0].argmax())}, 2)
    for step in logits:
        chosen(step, [0, 1])
    best = logits.log_softmax(-1).amax(-1)
    stop = next(i for i in range(4) if int(logits[i, 0].argmax()) in chosen.stops)
    assert chosen.logprobs[0] == pytest.approx(float(best[: stop + 1, 0].sum()), abs=1e-5)
