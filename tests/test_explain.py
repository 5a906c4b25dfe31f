"""One row from its file to what the model sees: in a terminal, as pictures, and on the page of the data report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import small_config, tiny_directory
from vlm_core.config import Config, ModelConfig
from vlm_core.data.explained_row import ExplainedRow, ModelView, cell_text, explain_row, explain_some
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import fetch_splits
from vlm_core.explain import explanation, save_pictures, viewed
from vlm_core.families import Family
from vlm_core.pages.data_report import write_data_report

HOSTILE = "Bright\x1b[2J or <b>dark</b>?"


def picture(number: int) -> Image.Image:
    """Returns a picture without a symmetry: a pale corner, and a colour that changes from left to right."""
    image = Image.fromarray(np.tile(np.arange(120, dtype=np.uint8), (80, 1))).convert("RGB")
    image.paste((255, 10 * number, 0), (0, 0, 60, 30))
    return image


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The config of a folder of six scans with a CSV, of which one row is empty and one is hostile."""
    (tmp_path / "scans").mkdir()
    lines = ["file,question,answer,patient,note"]
    for i in range(6):
        picture(i).save(tmp_path / "scans" / f"{i}.png")
        lines.append(f"{i}.png,{HOSTILE if i == 4 else 'Which colour?'},{'' if i == 5 else 'Red.'},00{i // 2},x{i}")
    (tmp_path / "scans" / "list.csv").write_text("\n".join(lines))
    columns = {"image_column": "file", "case_column": "patient", "mode_column": None, "max_reject_share": 0.5}
    settings = {f"dataset.{key}": value for key, value in columns.items()}
    return small_config(**settings, **{"dataset.path_or_dataset": str(tmp_path / "scans")})


def model_of(family: Family) -> ModelConfig:
    return ModelConfig(pretrained_model_name_or_path=str(tiny_directory(family.model_type)))


def test_a_row_is_followed_to_the_prompt_and_the_picture(config: Config, family: Family, tmp_path: Path) -> None:
    (row,) = viewed([explain_row(fetch_splits(config), "2")], model_of(family))
    (path,) = save_pictures(row, tmp_path / "out")
    lines = explanation(row, [path], colours=False).splitlines()
    assert lines[0] == "row         train-2: list.csv, line 4"
    assert '  file      image     "2.png"' in lines
    assert '  note      -         "x2"' in lines
    assert "  user      <image 1>Which colour?" in lines
    assert "  assistant Red." in lines
    assert f"  [[Red.{family.end_of_turn}]]" in lines
    assert sum("[[" in line for line in lines) == 2  # the answer, and the line that explains the marks
    assert "  1 is stored as 120 x 80 pixels, PNG, mode RGB" in lines
    assert lines[-1].endswith(str(path))
    assert path == tmp_path / "out" / "train-2-image-1.png"
    assert row.view is not None
    assert "".join(text for text, _ in row.view.pieces).count("Which colour?") == 1
    with Image.open(path) as shown:
        expected = picture(2).resize(shown.size, Image.Resampling.BICUBIC)
        difference = np.abs(np.asarray(shown, dtype=float) - np.asarray(expected, dtype=float))
    assert difference.mean() < 3


def test_rejected_rows_say_why_and_need_no_model(config: Config) -> None:
    row = explain_row(fetch_splits(config), "train-5")
    (same,) = viewed([row], ModelConfig(pretrained_model_name_or_path="/nowhere"))
    lines = explanation(same, [], colours=False).splitlines()
    assert lines[0] == "row         train-5: list.csv, line 7"
    assert lines[-1] == "rejected    empty answer"


@pytest.mark.parametrize("name", ["9", "train-6", "other-1", "x", "-1", ""])
def test_a_name_that_means_no_row_is_refused(name: str, config: Config) -> None:
    with pytest.raises(ValueError, match=r"--explain"):
        explain_row(fetch_splits(config), name)


def test_no_line_of_an_explanation_does_anything_to_a_terminal() -> None:
    view = ModelView("model", [("text", False)], problem="no \x1b[2J picture")
    row = ExplainedRow("train-0", "\x1b[2J.csv, line 2", {"a": 1}, {"a": "image"}, images=[picture(0)], view=view)
    assert "\x1b" not in explanation(row, [], colours=False)


def test_text_of_the_data_does_nothing_to_a_terminal(config: Config, tiny_gemma3: Path) -> None:
    model = ModelConfig(pretrained_model_name_or_path=str(tiny_gemma3))
    (row,) = viewed([explain_row(fetch_splits(config), "4")], model)
    text = explanation(row, ["picture.png"], colours=False)  # type: ignore[list-item]
    assert "\x1b" not in text
    assert r"Bright\x1b[2J or" in text
    coloured = explanation(row, ["picture.png"], colours=True)  # type: ignore[list-item]
    assert "\x1b[32mRed.<end_of_turn>\x1b[0m" in coloured
    assert "[[" not in coloured


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "null"),
        ('a "b"\n', r'"a \"b\"\n"'),
        (b"12345", "5 bytes"),
        (101.0, "101.0 (number)"),
        (7, "7 (whole number)"),
        (True, "True (true or false)"),
        (["a", 1], "['a', 1] (list)"),
        ("x" * 1000, '"' + "x" * 400 + '" ... (1,000 characters)'),
    ],
)
def test_a_cell_is_shown_with_its_type(cell: Any, text: str) -> None:
    assert cell_text(cell) == text


def test_the_data_report_explains_three_rows(config: Config, tiny_gemma3: Path, tmp_path: Path) -> None:
    splits = fetch_splits(config)
    cache, _ = prepare_conversations(config, splits)
    rows = explain_some(splits)
    assert [row.name for row in rows] == ["train-0", "train-2", "train-5"]
    page = tmp_path / "page.html"
    write_data_report(config, cache, page, rows)
    assert "--explain train-0 --model MODEL" in page.read_text()
    model = ModelConfig(pretrained_model_name_or_path=str(tiny_gemma3))
    write_data_report(config, cache, page, viewed(rows[::-1], model))  # the first is rejected
    text = page.read_text()
    assert text.count("<mark>Red.&lt;end_of_turn&gt;</mark>") == 2
    assert "Rejected: empty answer" in text
    assert text.count("as the model sees it: 56 x 56") == 2
    assert "--model MODEL" not in text
    hidden = config.model_copy(update={"report": config.report.model_copy(update={"images": False})})
    write_data_report(hidden, cache, page, rows)
    assert "Which colour?" not in page.read_text()
