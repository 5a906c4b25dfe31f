"""The command that looks at data before anything is paid for, and its page in a browser."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.conftest import small_config
from vlm_core.cache import read_manifest
from vlm_core.data.conversations import ConversationDataset
from vlm_core.data.prepare import prepare_conversations
from vlm_core.pages.data_report import overview, write_data_report
from vlm_core.pages.plots import histogram


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
def test_the_page_opens_in_a_browser(conversations: Path, tmp_path: Path) -> None:
    write_data_report(small_config(), conversations, tmp_path / "report.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto((tmp_path / "report.html").as_uri())
        assert "340 + 60" in page.inner_text(".cards")
        assert "100% of the validation cases" in page.inner_text("header")
        assert page.locator("article.item img").count() == 12
        assert all(page.locator("article.item img").evaluate_all("images => images.map(i => i.naturalWidth > 0)"))
        assert page.locator("figure svg").count() == 4
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        browser.close()
    assert not said  # no error, and nothing that the page's own policy had to stop


def test_texts_and_images_can_be_kept_out(conversations: Path, tmp_path: Path) -> None:
    write_data_report(small_config(**{"report.images": False}), conversations, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    rows = ConversationDataset(conversations, "train").conversations.to_list()
    assert "data:image" not in page
    assert not any(row["conversation"][0]["content"][1]["text"] in page for row in rows)
    assert "kept out of this page" in page


def test_the_table_has_a_row_a_split(conversations: Path) -> None:
    train, validation = overview(conversations)
    assert (train["split"], train["Questions"], validation["Questions"]) == ("train", 340, 60)
    assert train["Questions an image (mean)"] == 10


def test_findings_are_said_each_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        directory, _ = prepare_conversations(small_config())
    assert sum("also have rows in training" in record.message for record in caplog.records) == 2
    assert read_manifest(directory)["rows"]["train"] == 340


def test_a_histogram_of_one_value_is_drawn() -> None:
    assert "<svg" in histogram({"train": {"edges": [3, 4], "counts": [7]}}, "words")
