"""The trials of a sweep, one file each, and the settings that every start of the sweep must have in common.

A trial's file is replaced as a whole after each rung. So a killed sweep loses what it was doing, and nothing before it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import Timeout

from tasks.stops import SWEEP
from vlm_core.cache import locked
from vlm_core.files import read_json, write_json
from vlm_core.home import medpix_home


@dataclass(frozen=True)
class Trial:
    """One set of values, with its score at each rung that it has reached."""

    number: int  # from 1
    overrides: dict[str, Any]  # config key -> value
    scores: tuple[float, ...] = ()  # on the selection part, by rung; higher is better
    seconds: tuple[float, ...] = ()  # that each rung took
    failure: str | None = None  # why the trial ended before its next rung
    basis: int | None = None  # what was scored: the number of tokens or questions, equal for all trials of a sweep

    def reached(self, score: float, seconds: float, basis: int) -> "Trial":
        """Returns the trial with the score of its next rung."""
        return replace(self, scores=(*self.scores, score), seconds=(*self.seconds, seconds), basis=basis)


def sweeps_root() -> Path:
    """Returns the parent of all sweeps' directories."""
    return medpix_home() / "sweeps"


def trial_directory(sweep: Path, number: int) -> Path:
    """Returns the run directory of a trial."""
    return sweep / f"{sweep.name}-trial-{number:03d}"


def save_trial(sweep: Path, trial: Trial) -> None:
    """Writes a trial's file."""
    write_json(_file(sweep, trial.number), asdict(trial))


def read_trials(sweep: Path) -> list[Trial]:
    """Returns the trials of a sweep, in the order in which they were proposed."""
    files = sorted(_file(sweep, 0).parent.glob("*.json"), key=lambda path: int(path.stem))
    found = [read_json(path) for path in files]
    return [Trial(**one | {key: tuple(one[key]) for key in ("scores", "seconds")}) for one in found]


def _file(sweep: Path, number: int) -> Path:
    return sweep / "trials" / f"{number:03d}.json"


@contextmanager
def only_sweeper(sweep: Path, settings: Mapping[str, Any], shares: list[float]) -> Iterator[list[float]]:
    """Holds a sweep's directory for the block; yields the rungs' shares.

    The first start writes the settings and the shares. Later ones must have the same settings, and use its shares.
    Raises ValueError if another process holds the directory, or if the settings differ.
    """
    sweep.mkdir(parents=True, exist_ok=True)
    try:
        with locked(sweep / ".lock", timeout=0):
            before = read_json(sweep / SWEEP) if (sweep / SWEEP).is_file() else {**settings, "shares": shares}
            _require_same(sweep, before, settings)
            write_json(sweep / SWEEP, before)
            (sweep / "trials").mkdir(exist_ok=True)
            yield before["shares"]
    except Timeout:
        raise ValueError(f"another process runs the sweep in {sweep}: wait for it, or give this sweep a name") from None


def _require_same(sweep: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        raise ValueError(
            f"{sweep} holds a sweep with another {' and another '.join(changed)}: use its settings to resume it (more "
            "trials or hours are allowed), or give this sweep another name"
        )
