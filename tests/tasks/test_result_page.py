"""The pages of a run are readable Markdown with links, and text from datasets never becomes markup."""

from pathlib import Path
from typing import Any

import mlflow
import pytest
from markdown_it import MarkdownIt

from tasks.links import mlflow_pages
from tasks.markdown import code, escaped, link
from tasks.result_page import CLOSED_ROWS, closed_questions, evaluation_page, training_page
from tasks.run import Run
from tests.conftest import new_mlflow_store, small_config

HOSTILE = (
    "Is it <img src=x onerror=alert(1)> | [x](javascript:alert(1)) `a` **b** __c__ ~~d~~?",
    "See https://evil.example or www.evil.example, mail a@evil.example",
    "two\nlines\r\n# Head\n| a | b |\n|---|---|",
    "<script>alert(1)</script> &lt;i&gt; \\ ![i](http://evil.example/i.png) <https://evil.example>",
    "red \x1b[31m right-to-left \u202e",
    "| ``` ~~~ <!-- \\",
)
SCORE = {"value": 0.5, "low": 0.4, "high": 0.6}
METRICS = ("token_f1", "rouge_l", "bleu_4", "exact_match", "closed_accuracy", "clinical_agreement", "contradictions",
           "perplexity")  # fmt: skip


def tokens(page: str) -> list[Any]:
    """Returns the inline tokens of a page, as a Markdown renderer parses them."""
    parsed = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)
    assert {token.type for token in parsed}.isdisjoint({"html_block", "fence", "code_block"})
    return [child for token in parsed for child in token.children or []]


def result(**others: Any) -> dict[str, Any]:
    return {
        "checkpoint": "models:/m@champion",
        "examples": 60,
        "cases": 12,
        "limit": None,
        "scores": {name: dict.fromkeys(METRICS, SCORE) for name in ("model", "shuffled", "base")},
        "differences": {"base": {"token_f1": SCORE}},
        "visual_reliance": {"token_f1": SCORE},
        "closed_questions": {},
    } | others


def summary(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "dataset": {"fingerprint": "f" * 40, "rows": 400, "images": 40, "cases": 12},
        "training": {"steps": 6, "seconds": 4.0, "first_loss": 6.8, "last_loss": 6.1},
        "evaluation": found,
        "checkpoint": "/runs/r/epoch_0_step_6",
        "registered_model": {
            "name": "m",
            "version": "3",
            "promotion": {"promoted": False, "reason": "token_f1 against models:/m/2: -0.1 [-0.2, 0.0]"},
        },
    }


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_datasets_is_shown_literally(text: str) -> None:
    page = closed_questions(result(closed_questions={text: {"examples": 4, "model": 0.5}}))
    parts = tokens(page)
    assert {part.type for part in parts} <= {"text", "text_special"}
    shown = "".join(part.content for part in parts).replace("\u200b", "")
    assert "".join(c for c in " ".join(text.split()) if c.isprintable()).strip() in shown
    assert page.count("\n| ") == 3  # the head, the separator line, and one row
    assert "https://" not in page
    assert "www." not in page


def test_a_long_list_of_closed_questions_is_cut_with_a_note() -> None:
    asked = {f"question {number} {'x' * 500}": {"examples": number, "model": None} for number in range(100)}
    page = closed_questions(result(closed_questions=asked))
    assert "question 99 " in page
    assert "question 9 " not in page  # the rarest questions are omitted
    assert page.endswith(f"{100 - CLOSED_ROWS} more are in the report.")
    assert max(map(len, page.splitlines())) < 200


def test_a_name_that_would_end_inline_code_is_escaped() -> None:
    assert code("models:/m@champion") == "`models:/m@champion`"
    assert code("a`b|c") == escaped("a`b|c") == r"a\`b\|c"
    assert link("x]", "https://host/a b)c") == r"[x\]](https://host/a%20b%29c)"
    assert link("report", "file:///r/report.html") == "report: `file:///r/report.html`"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose MLflow store has no server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_mlflow_store(tmp_path))
    return Run(small_config(), tmp_path / "r", "id")


def test_without_a_server_the_page_names_files(run: Run) -> None:
    page = training_page(run, summary(result()))
    assert page.startswith(r"**Version 3 of m is not promoted**: token\_f1 against models:/m/2: -0.1 \[-0.2, 0.0\].")
    assert f"`{(run.directory / 'evaluation' / 'report.html').as_uri()}`" in page
    assert "loaded as `models:/m/3`" in page
    assert "mlflow ui" in page
    assert "| Token F1 | 0.500 [0.400, 0.600] |" in page
    assert "None" not in page


def test_the_verdict_stands_first(run: Run) -> None:
    found = result(verdict={"learnt": False, "text": "has not learnt: token F1 is below the baseline"}, limit=60)
    page = evaluation_page(run, found)
    assert page.splitlines()[2] == "Verdict: this model has not learnt: token F1 is below the baseline."
    assert "limited to 60: no basis for a promotion" in page
    assert "Verdict" in training_page(run, summary(found))


def test_links_have_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:secret@mlflow.example.org:8443/base/")
    assert mlflow.get_tracking_uri().count("secret") == 1
    assert mlflow_pages() == "https://mlflow.example.org:8443/base"
