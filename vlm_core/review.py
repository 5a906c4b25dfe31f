"""Makes and scores a reader study: people compare the answers of two models without knowing whose they are.

    python -m vlm_core.review make vlm_checkpoints/evaluation --against base --questions 60 --output-dir study
    python -m vlm_core.review score study/key.json reading-*.json --output review.json

`make` draws questions of an evaluation and writes `study.html`, one page that needs no network and works with the
keyboard. Send it to the readers, and keep `key.json`, which says whose answer is whose. Each reader saves a file and
sends it back. `score` prints preference, correctness and agreement, with 95 % intervals over cases.
"""

from vlm_core.arguments import read_arguments, review_parser

if __name__ == "__main__":  # before the imports below, which take seconds
    OPTIONS = read_arguments(review_parser(__doc__), "pyarrow and Pillow")
else:
    OPTIONS = None

import argparse
import logging

from vlm_core.evaluation.reader_study.draw import detectable_preference
from vlm_core.evaluation.reader_study.readings import score_readings, summary
from vlm_core.evaluation.reader_study.study import KEY, PAGE, write_study
from vlm_core.files import write_json
from vlm_core.plain_text import printable

logger = logging.getLogger(__name__)


def make(options: argparse.Namespace) -> None:
    """Writes a study and logs what it can show."""
    key = write_study(options.evaluation, options.against, options.questions, options.seed, options.output_dir)
    cases = len({item["case_id"] for item in key["items"]})
    logger.info("%d questions about %d cases: a preference for one model in %.0f %% of them would be found in four "
                "studies of five", len(key["items"]), cases, 100 * detectable_preference(cases))  # fmt: skip
    logger.info("send %s to the readers, and keep %s", options.output_dir / PAGE, options.output_dir / KEY)


def score(options: argparse.Namespace) -> None:
    """Prints the scores of a study, and writes them if asked."""
    result = score_readings(options.key, options.readings)
    print(summary(result))
    if options.output:
        write_json(options.output, result)
        logger.info("wrote %s; python -m tasks.registry review NAME VERSION %s adds it to a version", options.output,
                    options.output)  # fmt: skip


def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    try:
        (make if options.command == "make" else score)(options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {printable(error)}") from error


if OPTIONS:
    main(OPTIONS)
