"""A sweep proposes, promotes and resumes as its rules say; its trials are stand-ins without a training."""

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from prefect.logging import disable_run_logger

from tasks.launchers.job import JobFailedError
from tasks.sweep import search, settings
from tasks.sweep.halving import Unit, promotion, quota, rung_shares, seconds_to_promote, winner
from tasks.sweep.picture import draw_trials
from tasks.sweep.proposals import propose
from tasks.sweep.result import shrinkage, trial_rows
from tasks.sweep.search import Budget, Search
from tasks.sweep.settings import checked_sweep
from tasks.sweep.trials import Trial, only_sweeper, read_trials, save_trial
from tests.conftest import small_config
from vlm_core.search_space import Choice, Space, Span

SPACE: Space = {"optimizer.lr": Span(1e-4, 1e-1, log=True, whole=False), "peft.dim": Choice((8, 16, [32, 64]))}
BEST = 4e-3  # the learning rate with the highest score


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the sweep runs after it."""


def quality(trial: Trial, rung: int) -> float:
    """Returns a score that is highest at BEST, and clearer at later rungs."""
    return -abs(math.log10(trial.overrides["optimizer.lr"] / BEST)) * (1 + rung)


@pytest.fixture
def run_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Trial, list[Unit]]]]:
    """A function that runs a sweep in tmp_path from where it stands; returns its best trial and the work it did."""

    def run(
        trials: int = 12,
        name: str = "sweep",
        kill_after: int = 10**9,
        fails: Callable[[Unit], bool] = lambda unit: False,
        **others: Any,
    ) -> tuple[Trial, list[Unit]]:
        done: list[Unit] = []
        shares = others.pop("shares", rung_shares(trials))

        def train(sweep: Any, trial: Trial, unit: Unit, share: float) -> Trial:
            if len(done) == kill_after:
                raise Killed
            done.append(unit)
            assert len(trial.scores) == unit.rung  # it resumes from the rung before
            if fails(unit):
                raise JobFailedError("out of memory")
            taken = share - ([0.0, *shares][unit.rung])
            return trial.reached(quality(trial, unit.rung), seconds=9 * taken, basis=100)

        monkeypatch.setattr(search, "run_trial", train)
        (tmp_path / name / "trials").mkdir(parents=True, exist_ok=True)
        config = small_config(**{"peft": {}})
        sweep: Any = SimpleNamespace(directory=tmp_path / name, config=config, metric="loss", stop=threading.Event())
        budget = Budget(trials, others.pop("hours", 0.0), others.pop("parallel", 1))
        return Search(sweep, SPACE, budget, shares, lambda trials: None).run(), done

    with disable_run_logger():
        yield run


def steps(units: Sequence[Unit], shares: Sequence[float]) -> float:
    """Returns the work in full trainings."""
    added = [shares[0], *(after - before for before, after in pairwise(shares))]
    return sum(added[unit.rung] for unit in units)


def test_a_third_of_the_trials_trains_on(run_search: Any, tmp_path: Path) -> None:
    best, units = run_search()
    assert [unit.rung for unit in units] == [0] * 12 + [1] * 4 + [2]
    assert steps(units, rung_shares(12)) == pytest.approx(2.89, abs=0.01)
    trials = read_trials(tmp_path / "sweep")
    assert best.scores[0] == max(trial.scores[0] for trial in trials)
    assert best.overrides["optimizer.lr"] == pytest.approx(BEST, rel=0.5)
    assert trials[0].overrides == {"optimizer.lr": 4e-3, "peft.dim": 8}  # the recipe's own values come first


@pytest.mark.parametrize("kills", [[0], [5, 8], [16]])
def test_a_killed_sweep_repeats_nothing_and_ends_the_same(run_search: Any, tmp_path: Path, kills: list[int]) -> None:
    best, units = run_search()
    resumed: list[Unit] = []
    for kill in kills:
        done = run_killed(run_search, kill)
        resumed += done
    again, rest = run_search(name="killed")
    assert [*resumed, *rest] == units
    assert again == best
    assert read_trials(tmp_path / "killed") == read_trials(tmp_path / "sweep")
    assert run_search(name="killed") == (best, [])  # a finished sweep has nothing left to do


def run_killed(run_search: Any, after: int) -> list[Unit]:
    before: list[Unit] = []
    with pytest.raises(Killed):
        run_search(name="killed", kill_after=after, fails=lambda unit: before.append(unit) or False)
    return before


def test_more_trials_train_a_paused_one_on(run_search: Any, tmp_path: Path) -> None:
    shares = rung_shares(6)
    _, units = run_search(6, shares=shares)
    assert [unit.rung for unit in units] == [0] * 6 + [1] * 2
    best, more = run_search(12, shares=shares)
    assert not set(units) & set(more)
    trials = read_trials(tmp_path / "sweep")
    assert all(len(trial.scores) == 2 for trial in sorted(trials, key=lambda trial: trial.scores[0])[-4:])
    assert best.scores[1] == max(trial.scores[1] for trial in trials if len(trial.scores) == 2)


def test_a_failed_trial_leaves_its_place_to_the_next_best(run_search: Any, tmp_path: Path) -> None:
    first, _ = run_search()
    best, units = run_search(name="failing", fails=lambda unit: unit == Unit(first.number, 2))
    assert best.number != first.number
    assert [unit.rung for unit in units] == [0] * 12 + [1] * 4 + [2, 2]
    assert read_trials(tmp_path / "failing")[first.number - 1].failure == "out of memory"


def test_a_sweep_without_a_sound_trial_gives_up(run_search: Any) -> None:
    with pytest.raises(RuntimeError, match="the first 3 trials all failed; the last: out of memory"):
        run_search(fails=lambda unit: True)


def test_trials_on_other_data_are_not_compared(
    run_search: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reached = Trial.reached
    monkeypatch.setattr(Trial, "reached", lambda trial, score, seconds, basis: reached(trial, score, 1, trial.number))
    best, _ = run_search(3)
    assert best.number == 1
    found = [trial.failure for trial in read_trials(tmp_path / "sweep")]
    assert "its score is over 3 tokens or questions, that of trial 1 over 1: its values change" in str(found[2])


def test_hours_leave_time_for_the_promotions(run_search: Any) -> None:
    """A full training takes 9 seconds."""
    best, units = run_search(0, hours=60 / 3600)
    assert 50 < 9 * steps(units, rung_shares(0)) <= 60
    assert len(best.scores) == 3


def test_parallel_trials_share_the_work(run_search: Any, tmp_path: Path) -> None:
    best, units = run_search(parallel=4)
    assert sorted(unit.rung for unit in units) == [0] * 12 + [1] * 4 + [2]
    assert len(set(units)) == len(units)
    assert len(best.scores) == 3


def test_no_promotion_before_all_trials_have_a_score() -> None:
    trials = [Trial(number, {}, (float(number),), (1.0,)) for number in range(1, 7)]
    assert promotion(trials, 2, running=()) == Unit(6, 1)
    assert promotion([*trials, Trial(7, {})], 2, running={7}) is None
    promoted = replace(trials[5], scores=(6.0, 6.0))
    assert promotion([*trials[:5], promoted], 2, running={}) == Unit(5, 1)
    assert promotion([*trials[:4], promoted, replace(trials[4], scores=(5.0, 7.0))], 2, running={}) is None
    assert winner([promoted, trials[0]], 2) == promoted
    assert winner(trials, 2) is None


@pytest.mark.parametrize(("trials", "rungs"), [(1, 1), (2, 1), (3, 2), (8, 2), (9, 3), (500, 3), (0, 3)])
def test_rungs(trials: int, rungs: int) -> None:
    shares = rung_shares(trials)
    assert len(shares) == rungs
    assert shares[-1] == 1
    assert quota(trials or 1) >= 1


def test_the_time_that_promotions_take() -> None:
    trials = [Trial(number, {}, (0.0,), (2.0,)) for number in range(12)]
    assert seconds_to_promote(trials, rung_shares(12)) == pytest.approx(4 * 4 + 12)
    assert seconds_to_promote([], rung_shares(12)) == 0


def test_proposals_depend_on_seed_and_trials_alone() -> None:
    trials: list[Trial] = []
    for number in range(1, 16):
        values = propose(SPACE, trials, 0)
        assert values == propose(SPACE, trials, 0) != propose(SPACE, trials, 1)
        assert values is not None
        assert 1e-4 <= values["optimizer.lr"] <= 1e-1
        failure = "out of memory" if number == 3 else None
        trial = Trial(number, values, failure=failure)
        trials.append(trial if failure else trial.reached(quality(trial, 0), 1.0, 1))
    early, late = trials[:5], trials[10:]
    assert max(quality(trial, 0) for trial in late) > max(quality(trial, 0) for trial in early)
    small: Space = {"peft.dim": Choice((8, 16))}
    both = [Trial(1, {"peft.dim": 8}), Trial(2, {"peft.dim": 16})]
    assert propose(small, both[:1], 0) == {"peft.dim": 16}
    assert propose(small, both, 0) is None  # the space has no other values


def test_a_sweep_resumes_only_with_its_settings(tmp_path: Path) -> None:
    place, same = tmp_path / "sweep", {"metric": "loss", "space": {"a": [1, 2]}}
    with only_sweeper(place, same, [1.0]) as shares:
        assert shares == [1.0]
        with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="another process runs the sweep"):
            pool.submit(lambda: only_sweeper(place, same, [1.0]).__enter__()).result()
    with only_sweeper(place, same, [1 / 3, 1.0]) as shares:  # with a larger budget, the rungs stay
        assert shares == [1.0]
    with (
        pytest.raises(ValueError, match="holds a sweep with another space: use its settings"),
        only_sweeper(place, {**same, "space": {}}, [1.0]),
    ):
        pass


def test_trials_are_read_as_they_were_written(tmp_path: Path) -> None:
    trials = [
        Trial(n, {"peft.dim": [32, 64], "x": None}, (0.1,) * (n % 3), (1.5,) * (n % 3))
        for n in (1, 2, 9, 10, 999, 1000)
    ]
    for trial in trials:
        save_trial(tmp_path, trial)
    assert read_trials(tmp_path) == trials


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"budget": Budget(0, 0)}, "a sweep needs a budget"),
        ({"budget": Budget(-1, 0)}, "trials=-1 must be a number from 0 on"),
        ({"budget": Budget(0, -1.0)}, "hours=-1.0 must be a number from 0 on"),
        ({"budget": Budget(0, math.nan)}, "hours=nan must be a number from 0 on"),
        ({"budget": Budget(3, 0, 0)}, "parallel_trials=0 must be a number from 1 on"),
        ({"budget": Budget(3, 0, 2)}, "parallel_trials=2: with compute.launcher=local"),
        ({"metric": "accuracy"}, "metric='accuracy' is not one of loss, token_f1"),
        ({"name": "../x"}, "may have letters, digits"),
        ({"name": ".."}, "may have letters, digits"),
        ({"space": {"x": [1, 2]}}, "unknown config key 'x'"),
        ({"overrides": {"optimizer.lr": -1}}, "optimizer.lr=-1"),
    ],
)
def test_what_a_sweep_refuses(changes: dict[str, Any], fault: str) -> None:
    given: dict[str, Any] = {"recipe": "demo", "overrides": {}, "space": {"optimizer.lr": [1e-3, 1e-2]},
                             "metric": "loss", "budget": Budget(3, 0), "name": "s"}  # fmt: skip
    with pytest.raises(ValueError, match=fault):
        checked_sweep(**given | changes)


def test_half_of_the_cases_is_held_back_unless_the_recipe_says_another_share() -> None:
    space = {"optimizer.lr": [1e-3, 1e-2]}
    checked = checked_sweep("demo", {}, space, "loss", Budget(3, 0), "s")
    assert checked.config.validation_dataset.held_back == settings.HELD_BACK
    assert json.loads(json.dumps(checked.identity)) == checked.identity
    own = checked_sweep("demo", {"validation_dataset.held_back": 0.3}, space, "loss", Budget(3, 0), "s")
    assert own.config.validation_dataset.held_back == 0.3
    assert own.identity != checked.identity
    elsewhere = checked_sweep("demo", {"compute.nproc_per_node": 2}, space, "loss", Budget(9, 1.0), "s")
    assert elsewhere.identity == checked.identity


def test_the_table_and_the_picture_show_each_trial(tmp_path: Path) -> None:
    trials = [
        Trial(1, {"optimizer.lr": 1e-3, "peft.dim": 8}, (-0.5, -0.25), (1.0, 2.4)),
        Trial(2, {"optimizer.lr": 1e-2, "peft.dim": [32, 64]}, (-0.75,), (1.0,)),
        Trial(3, {"optimizer.lr": 1e-4, "peft.dim": 16}, failure="a|b"),
    ]
    rows = trial_rows(trials, "loss", [1 / 3, 1.0])
    assert [row["state"] for row in rows] == ["finished", "paused", "failed: a\\|b"]
    assert list(rows[0].items()) == [
        ("trial", 1), ("state", "finished"), ("optimizer.lr", "0.001"), ("peft.dim", "8"), ("loss at 33%", "0.5000"),
        ("loss at 100%", "0.2500"), ("seconds", 3),
    ]  # fmt: skip
    draw_trials(trials, SPACE, "loss", tmp_path / "trials.png")
    with Image.open(tmp_path / "trials.png") as picture:
        assert picture.width > picture.height > 300
    draw_trials(trials[:1], SPACE, "loss", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_shrinkage_is_what_the_held_back_part_scores_less() -> None:
    def part(value: float | None) -> dict[str, Any]:
        return {"scores": {"model": {"token_f1": {"value": value, "low": None, "high": None}}}}

    scores = {"groups": {"part": {"selection": part(0.5), "held back": part(0.42)}}}
    assert shrinkage(scores, ["token_f1"])["token_f1"]["shrinkage"] == 0.08
    scores["groups"]["part"]["held back"] = part(None)
    assert shrinkage(scores, ["token_f1"])["token_f1"]["shrinkage"] is None
