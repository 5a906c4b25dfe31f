"""Checks what a sweep is asked for, before anything runs."""

import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from prefect.runtime import flow_run

from tasks.run import checked_config
from tasks.sweep.search import Budget
from tasks.sweep.trials import sweeps_root
from vlm_core.config import Config
from vlm_core.home import require_writable
from vlm_core.search_space import Space, parse_space

Metric = Literal["loss", "token_f1", "rouge_l", "exact_match", "closed_accuracy", "clinical_agreement"]
HELD_BACK = 0.5  # share of the validation cases that decide, unless the recipe sets one


@dataclass(frozen=True)
class CheckedSweep:
    """The checked settings of a sweep."""

    config: Config  # of the recipe with `overrides`; checkpoint.checkpoint_dir is the sweep's directory
    recipe: str
    overrides: dict[str, Any]
    space: Space
    metric: Metric
    budget: Budget

    @property
    def directory(self) -> Path:
        """The directory of the sweep."""
        return Path(str(self.config.checkpoint.checkpoint_dir))

    @property
    def identity(self) -> dict[str, Any]:
        """What every start of the sweep must have in common; where its jobs run may change."""
        config = self.config.model_dump(mode="json", exclude={"compute", "checkpoint"})
        space = {key: asdict(dimension) for key, dimension in self.space.items()}
        return json.loads(json.dumps({"config": config, "space": space, "metric": self.metric}))


def checked_sweep(
    recipe: str,
    overrides: Mapping[str, Any],
    space: Mapping[str, Any],
    metric: Metric,
    budget: Budget,
    name: str,
) -> CheckedSweep:
    """Returns the settings of a sweep; raises ValueError for what cannot run, naming the value and the remedy."""
    _require_budget(budget)
    if metric not in get_args(Metric):
        raise ValueError(f"metric={metric!r} is not one of {', '.join(get_args(Metric))}")
    config = checked_config(recipe, overrides)
    if config.compute.launcher == "local" and budget.parallel > 1:
        raise ValueError(
            f"parallel_trials={budget.parallel}: with compute.launcher=local, trials would share one machine; set 1, "
            "or compute.launcher=slurm or kubernetes"
        )
    found = parse_space(space, recipe, overrides)
    directory = _directory(config, name)
    require_writable(directory)
    own: dict[str, Any] = {"checkpoint.checkpoint_dir": str(directory)}
    if not config.validation_dataset.held_back:
        own["validation_dataset.held_back"] = HELD_BACK
    filled = {**overrides, **own}
    return CheckedSweep(checked_config(recipe, filled), recipe, filled, found, metric, budget)


def _require_budget(budget: Budget) -> None:
    if not budget.trials and not budget.hours:
        raise ValueError("a sweep needs a budget: give trials, such as 12, or hours, or both")
    least = {"trials": (budget.trials, 0), "hours": (budget.hours, 0), "parallel_trials": (budget.parallel, 1)}
    for name, (value, bound) in least.items():
        if not bound <= value < math.inf:
            raise ValueError(f"{name}={value} must be a number from {bound} on")


def _directory(config: Config, name: str) -> Path:
    """Returns the directory of a sweep with this name, or of the sweep of this flow run: a retry finds it again."""
    if name:
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
            raise ValueError(f"the sweep's name {name!r} may have letters, digits, '_', '.' and '-' only")
        return sweeps_root() / name
    mark = (flow_run.id or secrets.token_hex(4))[-8:]
    for earlier in sweeps_root().glob(f"{config.name}-*-{mark}"):
        return earlier
    return sweeps_root() / f"{config.name}-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}-{mark}"
