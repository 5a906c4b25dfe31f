"""A metric is one row: a new row appears wherever metrics are shown, and no other file lists metrics."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from tasks import result_page
from tasks.registry import register
from tasks.registry.card import model_card
from tasks.registry.versions import history_scores, listed_tags
from tasks.run import Run
from tasks.trackers import mlflow_run
from tests.conftest import small_config
from vlm_core.config import CheckpointConfig, RegistryConfig
from vlm_core.evaluation.metrics import METRICS, Expected, ScoredAnswer, Use, mean_metric, names, ratio_metric
from vlm_core.evaluation.report import write_report
from vlm_core.evaluation.scores import Question, assertion_counts, columns_by_variant, predictions, score
from vlm_core.evaluation.text_scores import package_versions
from vlm_core.evaluation.verdict import verdict

SOURCE = Path(__file__).parents[2]
EVERYWHERE = ~Use.NOWHERE
VARIANTS = {  # two answers each; the reference is "left lung"
    "model": ("left lung", "left"),
    "shuffled": ("right", "left"),
    "question_only": ("right", "right"),
    "commonest": ("right", "right"),
}


def question(number: int) -> Question:
    return Question(f"e{number}", f"c{number}", "all", (), "Where?", "left lung", None, None, False, False)


@pytest.fixture
def new_metric(monkeypatch: pytest.MonkeyPatch) -> str:
    """Adds a metric with every use: the share of the reference's length that the answer has."""
    metric = mean_metric(
        "brevity", "Brevity", lambda said, expected: len(said) / len(expected), EVERYWHERE, "length of an answer"
    )
    monkeypatch.setitem(METRICS, metric.name, metric)
    return metric.name


def evaluated() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the result and the predictions of an evaluation of two questions."""
    questions = [question(0), question(1)]
    answers = {
        name: [ScoredAnswer(text, 2, False, -1.0, 2, name != "commonest") for text in texts]
        for name, texts in VARIANTS.items()
    }
    columns = columns_by_variant(questions, answers)
    result = score(questions, columns, ["commonest"], 0) | {
        "assertions": assertion_counts(questions, answers),
        "checkpoint": "runs/x",
        "limit": None,
        "complete": True,
        "examples_with_images_of_training": 0,
        "metrics": package_versions(),
        "generation": {},
        "seed": 0,
        "dataset_fingerprint": "d",
        "model_fingerprint": "m",
    }
    result["verdict"] = verdict(result, "token_f1", ["left"], has_images=True, quote=True)
    return result, predictions(questions, answers, columns)


class NoImages:
    """A dataset whose questions show no image."""

    def encoded_image(self, digest: str) -> bytes:
        raise AssertionError(digest)


def test_a_metric_is_added_in_one_place(new_metric: str, tmp_path: Path) -> None:
    result, records = evaluated()
    expected = (9 + 4) / 2 / 9
    assert result["scores"]["model"][new_metric]["value"] == pytest.approx(expected, abs=1e-4)
    gain = expected - (5 + 4) / 2 / 9
    assert result["visual_reliance"][new_metric]["value"] == pytest.approx(gain, abs=1e-4)
    assert result["control_differences"]["shuffled"][new_metric] == result["visual_reliance"][new_metric]
    group = result["groups"]["length"]["1 to 5 words"]
    assert group["scores"]["model"][new_metric]["value"] == pytest.approx(expected, abs=1e-4)
    assert group["differences"]["commonest"][new_metric]["value"] == pytest.approx(expected - 5 / 9, abs=1e-4)
    assert [record[new_metric] for record in records] == [1.0, pytest.approx(4 / 9, abs=1e-4)]

    run = Run(small_config(), tmp_path, "run")
    assert f"| Brevity | {expected:.3f} |" in model_card(run, tmp_path, result)
    assert any(f"| Brevity | {expected:.3f} |" in part for part in result_page._found(result))
    assert register._tags(result)[new_metric] == mlflow_run._headlines(result)[new_metric]
    assert new_metric in listed_tags()
    assert new_metric in history_scores()

    result["calibration"] = {
        "questions": 20,
        "bins": [{"questions": 20, "confidence": 0.9, "accuracy": 0.8}],
        "curve": [[0.5, 0.0], [1.0, 0.2]],
        "coverage": {"0.05": 0.5},
    }
    page = tmp_path / "report.html"
    dataset: Any = NoImages()
    write_report(small_config(), result, records, dataset, {"training": [], "validation": []}, page)
    text = page.read_text()
    assert text.count(f"{expected:.3f}") >= 3  # card, scores, groups
    assert text.count("<th>Brevity</th>") == 3  # scores, differences, groups
    assert "Brevity: length of an answer." in text
    assert "50 % of the 20 closed questions with at most 5 % errors." in " ".join(text.split())
    assert "On 2 cases that it has never seen, this model has a token F1 of 0.83; shown" in text
    assert '"metrics": ["token F1", "brevity"]' in text


def test_results_of_older_versions_are_shown(tmp_path: Path) -> None:
    """They have no `assertions`, no `detectable`, and none of the metrics that are newer."""
    result, _ = evaluated()
    tags, newest = register._tags(result), "clinical_agreement"
    older = {key: value for key, value in result.items() if key != "assertions"}
    for scores in (*result["scores"].values(), *(g["scores"]["model"] for g in result["groups"]["case"].values())):
        del scores[newest]
    for changes in (*result["differences"].values(), *result["control_differences"].values()):
        for change in changes.values():
            del change["detectable"]
    assert register._tags(older) == {key: value for key, value in tags.items() if key != newest}
    assert newest not in mlflow_run._headlines(older)
    run = Run(small_config(), tmp_path, "run")
    for page in (model_card(run, tmp_path, older), "".join(result_page._found(older))):
        assert "Contradictions" in page
        assert "Clinical agreement" not in page


def test_a_metric_without_uses_is_in_the_scores_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = mean_metric("brevity", "Brevity", lambda said, expected: float(len(said)), Use.NOWHERE, "")
    monkeypatch.setitem(METRICS, plain.name, plain)
    result, _ = evaluated()
    assert result["scores"]["model"]["brevity"]["value"] == 6.5
    for part in ("visual_reliance", "groups", "control_differences", "differences"):
        assert "brevity" not in str(result[part])
    assert "Brevity" not in model_card(Run(small_config(), tmp_path, "run"), tmp_path, result)
    assert "brevity" not in register._tags(result)


def test_a_ratio_brings_its_own_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    def lengths(answer: ScoredAnswer, expected: Expected) -> dict[str, float]:
        return {"said": len(answer.text), "expected": len(expected.reference)}

    ratio = ratio_metric("length_ratio", "Length ratio", lengths, ("said", "expected"), EVERYWHERE ^ Use.ANSWERS, "")
    monkeypatch.setitem(METRICS, ratio.name, ratio)
    result, _ = evaluated()
    assert result["scores"]["model"]["length_ratio"]["value"] == pytest.approx(13 / 18, abs=1e-4)
    assert result["visual_reliance"]["length_ratio"]["value"] == pytest.approx(4 / 18, abs=1e-4)
    with pytest.raises(ValueError, match="only a mean"):
        ratio_metric("length_ratio", "Length ratio", lengths, ("said", "expected"), Use.ANSWERS, "")


def test_the_uses_are_those_that_people_know() -> None:
    assert names(Use.CARD) == ["token_f1", "rouge_l", "bleu_4", "exact_match", "closed_accuracy",
                                "clinical_agreement", "contradictions", "perplexity"]  # fmt: skip
    assert names(Use.COMPARED | Use.DECIDES) == [
        "token_f1",
        "rouge_l",
        "bleu_4",
        "exact_match",
        "closed_accuracy",
        "clinical_agreement",
        "contradictions",
        "logprob",
    ]
    clinical = ["clinical_agreement", "contradictions"]
    assert names(Use.TAG) == ["token_f1", "rouge_l", "closed_accuracy", *clinical, "perplexity"]
    assert names(Use.RELIANCE) == ["token_f1", "closed_accuracy", "clinical_agreement", "logprob"]
    assert names(Use.CHART) == ["token_f1", "rouge_l", "exact_match", "closed_accuracy", *clinical, "perplexity"]


def test_the_config_names_the_metrics_that_may_decide() -> None:
    """The config cannot import the evaluation, so it repeats these names."""
    assert list(get_args(RegistryConfig.model_fields["metric"].annotation)) == names(Use.DECIDES)
    best = get_args(CheckpointConfig.model_fields["best_metric"].annotation)
    assert set(best) <= {"loss", *METRICS}


def test_no_other_file_lists_metrics() -> None:
    """Two names of metrics in one file are a list of metrics."""
    named = re.compile("|".join(rf'["\'.]{name}\b' for name in METRICS if name != "logprob"))
    files = [path for top in ("vlm_core", "tasks", "pipelines") for path in (SOURCE / top).rglob("*.*")]
    texts = {path: path.read_text() for path in files if path.suffix in (".py", ".js", ".html")}
    listing = {path.name for path, text in texts.items() if len(set(named.findall(text))) > 1}
    # The rows, the settings that repeat what may decide on a champion, LOWEST_VAL or a sweep, and published protocols.
    assert listing == {"metrics.py", "evaluation.py", "training.py", "settings.py", "protocols.py"}


def test_names_of_models_are_text_on_the_model_card(tmp_path: Path) -> None:
    result, _ = evaluated()
    name = "mine | <b>bold</b> [link](https://x)"
    result["scores"][name] = result["scores"]["model"]
    (head,) = (line for line in model_card(Run(small_config(), tmp_path, "run"), tmp_path, result).splitlines()
               if line.startswith("| | "))  # fmt: skip
    assert r"mine \| &lt;b>bold&lt;/b> \[link\]" in head
    assert len(re.findall(r"(?<!\\)\|", head)) == 2 + len(result["scores"])
