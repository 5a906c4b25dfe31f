"""Sends a run to Weights & Biases, as the config's `wandb` says.

The command is `python -m tasks.trackers.wandb_run [--follow] RUN_DIRECTORY`.

Each record is sent once, to one W&B run. `wandb.json` keeps the run's id and the last steps, so that the same command
resumes. The flow runs this command in a separate process, so that neither a broken network nor wandb's threads delay
the training. wandb finds the key itself: in WANDB_API_KEY, or from `wandb login`.
"""

import argparse
import logging
import os
import secrets
import signal
import time
from pathlib import Path
from typing import Any

from tasks.trackers.metrics_files import PREFIXES, RecordReader, metrics_of
from vlm_core.config import Config
from vlm_core.files import read_json, read_json_lines, write_json
from vlm_core.log import configure_logging
from vlm_core.recipe import load_config
from vlm_core.run_directory import CONFIG, LOSS_PLOT, METRICS, PARAMETERS, RESULT, SAMPLES, VALIDATION

logger = logging.getLogger(__name__)

STATE = "wandb.json"
NOT_INSTALLED = "wandb is not installed: pip install 'medpix-finetune[wandb]'"
SECONDS_BETWEEN_POLLS = 1.0
INIT_SECONDS, FINISH_SECONDS = 30.0, 60.0  # network timeouts
SAMPLE_COLUMNS: list[Any] = ["step", "example_id", "question", "prediction", "reference"]


class WandbRun:
    """A W&B run that receives the contents of a run directory."""

    def __init__(self, directory: Path, config: Config) -> None:
        """Starts or resumes the W&B run.

        Raises ValueError if the config has no section `wandb` or wandb is not installed, and wandb.Error if W&B cannot
        be reached or rejects the key.
        """
        if config.wandb is None:
            raise ValueError(f"{directory / CONFIG} has no section wandb; add one: wandb: {{project: NAME}}")
        try:
            import wandb
        except ImportError:
            raise ValueError(NOT_INSTALLED) from None
        self.wandb, self.directory, self.config = wandb, directory, config
        known = read_json(directory / STATE) if (directory / STATE).is_file() else {}
        self.reader, self.sent_parameters = RecordReader(directory, known.get("sent")), False
        self.run = self._start(known.get("id") or secrets.token_hex(4))
        self._remember()

    def poll(self) -> None:
        """Sends everything that is new."""
        if not self.sent_parameters and (self.directory / PARAMETERS).is_file():
            self.run.config.update({"parameters": read_json(self.directory / PARAMETERS)}, allow_val_change=True)
            self.sent_parameters = True
        for name, prefix in PREFIXES.items():
            records, position = self.reader.new_records(name)
            for record in records:
                self.run.log({"step": record["step"], **metrics_of(record, prefix)})
                if name == VALIDATION and self.config.report.images:
                    self._log_samples(record["step"])
            self.reader.positions[name] = position
            if records:
                self._remember()

    def end(self) -> None:
        """Sends the rest, the loss plot and the result; the run's state is failed unless the training has finished.

        Raises TimeoutError, with the command that sends the rest, if W&B did not receive everything in time.
        """
        self.poll()
        if (self.directory / LOSS_PLOT).is_file():
            self.run.log({"loss": self.wandb.Image(str(self.directory / LOSS_PLOT))})
        finished = is_finished(self.directory)
        if finished:
            self.run.summary.update(read_json(self.directory / RESULT))
        try:
            self.run.finish(exit_code=0 if finished else 1)
        except TimeoutError:
            files = Path(self.run.dir).parent
            raise TimeoutError(
                f"not everything was received in {FINISH_SECONDS:.0f} s; to send the rest, run: wandb sync {files}"
            ) from None

    def _start(self, run_id: str) -> Any:
        assert self.config.wandb
        settings = self.config.wandb
        offline = (settings.mode or os.environ.get("WANDB_MODE")) == "offline"
        files = Path(settings.save_dir or self.directory).absolute()
        files.mkdir(parents=True, exist_ok=True)  # without it, wandb uses a temporary directory
        run = self.wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=settings.name or self.directory.name,
            dir=str(files),
            id=run_id,
            resume=None if offline else "allow",  # offline there is nothing to resume: `wandb sync` joins files by id
            mode=settings.mode,
            config=self.config.model_dump(mode="json"),
            settings=self.wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                x_disable_stats=True,  # they would describe this process, not the training
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        run.define_metric("step")
        for prefix in PREFIXES.values():
            run.define_metric(f"{prefix}/*", step_metric="step")
        page = f"offline; to send the run later: wandb sync {Path(run.dir).parent}" if run.offline else run.url
        logger.info("Weights & Biases: %s", page)
        return run

    def _log_samples(self, step: int) -> None:
        # The training writes the samples before the validation's record, so they are complete here.
        samples = [sample for sample in read_json_lines(self.directory / SAMPLES)[0] if sample["step"] == step]
        if samples:
            rows: list[Any] = [[sample[column] for column in SAMPLE_COLUMNS] for sample in samples]
            self.run.log({"step": step, "samples": self.wandb.Table(columns=SAMPLE_COLUMNS, data=rows)})

    def _remember(self) -> None:
        sent = {name: position.step for name, position in self.reader.positions.items()}
        write_json(self.directory / STATE, {"id": self.run.id, "sent": sent})


def is_finished(directory: Path) -> bool:
    """Returns whether a run has finished. A result with fewer steps belongs to an earlier, shorter run."""
    records = read_json_lines(directory / METRICS)[0]
    path = directory / RESULT
    return bool(records) and path.is_file() and read_json(path)["steps"] == records[-1]["step"]


def send(directory: Path, *, follow: bool) -> None:
    """Sends the run; with `follow`, also sends what is added, until SIGTERM or SIGINT."""
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: stopped.append(received))
    if os.environ.get("WANDB_MODE") == "disabled":
        logger.info("WANDB_MODE=disabled: nothing is sent")
        return
    run = WandbRun(directory, load_config(directory / CONFIG))
    while follow and not stopped:
        run.poll()
        time.sleep(SECONDS_BETWEEN_POLLS)
    run.end()


def main() -> None:
    """Runs the command; a failure of W&B ends it with the reason and a remedy."""
    parser = argparse.ArgumentParser(prog="python -m tasks.trackers.wandb_run", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="RUN_DIRECTORY")
    parser.add_argument("--follow", action="store_true", help="send until SIGTERM or Ctrl-C, while a training runs")
    options = parser.parse_args()
    configure_logging()
    directory = options.directory.absolute()
    try:
        send(directory, follow=options.follow)
    except (ValueError, TimeoutError) as error:
        raise SystemExit(f"error: Weights & Biases: {error}") from None
    except Exception as error:  # any kind: the message gives the reason and the remedy
        raise SystemExit(
            f"error: Weights & Biases did not accept the run: {type(error).__name__}: {error}; "
            f"to send the rest, run: python -m tasks.trackers.wandb_run {directory}"
        ) from error


if __name__ == "__main__":
    main()
