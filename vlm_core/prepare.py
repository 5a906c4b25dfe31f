"""Checks and caches the data of a recipe, and writes a report about it; neither a model nor a GPU is needed.

    python -m vlm_core.prepare --config demo
    python -m vlm_core.prepare --config gemma3_4b_lora --dataset.split_by case

Later commands find the cache. The report says what is wrong with the data, and how many of the validation questions are
about cases that training has seen.
"""

from vlm_core.arguments import check_arguments, prepare_parser

if __name__ == "__main__":  # before the imports below, which take seconds
    check_arguments(prepare_parser(__doc__), "pyarrow and datasets")

import logging

from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json
from vlm_core.home import require_writable
from vlm_core.hub import HubBusyError
from vlm_core.log import configure_logging
from vlm_core.pages.data_report import write_data_report
from vlm_core.run_directory import REPORT

logger = logging.getLogger(__name__)


def main() -> None:
    """Runs the command."""
    options, config = prepare_parser(__doc__).parse_config()
    configure_logging()
    try:
        require_writable(options.output)
        conversations, reused = prepare_conversations(config)
    except (ValueError, HubBusyError) as error:
        raise SystemExit(f"error: {error}") from error
    write_data_report(config, conversations, options.output / REPORT)
    found = read_json(conversations / STATISTICS)
    rows = {split: described["rows"] for split, described in found["splits"].items()}
    logger.info("%s %s: %s rows, %d images", "reused" if reused else "built", conversations, rows,
                found["images"]["count"])  # fmt: skip
    logger.info("open %s in a browser", (options.output / REPORT).absolute())


if __name__ == "__main__":
    main()
