"""Successive halving: which trial trains next, and how far. Pure functions of the trials.

All trials train for the first share of their steps. The best third of them trains on to the next share, and so on to
the end (Jamieson and Talwalkar, 2016). A trial that was left behind trains on if more trials join and it is among the
best third of them.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import NamedTuple

from tasks.sweep.trials import Trial

REDUCTION = 3
MOST_RUNGS = 3


class Unit(NamedTuple):
    """A piece of work: a trial trains from its last rung to `rung`."""

    trial: int
    rung: int


def rung_shares(trials: int) -> list[float]:
    """Returns the share of its steps that a trial has trained for at each rung; 0: the number is not known yet.

    >>> [round(share, 2) for share in rung_shares(12)], rung_shares(2)
    ([0.11, 0.33, 1.0], [1.0])
    """
    rungs = 1
    while rungs < MOST_RUNGS and (not trials or trials >= REDUCTION**rungs):
        rungs += 1
    return [float(REDUCTION) ** (rung + 1 - rungs) for rung in range(rungs)]


def quota(trials: int) -> int:
    """Returns how many of `trials` at a rung reach the next one."""
    return max(1, trials // REDUCTION)


def begun(trials: Sequence[Trial], running: Collection[int]) -> Unit | None:
    """Returns the work that a killed sweep left: a trial that was proposed and has no score yet."""
    left = (t.number for t in trials if not t.scores and t.failure is None and t.number not in running)
    return next((Unit(number, 0) for number in left), None)


def promotion(trials: Sequence[Trial], rungs: int, running: Collection[int]) -> Unit | None:
    """Returns the next trial to train on, once no trial is on its way to its rung; None if all that may have done so.

    A trial that failed leaves its place to the next best one.
    """
    for rung in range(rungs - 1):
        at_rung = [trial for trial in trials if len(trial.scores) > rung]
        waited_for = [trial for trial in trials if trial.number in running and len(trial.scores) <= rung]
        if waited_for:
            return None
        sound = [trial for trial in ranked(at_rung, rung) if trial.failure is None or len(trial.scores) > rung + 1]
        for trial in sound[: quota(len(at_rung))] if at_rung else []:
            if len(trial.scores) == rung + 1 and trial.number not in running:
                return Unit(trial.number, rung + 1)
    return None


def ranked(trials: Sequence[Trial], rung: int) -> list[Trial]:
    """Returns the trials at a rung, the best one first; of equal ones the earlier one."""
    return sorted((trial for trial in trials if len(trial.scores) > rung), key=lambda t: (-t.scores[rung], t.number))


def winner(trials: Sequence[Trial], rungs: int) -> Trial | None:
    """Returns the best of the trials that have trained to the end, None if there is none."""
    return next((trial for trial in ranked(trials, rungs - 1) if trial.failure is None), None)


def seconds_to_promote(trials: Sequence[Trial], shares: Sequence[float], one_more: bool = False) -> float:
    """Estimates how long the promotions of the trials (and of `one_more`) will take, from what the first rung took."""
    first = [trial.seconds[0] for trial in trials if trial.seconds]
    if not first:
        return 0.0
    a_step = sum(first) / len(first) / shares[0]
    number, total = len(first) + one_more, one_more * a_step * shares[0]
    for before, after in pairwise(shares):
        number = quota(number)
        total += number * a_step * (after - before)
    return total
