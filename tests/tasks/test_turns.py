"""Runs on a machine wait for their turn; a killed run blocks no other, and a run by hand does not wait."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.turns import describe, others_before, ticket, turns_directory, wait_for_turn

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from tasks.turns import ticket
content = {"run": sys.argv[2], "flow": "medpix-finetune", "page": "", "work": "", "local": True, "waits": True}
with ticket(Path(sys.argv[1]), content):
    print("held", flush=True)
    time.sleep(600)
"""


def of(name: str, *, waits: bool = True, local: bool = True) -> dict[str, Any]:
    return {
        "run": name,
        "flow": "medpix-evaluate",
        "page": "http://prefect/runs/1",
        "work": "",
        "local": local,
        "waits": waits,
    }


@pytest.fixture
def holder(tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    def start(name: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", HOLDER, str(tmp_path), name]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    return start


def test_the_first_run_goes_first(tmp_path: Path) -> None:
    with ticket(tmp_path, of("first")) as first, ticket(tmp_path, of("second")) as second:
        with ticket(tmp_path, of("third")) as third:
            assert others_before(tmp_path, first) == []
            assert [other["run"] for other in others_before(tmp_path, third)] == ["first", "second"]
        assert [other["run"] for other in others_before(tmp_path, second)] == ["first"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]
    with ticket(tmp_path, of("alone")) as number:
        assert wait_for_turn(tmp_path, number, pytest.fail) is False


def test_a_run_by_hand_does_not_wait_and_others_wait_for_it(tmp_path: Path) -> None:
    with ticket(tmp_path, of("deployed")) as deployed, ticket(tmp_path, of("by hand", waits=False)):
        assert [other["run"] for other in others_before(tmp_path, deployed)] == ["by hand"]


def test_a_run_on_a_cluster_does_not_block_the_machine(tmp_path: Path) -> None:
    with ticket(tmp_path, of("on Slurm", waits=False, local=False)), ticket(tmp_path, of("here")) as here:
        assert others_before(tmp_path, here) == []


@pytest.mark.slow  # imports Prefect in another process
def test_a_run_waits_until_the_previous_one_is_killed_and_names_it(
    tmp_path: Path, holder: Callable[[str], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.turns.SECONDS_BETWEEN_POLLS", 0.05)
    process, messages = holder("nightly"), []

    def kill_it(message: str) -> None:
        messages.append(message)
        process.kill()
        process.communicate()

    with ticket(tmp_path, of("mine")) as number:
        started = time.monotonic()
        assert wait_for_turn(tmp_path, number, kill_it) is True
        assert time.monotonic() - started < 30
        assert [path.name for path in tmp_path.glob("*.json")] == [f"{number:08d}.json"]
    assert messages == ["waiting for medpix-finetune 'nightly', which is running on this machine"]


def test_the_message_has_the_page_and_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []

    class Seen(Exception):
        pass

    def stop(message: str) -> None:
        messages.append(message)
        raise Seen

    with (
        ticket(tmp_path, of("first")),
        ticket(tmp_path, of("second")),
        ticket(tmp_path, of("third")) as third,
        pytest.raises(Seen),
    ):
        wait_for_turn(tmp_path, third, stop)
    first = describe(of("first"))
    assert messages == [f"waiting for {first}, which is running on this machine, and 1 more before this run"]
    assert "http://prefect/runs/1" in messages[0]


def test_machines_that_share_a_home_have_separate_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path))
    here = turns_directory()
    assert here.parent == tmp_path / "turns"
    other = tmp_path / "boot_id"
    other.write_text("another-machine\n")
    monkeypatch.setattr("tasks.turns.BOOT_ID", other)
    assert turns_directory() == tmp_path / "turns" / "another-machine"
