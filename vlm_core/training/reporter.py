"""Reports a run while it trains: writes `metrics.jsonl` and `validation.jsonl`, and shows progress."""

import logging
import math
import time
from pathlib import Path
from typing import Any

from vlm_core.files import append_json_line, read_json_lines, to_json, write_text
from vlm_core.progress import ProgressBar
from vlm_core.run_directory import METRICS, SAMPLES, VALIDATION

logger = logging.getLogger(__name__)


class Reporter:
    """Writes the records of a run. Does nothing unless `enabled`, that is, on the main rank."""

    def __init__(self, directory: Path, total_steps: int, first_step: int, *, enabled: bool) -> None:
        self.directory, self.total_steps, self.enabled = directory, total_steps, enabled
        self.started = time.monotonic()
        self.progress = ProgressBar(total_steps, "finetune", "step", enabled=enabled, done=first_step)
        self.elapsed_before = self._forget_after(first_step) if enabled else 0.0

    def step(self, record: dict[str, Any]) -> None:
        """Writes the record of an optimizer step and shows the progress."""
        if not self.enabled:
            return
        speed, memory = record["samples_per_second"], record["peak_memory_mb"] / 1000
        self.progress.update(note=f"loss {record['loss']:.4f}, {speed:.1f} samples/s, {memory:.1f} GB at most")
        times = {
            "elapsed_seconds": round(self.elapsed_before + time.monotonic() - self.started, 3),
            "seconds_left": round(self.progress.seconds_left(), 1),
        }
        append_json_line(self.directory / METRICS, record | times)

    def validation(self, record: dict[str, Any]) -> None:
        """Writes a validation loss and shows it."""
        if self.enabled:
            append_json_line(self.directory / VALIDATION, record)
            logger.info("validation loss %.4f at step %d/%d", record["loss"], record["step"], self.total_steps)

    def close(self) -> None:
        """Ends the progress bar."""
        self.progress.bar.close()

    def _forget_after(self, step: int) -> float:
        """Drops the records after `step`, where the run resumes: the run writes them again.

        Returns the elapsed seconds of the run at the last step that remains.
        """
        kept = {}
        for name in (METRICS, VALIDATION, SAMPLES):
            path = self.directory / name
            kept[name] = [record for record in read_json_lines(path)[0] if record.get("step", math.inf) <= step]
            write_text(path, "".join(to_json(record) + "\n" for record in kept[name]))
        return kept[METRICS][-1]["elapsed_seconds"] if kept[METRICS] else 0.0
