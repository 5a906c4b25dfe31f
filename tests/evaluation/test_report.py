"""The report in a browser without a network, wide and narrow, and without texts if `report.images` is false."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Error, Page, sync_playwright

from tests.conftest import fresh_home, small_config
from vlm_core.data.phantom import write_phantom
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.statistics import STATISTICS
from vlm_core.evaluate import evaluate
from vlm_core.files import read_json
from vlm_core.run_directory import EXAMPLES, PREDICTIONS, REPORT, RESULT
from vlm_core.training.distributed import Ranks

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"> Is there a lesion?"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with a question that tries to run a script in any page that shows it."""
    directory = tmp_path_factory.mktemp("data")
    write_phantom(directory, num_images=20, seed=5, image_size=56)
    (path,) = directory.glob("data/validation-*")
    table = pq.read_table(path)
    questions = [HOSTILE, *table["question"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.column_names.index("question"), "question", [questions]), path)
    return directory


def write(data: Path, output: Path, conversations: Path, **overrides: Any) -> dict[str, Any]:
    """Evaluates the tiny model on `data`, against itself in another dtype, and returns the result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDPIX_HOME", str(fresh_home(output / "home")))
        config = small_config(
            **{"dataset.path_or_dataset": str(data), "evaluation.max_new_tokens": 6, "evaluation.compare_with": []}
            | overrides
        )
        evaluate(config, None, output / "evaluation", Ranks(), prepare_conversations(config)[0])
    return read_json(output / "evaluation" / RESULT)


@pytest.fixture(scope="module")
def report(data: Path, tmp_path_factory: pytest.TempPathFactory, conversations: Path) -> Path:
    directory = tmp_path_factory.mktemp("report")
    write(data, directory, conversations, **{"evaluation.protocols": ["medpix", "slake_medevalkit"]})
    return directory / "evaluation" / REPORT


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"no Chromium (Debian: apt-get install chromium): {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(params=[1280, pytest.param(390, marks=pytest.mark.slow)])
def page(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The open report; any error of the page fails the test."""
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda sent: complaints.extend([sent.url] if sent.url.startswith("http") else []))
    page.goto(report.as_uri())
    yield page
    assert complaints == []
    page.close()


def test_it_fits_and_shows_its_numbers(page: Page, report: Path) -> None:
    width = page.viewport_size["width"] if page.viewport_size else 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    scores = read_json(report.parent / RESULT)["scores"]["model"]
    shown = dict(
        zip(page.locator(".card h3").all_inner_texts(), page.locator(".card .value").all_inner_texts(), strict=True)
    )
    assert list(shown)[:3] == ["Clinical agreement", "Contradictions", "Token F1"]
    for title, name in (("Token F1", "token_f1"), ("Clinical agreement", "clinical_agreement")):
        assert shown[title].startswith(f"{scores[name]['value']:.3f}")
    assert page.locator("figure svg").count() == 3  # of each variant, by mode, by length
    assert "$" not in "".join(page.locator("figure svg").all_text_contents())
    assert re.fullmatch(
        r"On 3 cases, this model answers \d+ % of the closed questions right; "
        r"shown another case's image, \d+ %; the commonest answer gets \d+ %\.",
        page.locator(".summary").inner_text(),
    )
    groups = page.locator(".groups td:not(.word)").first.bounding_box()
    assert groups
    assert groups["x"] + groups["width"] <= width  # a score is seen without scrolling
    assert page.locator("article img").first.evaluate("image => image.naturalWidth") > 0


def test_the_baseline_and_the_verdict_are_on_the_page(page: Page, report: Path) -> None:
    result = read_json(report.parent / RESULT)
    verdict = page.locator("header .warning").first.inner_text()
    assert verdict == f"Verdict: this model {result['verdict']['text']}."
    assert "has not learnt: its token F1" in verdict
    commonest = result["scores"]["commonest"]
    assert commonest["perplexity"]["value"] is commonest["mean_tokens"]["value"] is None
    table = page.locator("section:has(> h2:text-is('Scores')) table").first
    column = table.locator("thead th").all_inner_texts().index("commonest answer")
    shown = {row.split("\t")[0]: row.split("\t")[column] for row in table.locator("tbody tr").all_inner_texts()}
    assert shown["Perplexity"] == shown["Tokens per answer"] == shown["Cut off"] == "-"
    assert shown["Token F1"] == f"{commonest['token_f1']['value']:.3f}"
    assert ", but it has not learnt" in page.locator(".card", has_text="Against commonest answer").inner_text()
    # A text that no model wrote has no likelihood.
    answers = page.locator("article").first.locator("dd.score").all_inner_texts()
    assert [("log p" in answer) for answer in answers[1:]] == [True, True, True, True, False]


def test_protocols_are_named_with_their_scores(page: Page, report: Path) -> None:
    result = read_json(report.parent / RESULT)
    for name, variants in (("medpix", 5), ("slake_medevalkit", 1)):  # the other has its own prompts: only the model
        found = result["protocols"][name]
        shown = page.locator("section", has=page.locator(f"h2:text-is('Protocol: {found['title']}')"))
        assert f"Version {found['version']}. Source: {found['source']}" in shown.inner_text()
        assert len(shown.locator("thead th").all()) == 1 + variants
        rows = dict(row.split("\t")[:2] for row in shown.locator("tbody tr").all_inner_texts())
        for metric, title in found["metrics"].items():
            assert rows[title].startswith(f"{found['scores']['model'][metric]['value']:.3f}")
    own = result["protocols"]["medpix"]["scores"]
    assert own["model"]["token_f1"] == result["scores"]["model"]["token_f1"]
    assert list(own) == list(result["scores"])


def test_the_baseline_is_that_of_the_data_report(data: Path, report: Path) -> None:
    found = read_json(report.parent / RESULT)
    statistics = read_json(
        prepare_conversations(small_config(**{"dataset.path_or_dataset": str(data)}))[0] / STATISTICS
    )
    expected = statistics["closed_answers"]["commonest"]
    assert found["scores"]["commonest"]["closed_accuracy"]["value"] == pytest.approx(expected, abs=1e-4)


def test_text_of_the_data_is_text(page: Page) -> None:
    assert page.locator("article .question").first.inner_text() == HOSTILE
    assert page.title() == "Evaluation of demo"


def test_questions_are_filtered_and_sorted(page: Page, report: Path) -> None:
    rows = pq.read_table(report.parent / PREDICTIONS).to_pylist()
    modes = {row["mode"] for row in rows}
    for mode in modes:
        page.select_option("#mode", mode)
        assert count(page) == sum(row["mode"] == mode for row in rows)
    page.select_option("#mode", "")
    page.select_option("#kind", "open")
    assert count(page) == sum(row["right"] is None for row in rows)
    page.select_option("#kind", "wrong")
    assert count(page) == sum(row["right"] is False for row in rows)
    page.select_option("#kind", "")
    page.fill("#search", HOSTILE[:20])
    assert count(page) == 1
    page.fill("#search", "")
    page.select_option("#sort", label="biggest loss against shuffled images")
    changes = [row["token_f1"] - row["token_f1_shuffled"] for row in rows]
    first = page.locator("article").first.locator(".score").all_inner_texts()
    own, shuffled = (float(re.findall(r"F1 ([\d.]+)", text)[0]) for text in first[1:3])
    assert own - shuffled == pytest.approx(min(changes), abs=0.011)
    assert page.locator("article").count() == 20
    page.click("#more")
    assert page.locator("article").count() == min(40, len(rows))


def count(page: Page) -> int:
    return int(page.locator("#count").inner_text().split()[0])


def test_texts_and_images_stay_out_if_the_config_says_so(data: Path, tmp_path: Path, conversations: Path) -> None:
    result = write(data, tmp_path, conversations, **{"report.images": False})
    page = (tmp_path / "evaluation" / REPORT).read_text()
    rows = pq.read_table(tmp_path / "evaluation" / PREDICTIONS).to_pylist()
    for text in {row[column] for row in rows for column in ("question", "example_id", "case_id")}:
        assert text not in page
        assert text not in str(result)
    assert "data:image" not in page
    assert not (tmp_path / "evaluation" / EXAMPLES).exists()
    assert all(re.fullmatch(r"closed question \d+", kind) for kind in result["closed_questions"])


def test_the_report_states_a_limit(data: Path, tmp_path: Path, conversations: Path) -> None:
    result = write(data, tmp_path, conversations, **{"evaluation.limit": 7, "evaluation.controls": []})
    assert (result["examples"], result["limit"], result["complete"]) == (7, 7, False)
    assert "Limited to 7 questions" in (tmp_path / "evaluation" / REPORT).read_text()
    assert list(result["scores"]) == ["model", "commonest"]
    assert result["verdict"]["learnt"] is not True  # without a control nothing shows that it looks
    assert result["visual_reliance"] is None
