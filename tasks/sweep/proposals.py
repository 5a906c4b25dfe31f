"""Proposes the values of the next trial: Optuna's TPE, as a pure function of the seed and of the trials so far.

Nothing of Optuna is stored, so that a killed sweep proposes what it would have proposed.
"""

import math
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from tasks.sweep.trials import Trial
from vlm_core.search_space import Choice, Space, Span

AT_RANDOM = 5  # trials before TPE has something to learn from
TRIES = 20  # to find values that no trial has had
DIGITS = 4  # of a proposed number: more would only make it hard to read


def propose(space: Space, trials: Sequence[Trial], seed: int) -> dict[str, Any] | None:
    """Returns `{config key: value}` for the next trial; None if every value found has had its trial already."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(dimension) for key, dimension in space.items()}
    known = [trial.overrides for trial in trials]
    for attempt in range(TRIES):
        sampler = optuna.samplers.TPESampler(
            seed=(seed * 1_000_003 + len(trials) * 101 + attempt) % 2**32,
            n_startup_trials=AT_RANDOM,
            constant_liar=True,
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials([_frozen(trial, space, distributions, trials) for trial in trials])
        drawn = study.ask(distributions).params
        values = {key: _value(dimension, drawn[key]) for key, dimension in space.items()}
        if values not in known:
            return values
    return None


def _distribution(dimension: Choice | Span) -> BaseDistribution:
    if isinstance(dimension, Choice):  # by their positions, because Optuna takes no lists as choices
        return CategoricalDistribution(range(len(dimension.values)))
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _value(dimension: Choice | Span, drawn: Any) -> Any:
    if isinstance(dimension, Choice):
        return dimension.values[drawn]
    if dimension.whole:
        return int(drawn)
    rounded = float(f"{drawn:.{DIGITS}g}")
    return min(max(rounded, dimension.low), dimension.high)


def _frozen(
    trial: Trial, space: Space, distributions: dict[str, BaseDistribution], trials: Sequence[Trial]
) -> FrozenTrial:
    """Returns a trial as Optuna knows it, with its score at the first rung, which all trials have in common.

    A failed trial counts as the worst one, so that its neighbourhood is avoided.
    """
    params = {
        key: dimension.values.index(trial.overrides[key]) if isinstance(dimension, Choice) else trial.overrides[key]
        for key, dimension in space.items()
    }
    known = [other.scores[0] for other in trials if other.scores]
    if trial.scores:
        state, value = TrialState.COMPLETE, trial.scores[0]
    elif trial.failure is not None and known:
        state, value = TrialState.COMPLETE, min(known)
    else:
        state, value = (TrialState.FAIL if trial.failure else TrialState.RUNNING), None
    assert value is None or math.isfinite(value)
    return create_trial(state=state, params=params, distributions=distributions, value=value)
