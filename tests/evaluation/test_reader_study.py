"""A reader study from `make` to `score`: drawn fairly, read in a browser by keyboard, scored as by hand."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, sync_playwright
from sklearn.metrics import cohen_kappa_score

from tests.conftest import fresh_home, small_config
from vlm_core.arguments import review_parser
from vlm_core.data.conversation import last_question
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.phantom import write_phantom
from vlm_core.data.prepare import prepare_conversations
from vlm_core.evaluation.reader_study.draw import detectable_preference, draw
from vlm_core.evaluation.reader_study.readings import score_readings, summary, tags
from vlm_core.evaluation.reader_study.study import KEY, PAGE, write_study
from vlm_core.files import read_json, write_json
from vlm_core.review import main
from vlm_core.run_directory import PREDICTIONS, RESULT

HOSTILE = "</script><script>document.title='taken'</script>"


def records(cases: int, per_case: int) -> list[dict[str, Any]]:
    return [
        {
            "example_id": f"{case}-{n}",
            "case_id": f"c{case}",
            "mode": ("a", "b")[n % 2],
            "closed_kind": "x" if n < 2 else None,
        }
        for case in range(cases)
        for n in range(per_case)
    ]


def test_questions_are_drawn_by_stratum_and_over_all_cases() -> None:
    rows = records(12, 6)
    chosen = draw(rows, 18, 4)
    assert draw(rows, 18, 4) == chosen != draw(rows, 18, 5)
    assert Counter((row["mode"], row["closed_kind"] is None) for row in chosen) == {
        ("a", False): 3, ("b", False): 3, ("a", True): 6, ("b", True): 6,
    }  # fmt: skip
    assert set(Counter(row["case_id"] for row in chosen).values()) == {1, 2}
    assert len({row["example_id"] for row in chosen}) == 18
    assert len(draw(rows, 1000, 4)) == len(rows)


def test_a_detectable_preference_is_found_four_times_in_five() -> None:
    generator, cases = np.random.default_rng(0), 100
    wins = generator.binomial(cases, detectable_preference(cases), 4000) / cases
    assert np.mean(wins - 1.96 * np.sqrt(0.25 / cases) > 0.5) == pytest.approx(0.8, abs=0.05)
    assert detectable_preference(4) == 1.0


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of answers that need no model: the model repeats the reference, the base model says nonsense."""
    directory = tmp_path_factory.mktemp("study")
    write_phantom(directory / "data", num_images=80, seed=5, image_size=56)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDPIX_HOME", str(fresh_home(directory / "home")))
        conversations = prepare_conversations(small_config(**{"dataset.path_or_dataset": str(directory / "data")}))[0]
    dataset = ConversationDataset(conversations, "validation")
    rows = []
    for row in dataset.conversations:
        question, reference = last_question(row["conversation"])
        rows.append(
            {key: row[key] for key in ("example_id", "case_id", "mode")}
            | {"image_sha256": dataset.image_hashes(row), "question": question, "reference": reference}
            | {"prediction": reference, "prediction_base": HOSTILE, "closed_kind": None}
        )
    pq.write_table(pa.Table.from_pylist(rows), directory / PREDICTIONS)
    result = {
        "dataset_fingerprint": dataset.manifest["fingerprint"],
        "checkpoint": "epoch_0",
        "compared": {"base": "base"},
    }
    write_json(directory / RESULT, result)
    return directory


@pytest.fixture
def home(evaluation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDPIX_HOME", str(evaluation / "home"))


def read(page: Page, name: str, key: dict[str, Any], careless: int, output: Path) -> Path:
    """Reads a study by keyboard as somebody who knows the truth, except for the first `careless` questions."""
    page.locator("#reader").fill(name)
    page.keyboard.press("Enter")
    for number, item in enumerate(key["items"]):
        own_is_first = (item["first"] == "model") != (number < careless)
        page.keyboard.press("ArrowLeft" if own_is_first else "ArrowRight")
        page.keyboard.press("1" if own_is_first else "3")
        page.keyboard.press("0" if own_is_first else "8")
        page.keyboard.press("Enter")
    with page.expect_download() as download:
        page.keyboard.press("s")
    assert download.value.suggested_filename == f"reading-{key['study']}-{name}.json"
    download.value.save_as(output)
    return output


@pytest.mark.usefixtures("home")
@pytest.mark.slow
def test_a_study_is_read_by_keyboard_and_scored(evaluation: Path, tmp_path: Path, capsys: Any) -> None:
    make = ["make", str(evaluation), "--questions", "12", "--output-dir", str(tmp_path)]
    main(review_parser("").parse_args(make))
    key, text = read_json(tmp_path / KEY), (tmp_path / PAGE).read_text()
    assert {item["first"] for item in key["items"]} == {"model", "base"}
    for secret in ("example_id", "case_id", "epoch_0", "base_model", *(item["example_id"] for item in key["items"])):
        assert secret not in text
    files = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, careless in (("ada", 0), ("bo", 3)):
            context = browser.new_context(viewport={"width": 390, "height": 800})
            page = context.new_page()
            complaints: list[str] = []
            page.on("console", lambda message, found=complaints: found.append(message.text))
            page.on("pageerror", lambda error, found=complaints: found.append(str(error)))
            page.goto((tmp_path / PAGE).as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert page.locator("#images img").first.evaluate("image => image.naturalWidth") >= 256
            assert HOSTILE in page.locator(".answers").inner_text()
            page.keyboard.press("s")
            assert page.locator("#progress").inner_text() == "First type your name."
            files.append(read(page, name, key, careless, tmp_path / f"{name}.json"))
            assert page.locator("#done").is_visible()
            page.reload()
            assert page.locator("#progress").inner_text() == "12 of 12 answered"
            assert (page.title(), complaints) == (f"Reader study {key['study']}", [])
            context.close()
        browser.close()
    main(
        review_parser("").parse_args(
            ["score", str(tmp_path / KEY), *map(str, files), "--output", str(tmp_path / "r.json")]
        )
    )
    result = read_json(tmp_path / "r.json")
    assert result["preference"]["value"] == pytest.approx((12 + 9 - 3) / 24)
    assert result["preferred"]["model"]["value"] == pytest.approx(21 / 24, abs=1e-4)
    assert result["correctness"]["base"]["correct"]["value"] == pytest.approx(3 / 24, abs=1e-4)
    (agreement,) = result["agreement"]
    # Every answer of the model is right for the first reader; the second one errs on three questions.
    ones, others = [2, 0] * 12, [0, 2] * 3 + [2, 0] * 9
    assert agreement["correctness"]["value"] == pytest.approx(
        cohen_kappa_score(ones, others, weights="quadratic"), abs=1e-4
    )
    assert "prefers model: 88%" in capsys.readouterr().out
    assert tags(result)["review_preference"].startswith("+0.75")
    assert tags(result)["review_agreement"] == "0.5"


def reading(key: dict[str, Any], reader: str, **changes: Any) -> dict[str, Any]:
    judgements = [
        {"item": n, "preference": "first", "correctness": ["correct", "wrong"]} | changes
        for n in range(len(key["items"]))
    ]
    return {"study": key["study"], "reader": reader, "judgements": judgements}


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"study": "other"}, "is not of the study"),
        ({"reader": " "}, "names no reader"),
        ({"judgements": []}, "no judgement"),
        (
            {"judgements": [{"item": 99, "preference": "first", "correctness": ["correct"] * 2}]},
            "not one of this study",
        ),
        (
            {"judgements": [{"item": -1, "preference": "first", "correctness": ["correct"] * 2}]},
            "not one of this study",
        ),
        ({"judgements": [{"item": 0, "preference": "third", "correctness": ["correct"] * 2}]}, "not one of this study"),
        ({"judgements": [{"item": 0, "preference": "first", "correctness": ["correct"]}]}, "not one of this study"),
    ],
)
def test_files_that_do_not_fit_are_named(evaluation: Path, tmp_path: Path, saved: dict[str, Any], message: str) -> None:
    key = write_study(evaluation, "reference", 6, 0, tmp_path)
    (tmp_path / "r.json").write_text(json.dumps(reading(key, "ada") | saved))
    with pytest.raises(ValueError, match=message):
        score_readings(tmp_path / KEY, [tmp_path / "r.json"])


@pytest.mark.usefixtures("home")
def test_mistakes_are_named(evaluation: Path, tmp_path: Path) -> None:
    key = write_study(evaluation, "base", 6, 0, tmp_path)
    for name in ("one", "two"):
        write_json(tmp_path / f"{name}.json", reading(key, "ada"))
    with pytest.raises(ValueError, match=r"2 files are of 1 readers \(ada\)"):
        score_readings(tmp_path / KEY, [tmp_path / "one.json", tmp_path / "two.json"])
    with pytest.raises(ValueError, match="has only reference, base; evaluate with"):
        write_study(evaluation, "champion", 6, 0, tmp_path)
    with pytest.raises(ValueError, match="--questions 0: a study needs at least one question"):
        write_study(evaluation, "base", 0, 0, tmp_path)
    with pytest.raises(ValueError, match=r"one\.json is not the key of a study"):
        score_readings(tmp_path / "one.json", [tmp_path / KEY])


@pytest.mark.usefixtures("home")
def test_studies_of_other_answers_have_other_names(evaluation: Path, tmp_path: Path) -> None:
    """A browser that kept the choices of one study must not show them in another."""
    keys = [write_study(evaluation, against, 6, 0, tmp_path) for against in ("base", "reference", "base")]
    assert keys[0] == keys[2]
    assert keys[0]["study"] != keys[1]["study"]


@pytest.mark.usefixtures("home")
def test_readers_who_always_say_the_same_have_no_kappa(evaluation: Path, tmp_path: Path) -> None:
    key = write_study(evaluation, "base", 6, 0, tmp_path)
    for name in ("ada", "bo"):
        write_json(tmp_path / f"{name}.json", reading(key, name, preference="equal", correctness=["wrong", "wrong"]))
    result = score_readings(tmp_path / KEY, [tmp_path / "ada.json", tmp_path / "bo.json"])
    assert result["agreement"][0]["preference"]["value"] is None
    assert "kappa unknown, since both readers gave one answer only" in summary(result)
