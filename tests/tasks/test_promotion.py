"""The promotion gate case by case, and its entries in a real registry."""

import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from prefect.logging import disable_run_logger

from tasks.registry import __main__ as command
from tasks.registry.__main__ import render
from tasks.registry.arguments import registry_parser
from tasks.registry.decline import report_decline
from tasks.registry.promotion import decide, promote_model
from tasks.registry.versions import find_champion, promote, roll_back, versions
from tasks.run import Run
from tests.conftest import new_mlflow_store, small_config
from vlm_core.config import RegistryConfig
from vlm_core.files import write_json

PRESENT = "models:/m/1"


def change(value: float | None, low: float | None = None, chance: float = 0.001) -> dict[str, Any]:
    return {"value": value, "low": value if low is None else low, "high": value, "p": 0.5, "chance": chance}


SCORE = {"value": 0.8, "low": 0.75, "high": 0.85}


def result(unseen: dict[str, Any] | None, overall: dict[str, Any], **others: Any) -> dict[str, Any]:
    """Returns the parts of an evaluation that the gate reads; the set of unseen cases comes first if there is one."""
    sets = {"40 questions about 20 unseen cases": unseen, "all 100 questions": overall}
    return {
        "examples": 100,
        "complete": True,
        "limit": None,
        "verdict": {"learnt": True, "metric": "token_f1", "text": "has learnt"},
        "compared": {"base": "base", "champion": PRESENT},
        "identical": {},
        "scores": {"model": {"token_f1": change(0.4)}},
        "deciding": [
            {"questions": words, "score": SCORE, "differences": dict.fromkeys(("champion", "base", "start"), found)}
            for words, found in sets.items()
            if found
        ],
    } | others


BETTER, WORSE, TIE, UNKNOWN = change(0.02, 0.01), change(-0.02), change(0.0), change(None)
UNLEARNT = {"learnt": False, "text": "has not learnt: its token F1 0.004 is not above 0.310, the commonest answer's"}
UNTOLD = {"learnt": None, "text": "may have learnt: nothing shows whether it looks"}
NAN_SCORES = {"model": {"token_f1": change(math.nan)}}
NO_INTERVAL = change(0.02) | {"low": None, "high": None, "p": None}
LUCKY = change(0.02, 0.01, chance=0.02)  # good enough for the first candidate, not for the second


def contradicting(contradictions: dict[str, Any]) -> dict[str, Any]:
    return result(BETTER, BETTER, differences={"champion": {"contradictions": contradictions}})


@pytest.mark.parametrize(
    ("found", "settings", "champion", "promoted", "reason"),
    [
        (
            result(BETTER, WORSE),
            {},
            PRESENT,
            True,
            r"models:/m/1: \+0.0200 .* 40 questions about 20 unseen",
        ),
        (result(WORSE, BETTER), {}, PRESENT, False, "a margin of 0.0 is needed"),
        (result(None, BETTER), {}, PRESENT, True, "on all 100 questions"),
        (result(None, NO_INTERVAL), {}, PRESENT, True, "no interval on all"),
        (result(None, NO_INTERVAL), {"require_interval": False}, PRESENT, True, "no interval on all"),
        (result(UNKNOWN, BETTER), {}, PRESENT, True, "on all 100 questions"),
        (result(UNKNOWN, UNKNOWN), {}, PRESENT, False, "token_f1 has no finite value on all 100 questions"),
        (result(TIE, BETTER), {}, PRESENT, False, "a margin of 0.0 is needed"),
        (result(BETTER, BETTER), {"margin": 0.03}, PRESENT, False, "a margin of 0.03 is needed"),
        (result(BETTER, BETTER), {"margin": 0.02}, PRESENT, True, "unseen"),
        (result(LUCKY, BETTER), {}, PRESENT, True, "candidate 1 of this champion, p = 0.02"),
        (
            result(change(0.02, 0.01, chance=0.03), BETTER),
            {},
            PRESENT,
            False,
            "candidate 1 of this champion, p = 0.03; chance alone may explain it: p must be at most 0.025",
        ),
        (result(change(0.02, -0.01, chance=0.3), BETTER), {"require_interval": False}, PRESENT, True, "unseen"),
        (result(BETTER, BETTER), {"promote": False}, PRESENT, False, "registry.promote is false"),
        (result(BETTER, BETTER, complete=False, limit=7), {}, PRESENT, False, "limited to 100 questions"),
        (
            result(BETTER, BETTER),
            {},
            None,
            True,
            r"first model of its name; .* base model: \+0.0200 .* unseen",
        ),
        (result(TIE, WORSE), {}, None, True, "the first model of its name"),
        (result(WORSE, BETTER), {}, None, False, "worse than the base model"),
        (
            result(None, WORSE, compared={"start": "base"}),
            {},
            None,
            False,
            r"-0.0200 .* on all 100 questions: worse",
        ),
        (result(None, change(math.nan)), {}, None, False, "no finite value against the base model"),
        (result(BETTER, BETTER, compared={}), {}, None, False, "add base to evaluation.compare_with"),
        (result(BETTER, BETTER, compared={}, identical={"base": "base"}), {}, None, False, "those of the base model"),
        (result(BETTER, BETTER, scores=NAN_SCORES), {}, None, False, "token_f1 of the model has no finite value"),
        (result(BETTER, BETTER, scores=NAN_SCORES), {}, PRESENT, False, "token_f1 of the model has no finite value"),
        (result(None, change(math.inf)), {}, PRESENT, False, "token_f1 has no finite value on all 100"),
        (result(None, change(math.nan)), {}, PRESENT, False, "token_f1 has no finite value on all 100"),
        (
            contradicting(change(0.03, 0.01)),
            {"no_more_contradictions": True},
            PRESENT,
            False,
            r"\+0.0300 .* refuses that",
        ),
        (contradicting(NO_INTERVAL), {"no_more_contradictions": True}, PRESENT, False, "no interval .* refuses that"),
        (contradicting(change(0.03, -0.01)), {"no_more_contradictions": True}, PRESENT, True, "unseen"),
        (contradicting(WORSE), {"no_more_contradictions": True}, PRESENT, True, "unseen"),
        (contradicting(UNKNOWN), {"no_more_contradictions": True}, PRESENT, True, "unseen"),
        (contradicting(BETTER), {}, PRESENT, True, "unseen"),
        (result(BETTER, BETTER, complete=None), {}, PRESENT, False, "limited to 100 questions"),
        (result(BETTER, BETTER, complete=False, limit=7), {}, None, False, "limited to 100 questions"),
        (result(BETTER, BETTER, verdict=UNLEARNT), {}, PRESENT, False, "not above 0.310.*promote the version by hand"),
        (result(BETTER, BETTER, compared={}, verdict=UNLEARNT), {}, None, False, "has not learnt: .*for more steps"),
        (result(BETTER, BETTER, compared={}, verdict=UNTOLD), {}, None, False, "may have learnt: nothing shows"),
        (
            result(BETTER, BETTER),
            {},
            "models:/m/2",
            False,
            "compared with models:/m/1, but the champion is now models:/m/2: evaluate it again",
        ),
        (result(BETTER, BETTER, compared={}), {}, PRESENT, False, "compared with no champion"),
        (
            result(BETTER, BETTER, compared={}, identical={"champion": PRESENT}),
            {},
            PRESENT,
            False,
            "its weights are those",
        ),
    ],
)
def test_the_gate(
    found: dict[str, Any], settings: dict[str, Any], champion: str | None, promoted: bool, reason: str
) -> None:
    decision = decide(found, RegistryConfig(**settings), champion)
    assert decision.promoted == promoted
    assert re.search(reason, decision.reason)


def test_each_candidate_of_a_champion_needs_more_evidence() -> None:
    decisions = [decide(result(LUCKY, BETTER), RegistryConfig(), PRESENT, number) for number in (1, 2, 3)]
    assert [decision.promoted for decision in decisions] == [True, False, False]
    assert [decision.candidate for decision in decisions] == [1, 2, 3]
    assert decide(result(LUCKY, BETTER), RegistryConfig(), None).candidate is None  # not compared with a champion


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A registered model with three versions, in a new registry."""
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_mlflow_store(tmp_path))
    client = mlflow.MlflowClient()
    client.create_registered_model("m")
    for _ in range(3):
        client.create_model_version("m", source=tmp_path.as_uri())
    with disable_run_logger():
        yield "m"


def promote_after(version: str, found: dict[str, Any]) -> dict[str, Any]:
    run = Run(small_config(), Path("run"), "no MLflow run")
    return promote_model.fn(run, {"name": "m", "version": version}, found)


@pytest.mark.slow
def test_each_better_version_becomes_the_champion(name: str) -> None:
    assert find_champion(name) is None
    assert promote_after("1", result(BETTER, BETTER))["promoted"]
    assert not promote_after("2", result(WORSE, WORSE))["promoted"]
    assert find_champion(name) == "1"
    again = promote_after("1", result(WORSE, WORSE))  # its process was killed after the alias had moved
    assert (again["promoted"], find_champion(name)) == (True, "1")
    assert promote_after("3", result(BETTER, BETTER))["promoted"]
    rows = {row["version"]: row for row in versions(name)}
    assert (rows["3"]["aliases"], rows["1"]["aliases"]) == (["champion"], [])
    assert rows["2"]["promotion"].startswith("not promoted: token_f1 against models:/m/1")
    assert "champion" in render(versions(name)).splitlines()[3]
    with pytest.raises(ValueError, match="no version 9 of 'm'"):
        promote(name, "9", "")


@pytest.mark.slow
def test_the_gate_counts_the_candidates_of_each_champion(name: str) -> None:
    promote_after("1", result(BETTER, BETTER))
    assert promote_after("2", result(WORSE, WORSE))["candidate"] == 1
    assert promote_after("2", result(BETTER, BETTER, complete=False))["candidate"] is None
    assert promote_after("2", result(LUCKY, LUCKY))["candidate"] == 2  # not promoted
    assert promote_after("3", result(BETTER, BETTER))["candidate"] == 3
    newest = result(WORSE, WORSE, compared={"champion": "models:/m/3"})
    assert promote_after("2", newest)["candidate"] == 1
    roll_back(name)  # its questions have been used before
    assert promote_after("2", result(WORSE, WORSE))["candidate"] == 4


@pytest.mark.slow
def test_a_champion_that_has_declined_is_reported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr("tasks.registry.decline.emit_event", lambda event, **content: events.append(content))
    promote_after("1", result(BETTER, BETTER))
    run = Run(small_config(), Path("run"), "no MLflow run")
    worse = {"deciding": [{"score": {"value": 0.6, "low": 0.5, "high": 0.7}}]}
    given = {"dataset.split": "train", "evaluation.limit": 20}
    for checkpoint in ("models:/m@champion", "models:/m/1"):
        found = report_decline.fn(run, checkpoint, worse, "demo", given)
        assert found is not None
        assert found.endswith("token_f1 is 0.600 [0.500, 0.700]; it was promoted with 0.800 [0.750, 0.850]")
    assert [event["payload"]["version"] for event in events] == ["1", "1"]
    # A training that follows has the data of the evaluation, but asks all questions.
    assert (events[0]["payload"]["recipe"], events[0]["payload"]["overrides"]) == ("demo", {"dataset.split": "train"})
    overlapping = {"deciding": [{"score": {"value": 0.7, "low": 0.6, "high": 0.8}}]}
    assert report_decline.fn(run, "models:/m@champion", overlapping, "demo", given) is None
    assert report_decline.fn(run, "models:/m/2", worse, "demo", given) is None  # the gate has not promoted it
    assert report_decline.fn(run, "runs/demo/epoch_0_step_9", worse, "demo", given) is None
    assert len(events) == 2


@pytest.mark.slow
def test_if_two_runs_end_at_once_one_is_promoted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both beat version 1, but the second one finds a new champion that it was not compared with."""
    promote_after("1", result(BETTER, BETTER, compared={}))
    outcomes: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda v=version: outcomes.append(promote_after(v, result(BETTER, BETTER))))
        for version in ("2", "3")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome["promoted"] for outcome in outcomes) == [False, True]
    (loser,) = (outcome for outcome in outcomes if not outcome["promoted"])
    assert "evaluate it again" in loser["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["list"], "name  version  aliases"),
        (["promote", "m", "2", "--reason", "seen"], "seen"),
        (["list", "other"], None),
        (["rollback", "m"], None),
    ],
)
def test_the_command(
    name: str,
    arguments: list[str],
    shown: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = registry_parser(None).parse_args(arguments)
    if shown is None:
        with pytest.raises(SystemExit, match="error: "):
            command.main(options)
    else:
        command.main(options)
        assert shown in capsys.readouterr().out


@pytest.mark.slow
def test_a_reader_study_becomes_tags(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    scores = {
        "study": "s-0-60",
        "models": {"model": "epoch_0", "base": "base"},
        "readers": ["ada", "bo"],
        "preference": share,
        "correctness": {"model": {"correct": share}, "base": {"correct": share}},
        "agreement": [{"correctness": share}],
    }
    write_json(tmp_path / "review.json", scores)
    command.main(registry_parser(None).parse_args(["review", name, "2", str(tmp_path / "review.json")]))
    found = mlflow.MlflowClient().get_model_version(name, "2").tags
    assert found["review_preference"] == "+0.50 [+0.40, +0.60] against base"
    assert (found["review_correct"], found["review_readers"]) == ("50% [40%, 60%]", "2")
    assert "review_agreement   0.5" in capsys.readouterr().out
