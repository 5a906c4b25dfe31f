"""The command that checks data before a training, and its page in a browser."""

import logging
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from playwright.sync_api import sync_playwright

from tests.conftest import small_config
from vlm_core.arguments import prepare_parser
from vlm_core.cache import read_manifest
from vlm_core.config import Config
from vlm_core.data.conversation import last_question
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.new_recipe import data_found, recipe_text, share_for_intervals
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import fetch_splits
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json
from vlm_core.pages.data_report import overview, write_data_report
from vlm_core.pages.plots import histogram
from vlm_core.prepare import next_command
from vlm_core.recipe import load_config


def test_the_command_says_where_the_report_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlm_core.prepare", "--config", "demo"]
    command += ["--dataset.path_or_dataset", "builtin:phantom?images=40", "--output", str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"open {tmp_path / 'report' / 'report.html'} in a browser" in done.stdout
    assert "of the validation cases, with 100% of the validation questions, also have rows in training" in done.stderr
    assert (tmp_path / "report" / "report.html").is_file()
    wrong = subprocess.run([*command, "--dataset.case_column", "patient"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith(
        "error: dataset 'builtin:phantom?images=40' lacks the column patient"
    )


@pytest.mark.slow
def test_the_first_hour(tmp_path: Path) -> None:
    """From a folder of JPEGs and a spreadsheet's CSV to a recipe, and back to its data."""
    (tmp_path / "our scans" / "images").mkdir(parents=True)
    lines = ["File;Question;Answer;Patient ID"]
    for i in range(24):
        Image.new("L", (40, 30), 10 * i).save(tmp_path / "our scans" / "images" / f"IMG_{i:02}.JPG", "JPEG")
        lines.append(
            f"IMG_{i:02}.JPG;Is it bright; or dark?;{'bright' if i > 12 else 'dark'};{i // 2:03}".replace("; or", ",")
        )
    (tmp_path / "our scans" / "list.csv").write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vlm_core.prepare", *arguments]
        environment = os.environ | {"MEDPIX_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done

    first = run("our scans", "--init", "my.yaml")
    assert "image=File, question=Question, answer=Answer, case=Patient ID, mode=null" in first.stderr
    assert "rejected    none" in first.stdout
    assert first.stdout.splitlines()[-1] == "next        python -m pipelines.finetune --recipe my.yaml"
    recipe = (tmp_path / "my.yaml").read_text()
    assert len([line for line in recipe.splitlines() if not line.startswith("#")]) <= 20
    config = load_config(tmp_path / "my.yaml")
    assert "Columns: image <code>File</code>" in (tmp_path / "data-report" / "report.html").read_text()
    assert (config.name, config.dataset.case_column, config.dataset.split_by) == ("my", "Patient ID", "case")
    assert Path(config.dataset.path_or_dataset) == tmp_path / "our scans"
    again = run("--config", "my.yaml")
    assert "reused" in again.stderr
    assert again.stdout.splitlines()[-1] == "next        python -m pipelines.finetune --config my.yaml"
    assert "my.yaml exists and is not overwritten" in run("our scans", "--init", "my.yaml", code=1).stderr
    assert (tmp_path / "my.yaml").read_text() == recipe


def test_enough_cases_are_held_out_for_intervals(tmp_path: Path) -> None:
    lines = ["question,answer,patient", *(f"{i}?,Yes.,p{i}" for i in range(30))]
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    settings = {"dataset.path_or_dataset": str(tmp_path / "x.csv"), "dataset.image_column": None}

    def share(**others: Any) -> float | None:
        config = small_config(**settings | others)
        splits = fetch_splits(config)
        return share_for_intervals(config, splits, prepare_conversations(config, splits)[0])

    found = share()
    assert found is not None
    cache, _ = prepare_conversations(small_config(**settings, **{"dataset.validation_share": found}))
    assert read_manifest(cache)["rows"]["validation"] in (10, 11)
    assert share(**{"dataset.validation_share": 0.1}) is None  # the user has set a share
    assert share(**{"dataset.split": "train[:12]"}) is None  # too few cases
    assert share(**{"dataset.split_by": "image"}) is None


@pytest.mark.parametrize(
    ("card", "quantization", "checkpointing"),
    [(80, None, None), (25.3, None, True), (11.8, None, True), (8.4, "nf4", True), (6, "nf4", True)],
)
def test_a_recipe_for_a_gpu(card: float, quantization: str | None, checkpointing: bool | None) -> None:
    config = small_config(
        **{"dataset.split_by": "case", "validation_dataset.split": None, "dataset.image_column": "0123"}
    )
    text = recipe_text(config, "mine", ["Found."], card=card)
    tree = yaml.safe_load(text)
    assert tree["model"]["pretrained_model_name_or_path"] == "google/medgemma-4b-it"
    assert tree["registry"]["model_name"] == "medpix-mine"
    assert (tree["peft"]["dim"], tree["dataset"]["split_by"]) == (8, "case")
    assert tree["model"].get("quantization") == quantization
    assert tree.get("compute", {}).get("gradient_checkpointing") == checkpointing
    comments = " ".join(line.removeprefix("# ") for line in text.splitlines())
    assert ("below 8 GB" in comments, "in 4 bits" in comments) == (card < 7.5, quantization == "nf4")
    assert Config.model_validate(tree).dataset == config.dataset


def test_a_recipe_says_what_the_data_is(conversations: Path) -> None:
    found = read_json(conversations / STATISTICS)
    assert [line.partition(":")[0] for line in data_found(found)[1:]] == ["Images"]
    size, _ = next(iter(found["images"]["sizes"].items()))
    assert f"PNG; {size} pixels." in data_found(found)[1]
    found["medical"]["counts"] |= {"modality": {"CT": 3, "MR": 1}, "window": {"40/80": 4}}
    found["personal_texts"] = {"date": 2}
    lines = data_found(found)
    assert "Images: 3 CT, 1 MR;" in lines[1]
    assert lines[2].startswith("Windows: 40/80 (4). dataset.images.window")
    assert "2 texts or images" in lines[3]
    assert len(data_found(found | {"images": {"count": 0, "sizes": {}, "distinct_sizes": 0, "formats": {}}})) == 3


@pytest.mark.parametrize(
    ("arguments", "recipe", "overrides"),
    [
        (["scans"], "demo", {"name": "scans", "dataset.path_or_dataset": "scans"}),
        (["our scans/", "--name", "x"], "demo", {"name": "x", "dataset.path_or_dataset": "our scans/"}),
        (["a", "--config", "medgemma_4b_lora"], "medgemma_4b_lora", {"name": "a", "dataset.path_or_dataset": "a"}),
        (["--recipe", "demo", "--rng.seed", "7"], "demo", {"rng.seed": 7}),
    ],
)  # fmt: skip
def test_a_path_comes_first_and_needs_no_recipe(arguments: list[str], recipe: str, overrides: dict[str, Any]) -> None:
    options, found = prepare_parser(None).parse_with_overrides(arguments)
    assert (options.recipe, found) == (recipe, overrides)


@pytest.mark.parametrize(
    ("recipe", "arguments", "words"),
    [
        (Path("my.yaml"), ["scans"], "-m pipelines.finetune --recipe my.yaml"),
        (None, ["our scans", "--output", "o"], "-m vlm_core.prepare 'our scans' --output o --init our-scans.yaml"),
        (None, ["--config", "demo", "--output", "o", "--a.b", "7"], "-m pipelines.finetune --config demo --a.b 7"),
        (None, ["--output=o", "--config", "demo"], "-m pipelines.finetune --config demo"),
        (None, ["--config", "demo", "--model", "a/b", "--model.revision", "c"],
         "-m pipelines.finetune --config demo --model.revision c"),
    ],
)  # fmt: skip
def test_the_next_command(recipe: Path | None, arguments: list[str], words: str) -> None:
    assert next_command(recipe, arguments) == f"python {words}"


@pytest.mark.slow
def test_the_page_opens_in_a_browser(conversations: Path, tmp_path: Path) -> None:
    write_data_report(small_config(), conversations, tmp_path / "report.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        console: list[str] = []
        page.on("console", lambda message: console.append(message.text))
        page.goto((tmp_path / "report.html").as_uri())
        assert "340 + 60" in page.inner_text(".cards")
        assert "100% of the validation cases" in page.inner_text("header")
        assert page.locator("article.item img").count() == 12
        assert all(page.locator("article.item img").evaluate_all("images => images.map(i => i.naturalWidth > 0)"))
        assert page.locator("figure svg").count() == 4
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        browser.close()
    assert not console  # no error, and nothing that the page's policy blocked


def test_texts_and_images_can_be_excluded(conversations: Path, tmp_path: Path) -> None:
    write_data_report(small_config(**{"report.images": False}), conversations, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    rows = ConversationDataset(conversations, "train").conversations.to_list()
    assert "data:image" not in page
    assert not any(row["conversation"][0]["content"][1]["text"] in page for row in rows)
    assert "kept out of this page" in page
    assert "<th>closed question 1</th>" in page
    table = page.partition("<h2>Closed questions</h2>")[2].partition("</table>")[0]
    assert re.search(r"answer 1 [\d.]+%, answer 2 [\d.]+%", table)
    assert not re.search("coronal|yes [0-9]", table)


def test_closed_questions_are_listed_with_their_answers(conversations: Path, tmp_path: Path) -> None:
    write_data_report(small_config(), conversations, tmp_path / "report.html")
    table = (tmp_path / "report.html").read_text().partition("<h2>Closed questions</h2>")[2].partition("</table>")[0]
    rows = {kind: [_cell(c) for c in cells] for kind, cells in _rows(table)}
    question = "Is there a lesion in this image?"
    counts = {
        split: Counter(answer for asked, answer in _pairs(conversations, split) if asked == question)
        for split in ("train", "validation")
    }
    for place, split in ((0, "train"), (2, "validation")):
        total = counts[split].total()
        assert rows[question][place] == str(total)
        shares = {answer.lower(): f"{count / total:.1%}" for answer, count in counts[split].items()}
        assert rows[question][place + 1] == ", ".join(f"{answer} {shares[answer]}" for answer in sorted(shares))
    commonest = min(counts["train"], key=lambda answer: (-counts["train"][answer], answer))
    right = counts["validation"][commonest] / counts["validation"].total()
    assert rows[question][4] == f"{right:.1%}"


def _rows(table: str) -> list[tuple[str, list[str]]]:
    rows = re.findall(r"<tr><th>(.*?)</th>(<td.*?)</tr>", table)
    return [(kind, re.findall(r"<td.*?>.*?</td>", cells)) for kind, cells in rows]


def _cell(cell: str) -> str:
    return re.sub("<.*?>", "", cell)


def _pairs(conversations: Path, split: str) -> list[tuple[str, str]]:
    return [last_question(row["conversation"]) for row in ConversationDataset(conversations, split).conversations]


def test_the_table_has_one_row_per_split(conversations: Path) -> None:
    train, validation = overview(conversations)
    assert (train["split"], train["Questions"], validation["Questions"]) == ("train", 340, 60)
    assert train["Questions per image (mean)"] == 10


def test_findings_are_reported_each_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        directory, _ = prepare_conversations(small_config())
    assert sum("also have rows in training" in record.message for record in caplog.records) == 2
    assert read_manifest(directory)["rows"]["train"] == 340


def test_a_histogram_of_one_value_is_drawn() -> None:
    assert "<svg" in histogram({"train": {"edges": [3, 4], "counts": [7]}}, "words")
