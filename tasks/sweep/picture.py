"""A picture of a sweep: one line per trial through its values, coloured by its score."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.sweep.trial_job import LOSS
from tasks.sweep.trials import Trial
from vlm_core.files import published_file
from vlm_core.search_space import Space, Span


def draw_trials(trials: Sequence[Trial], space: Space, metric: str, path: Path) -> None:
    """Draws parallel coordinates of the trials to `path`; the score is that at the first rung, which all have.

    Draws nothing if fewer than two trials have a score.
    """
    import matplotlib.pyplot as plt
    import optuna
    from optuna.trial import create_trial

    scored = [trial for trial in trials if trial.scores]
    if len(scored) < 2:
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(key, dimension, scored) for key, dimension in space.items()}
    study = optuna.create_study(direction="minimize" if metric == LOSS else "maximize")
    for trial in scored:
        params = {key: _shown(space[key], trial.overrides[key]) for key in space}
        value = -trial.scores[0] if metric == LOSS else trial.scores[0]
        study.add_trial(create_trial(params=params, distributions=distributions, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the plot is experimental in Optuna 5
        axes = optuna.visualization.matplotlib.plot_parallel_coordinate(
            study, target_name=f"{metric} at the first rung"
        )
    axes.set_title("")
    figure: Any = axes.figure
    figure.set_size_inches(2.5 + 2.5 * len(space), 4.5)
    with published_file(path) as aside:
        figure.savefig(aside, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def _distribution(key: str, dimension: Any, trials: Sequence[Trial]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(dimension, Span):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return CategoricalDistribution(sorted({_shown(dimension, trial.overrides[key]) for trial in trials}))


def _shown(dimension: Any, value: Any) -> Any:
    """Returns a value as the axis has it: a choice may be a list, which becomes text."""
    return float(value) if isinstance(dimension, Span) else str(value)
