"""Runs the trials of a sweep: proposes them, trains them from rung to rung, and stores each result at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, replace

from prefect import get_run_logger

from tasks.launchers.job import JobFailedError
from tasks.sweep.halving import Unit, begun, promotion, seconds_to_promote, winner
from tasks.sweep.proposals import propose
from tasks.sweep.trial_job import LOSS, Sweep, run_trial
from tasks.sweep.trials import Trial, read_trials, save_trial
from vlm_core.plain_text import printable
from vlm_core.search_space import Space, has, value_of

HOPELESS = 3  # trials that failed at the start, before the sweep gives up


@dataclass(frozen=True)
class Budget:
    """How many trials a sweep may propose: a number, or (0) as many as finish within some hours (0: no limit)."""

    trials: int
    hours: float
    parallel: int = 1

    def allows(self, trials: Sequence[Trial], shares: Sequence[float]) -> bool:
        """Returns whether one more trial may be proposed."""
        if self.trials and len(trials) >= self.trials:
            return False
        if not self.hours:
            return True
        spent = sum(sum(trial.seconds) for trial in trials)
        left = self.hours * 3600 * self.parallel - spent
        return left > seconds_to_promote(trials, shares, one_more=True)


class Search:
    """The trials of a sweep while it runs; `trials` is what their files have."""

    def __init__(
        self,
        sweep: Sweep,
        space: Space,
        budget: Budget,
        shares: Sequence[float],
        show: Callable[[Sequence[Trial]], None],
    ) -> None:
        """`show` gets the trials after each change."""
        self.sweep, self.space, self.budget = sweep, space, budget
        self.trials = read_trials(sweep.directory)
        self.shares = shares
        self.running: dict[Future[Trial], Unit] = {}
        self.exhausted, self.show = False, show
        self.logger = get_run_logger()

    def run(self) -> Trial:
        """Runs the sweep to its end, from where it stands; returns the trial with the best score at the last rung.

        Raises RuntimeError if no trial reached the last rung.
        """
        self.show(self.trials)
        with ThreadPoolExecutor(self.budget.parallel) as pool:
            try:
                self._run(pool)
            finally:
                self.sweep.stop.set()  # after an error or a signal: the other trials save and end
        best = winner(self.trials, len(self.shares))
        if best is None:
            raise RuntimeError(f"no trial reached the end; the last failure: {self._last_failure()}")
        return best

    def _run(self, pool: ThreadPoolExecutor) -> None:
        while True:
            while len(self.running) < self.budget.parallel and (unit := self._next()):
                trial = self.trials[unit.trial - 1]
                self._log(unit, "trains")
                call = (copy_context().run, run_trial, self.sweep, trial, unit, self.shares[unit.rung])
                self.running[pool.submit(*call)] = unit
            if not self.running:
                return
            for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                self._record(self.running.pop(future), future)

    def _next(self) -> Unit | None:
        """Returns the next piece of work, None if everything else waits for what runs."""
        running = {unit.trial for unit in self.running.values()}
        return begun(self.trials, running) or self._new() or promotion(self.trials, len(self.shares), running)

    def _new(self) -> Unit | None:
        if self.exhausted or not self.budget.allows(self.trials, self.shares):
            return None
        if not self.trials and has(self.space, self.sweep.config):  # no sweep ends below its recipe unnoticed
            values = {key: value_of(self.sweep.config, key) for key in self.space}
        else:
            found = propose(self.space, self.trials, self.sweep.config.rng.seed)
            if found is None:
                self.exhausted = True
                self.logger.warning("the space has no other values: the sweep proposes no more than %d trials",
                                    len(self.trials))  # fmt: skip
                return None
            values = found
        self._store(Trial(len(self.trials) + 1, values))
        return Unit(len(self.trials), 0)

    def _record(self, unit: Unit, future: Future[Trial]) -> None:
        try:
            trial = future.result()
            self._require_comparable(trial)
        except (JobFailedError, ValueError) as error:
            failure = printable(error)
            self.logger.warning("trial %d failed: %s", unit.trial, failure)
            self._store(replace(self.trials[unit.trial - 1], failure=failure))
            self._require_hope(error)
            return
        self._store(trial)
        self._log(unit, f"has {self.sweep.metric} {shown_score(trial.scores[-1], self.sweep.metric)}")

    def _require_comparable(self, trial: Trial) -> None:
        first = next((other for other in self.trials if other.basis is not None), trial)
        if trial.basis != first.basis:
            raise ValueError(
                f"its score is over {trial.basis} tokens or questions, that of trial {first.number} over "
                f"{first.basis}: its values change the validation data or its tokens, so the scores cannot be compared"
            )

    def _require_hope(self, error: Exception) -> None:
        if len(self.trials) >= HOPELESS and all(trial.failure for trial in self.trials):
            raise RuntimeError(f"the first {len(self.trials)} trials all failed; the last: {error}") from error

    def _last_failure(self) -> str:
        return next((trial.failure for trial in reversed(self.trials) if trial.failure), "none")

    def _store(self, trial: Trial) -> None:
        self.trials[trial.number - 1 : trial.number] = [trial]
        save_trial(self.sweep.directory, trial)
        self.show(self.trials)

    def _log(self, unit: Unit, what: str) -> None:
        values = ", ".join(f"{key}={value}" for key, value in self.trials[unit.trial - 1].overrides.items())
        of = f" of {self.budget.trials}" if self.budget.trials else ""
        self.logger.info("trial %d%s at rung %d of %d (%s) %s", unit.trial, of, unit.rung + 1, len(self.shares),
                         values, what)  # fmt: skip


def shown_score(score: float, metric: str) -> str:
    """Returns a trial's score as people read it: a loss is lower, not higher."""
    return f"{-score if metric == LOSS else score:.4f}"
