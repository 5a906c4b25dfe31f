"""The terminal of a person who runs a flow by hand: headings, a live line, and a last command that can be pasted."""

import io
import logging
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tasks import ending, stages, terminal
from tasks.ending import next_steps, render
from tasks.example import write_example
from tasks.run import Run
from tasks.stages import Stages
from tasks.terminal import LiveLine
from tests.conftest import small_config
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.files import read_json, write_json
from vlm_core.log import PROGRESS, configure_logging
from vlm_core.progress import Progress, progress_writer


class Terminal(io.StringIO):
    """A terminal that records its output."""

    def isatty(self) -> bool:
        return True


@contextmanager
def shown_to_a_person(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Makes standard error a terminal of 100 columns, with the commands' logging.

    Not a fixture, since pytest replaces standard error after the fixtures.
    """
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "101")
    monkeypatch.setenv("LINES", "30")
    monkeypatch.setattr(sys, "stderr", terminal)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_logging()
    yield terminal
    root.handlers[:], root.level = before


def test_a_terminal_has_one_live_line_and_unbroken_log_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with shown_to_a_person(monkeypatch) as screen:
        file = tmp_path / "finetune.progress.json"
        line = LiveLine(file)
        line.poll()  # the job has not started
        write = progress_writer(file)  # as the job does
        write(Progress("finetune", "step", 3, 4, "loss 0.5, 12.0 samples/s", 0.2))
        line.poll()
        logging.getLogger("job").log(PROGRESS, "finetune 3/4 steps")  # the bar shows the same
        logging.getLogger("job").info("saved")
        write(Progress("finetune", "step", 4, 4, "loss 0.4, 12.0 samples/s", 0.0))
        line.poll()
        line.close()
    *shown, last = re.split(r"[\r\n]+", screen.getvalue().rstrip())
    assert [
        text
        for text in shown
        if re.fullmatch(r"finetune  75%\|\S+ +\| 3/4, loss 0.5, 12.0 samples/s, 0 s left *", text)
    ]
    assert [text for text in shown if re.fullmatch(r"\d\d:\d\d:\d\d INFO    saved", text)]
    assert not [text for text in shown if "finetune 3/4 steps" in text]
    assert re.fullmatch(r"finetune 100%\|\S+\| 4/4, loss 0.4, 12.0 samples/s", last)


def test_a_new_piece_of_work_gets_a_new_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown_to_a_person(monkeypatch) as screen:
        line = LiveLine(Path("of no job"))
        line.show(Progress("tokenize", "row", 5, 5, "", None))
        line.show(Progress("finetune", "step", 1, 5, "", 60.0))
        line.close()
    lines = [text.rpartition("\r")[2] for text in screen.getvalue().split("\n")]
    assert [text.split()[0] for text in lines if text.strip()] == ["tokenize", "finetune"]


def test_without_a_terminal_there_is_no_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.progress.json"
    progress_writer(file)(Progress("finetune", "step", 1, 5, "", 60.0))
    line = LiveLine(file)
    line.poll()
    line.close()
    assert capsys.readouterr().err == ""


def test_each_stage_has_its_number(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(stages, "get_run_logger", lambda: logging.getLogger("flow"))

    def task(name: str) -> Any:
        double = lambda value: 2 * value  # noqa: E731
        double.name = name
        return double

    first, second = task("download_model"), task("finetune")
    run = Stages([first, second]).run
    with caplog.at_level(logging.INFO):
        assert run(first, 3) == 6
        with pytest.raises(ValueError, match="download_model cannot be stage 2; the stages are"):
            run(first, 3)
    assert caplog.messages == ["== 1/2 download model =="]


def test_prefects_noise_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown_to_a_person(monkeypatch) as screen:
        terminal.tidy_log()
        for name, message in (
            ("prefect.task_runs", "Finished in state Completed()"),
            ("prefect.task_runs", "Finished in state Failed('out of memory')"),
            ("ours", "Finished in state Completed()"),
        ):
            record = logging.LogRecord(name, logging.INFO, __file__, 1, message, None, None)
            logging.getLogger().handlers[0].handle(record)
    logging.getLogger("mlflow").setLevel(logging.NOTSET)
    assert re.findall(r"state (\w+)", screen.getvalue()) == ["Failed", "Completed"]


def summary(checkpoint: Path, **changed: Any) -> dict[str, Any]:
    """Returns the summary of a run whose directory has `checkpoint`."""
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    return {
        "run_id": "demo-1",
        "mlflow_run_id": "abc",
        "training": {"steps": 3, "first_loss": 6.5, "last_loss": 0.25, "seconds": 12.0},
        "evaluation": {
            "scores": {"model": {"token_f1": score}},
            "visual_reliance": {"token_f1": score},
            "verdict": {"text": "has learnt"},
            "examples": 1500,
            "limit": None,
        },
        "registered_model": {
            "uri": "models:/m@challenger",
            "version": "2",
            "promotion": {"promoted": True, "reason": "the first model of its name"},
        },
        "checkpoint": str(checkpoint),
    } | changed


def test_the_box_has_the_four_numbers(tmp_path: Path) -> None:
    assert render(summary(tmp_path)).splitlines() == [
        "demo-1",
        "+-------------------------------------------------------------------------------+",
        "| verdict        has learnt                                                     |",
        "| token F1       0.500 [0.400, 0.600] on 1,500 questions                        |",
        "| looking adds   +0.500 [+0.400, +0.600] token F1, against another case's image |",
        "| training loss  6.500 -> 0.250 in 3 steps, 12 s                                |",
        "| champion       yes: the first model of its name                               |",
        "+-------------------------------------------------------------------------------+",
    ]
    wordy = summary(tmp_path)
    wordy["evaluation"]["verdict"]["text"] = "has not learnt: " + 40 * "in words "
    box = render(wordy).splitlines()[1:]
    assert len({len(line) for line in box}) == 1
    assert len(box[0]) <= 104
    assert box[2].startswith("|                words in ")
    nothing = {"steps": 0, "first_loss": None, "last_loss": None, "seconds": 0.0}
    assert "- -> - in 0 steps" in render(summary(tmp_path, training=nothing))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "our run").mkdir()
    return Run(small_config(), tmp_path / "our run", "abc")


def asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the words of the last line of the next steps after `run`."""
    monkeypatch.setattr(ending, "report_link", lambda *of: "file:///report")
    return shlex.split(next_steps(summary(run.directory / "epoch_0_step_3")).splitlines()[-1])


def test_an_example_is_written_for_the_command(run: Run, conversations: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDPIX_HOME", "a home")
    write_example.fn(run, conversations)
    home, *command = asked(run, monkeypatch)
    assert home == f"MEDPIX_HOME={Path.cwd() / 'a home'}"
    image = command[-1]
    row = ConversationDataset(conversations, "validation")[0]
    question, answer = (turn["content"][-1]["text"] for turn in row["conversation"])
    assert command == [
        sys.executable, "-m", "vlm_core.generate", "--checkpoint-path", f"{run.directory}/epoch_0_step_3",
        f"--prompt={question}", "--image", f"{run.directory}/example_0.png",
    ]  # fmt: skip
    assert Image.open(image).convert("RGB").tobytes() == row["conversation"][0]["content"][0]["image"].tobytes()
    assert read_json(run.directory / "example.json")["answer"] == answer


def test_texts_of_the_dataset_are_harmless_in_a_shell_and_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = 'What\'s\n$(touch /tmp/x) `id` \x1b[2J\x9b2J "shown"?'
    write_json(run.directory / "example.json", {"question": evil, "answer": "a\x1b[2Jb", "images": []})
    command = asked(run, monkeypatch)
    assert command[-1] == '--prompt=What\'s $(touch /tmp/x) `id` [2J2J "shown"?'
    assert "\x1b" not in next_steps(summary(run.directory / "epoch_0_step_3"))


def test_no_image_is_written_if_reports_must_not_have_images(
    tmp_path: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = Run(small_config(**{"report.images": False}), tmp_path, "abc")
    write_example.fn(private, conversations)
    assert list(tmp_path.iterdir()) == []
    assert asked(private, monkeypatch)[-4:] == ["--prompt", "QUESTION", "--image", "FILE"]
    lines = next_steps(summary(tmp_path / "epoch_0_step_3"), "http://prefect/run/1").splitlines()
    assert "report.images=false: no example image was written" in lines[-2]
    assert "Prefect     http://prefect/run/1" in lines
