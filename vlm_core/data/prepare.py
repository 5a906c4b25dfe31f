"""Prepares the data of a run: fetches, divides and caches it, and refuses it if too many rows were rejected."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_core.cache import read_manifest
from vlm_core.config import Config, DatasetConfig
from vlm_core.data.conversation_cache import build_conversations
from vlm_core.data.medical_statistics import signs_of_personal_data
from vlm_core.data.rejects import describe_rejects, reject_lines
from vlm_core.data.splits import Splits, fetch_splits
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json

logger = logging.getLogger(__name__)


def prepare_conversations(config: Config, splits: Splits | None = None) -> tuple[Path, bool]:
    """Returns (the conversation cache of `config`, whether it existed already); `splits` are fetched if not given.

    Raises ValueError for data that cannot be fetched or read, and if more than the configured share is rejected.
    """
    directory, reused = build_conversations(splits or fetch_splits(config))
    require_few_rejects(directory, config)
    require_little_personal_data(directory, config)
    for key, dataset, counts in _by_dataset(config, read_manifest(directory)):
        if left_out := counts.get("left_out"):
            logger.info("%s.where left out %s rows (%s)", key, f"{left_out:,}", ", ".join(dataset.where))
    for finding in read_json(directory / STATISTICS)["findings"]:
        logger.warning("%s", finding)
    for line in reject_lines(rejects_to_show(directory, config)):
        logger.warning("rejected: %s", line)
    return directory, reused


def _by_dataset(config: Config, found: Mapping[str, Any]) -> list[tuple[str, DatasetConfig, Mapping[str, Any]]]:
    """Returns (config key, config, entry) of each dataset; `found` is a manifest, or statistics.

    The entry of a single dataset is `found` itself. That of one of several is in `found["datasets"]`.
    """
    if "datasets" not in found:
        return [("dataset", config.dataset, found)]
    return [(config.key_of(name), config.datasets[name], entry) for name, entry in found["datasets"].items()]


def require_few_rejects(conversations: Path, config: Config) -> None:
    """Raises ValueError if more rows of a dataset were rejected than its `max_reject_share` allows."""
    for key, dataset, counts in _by_dataset(config, read_manifest(conversations)):
        rejects, allowed = counts.get("rejects", {}), dataset.max_reject_share
        rejected = counts["rejected"] if "rejected" in counts else sum(reject["rows"] for reject in rejects.values())
        share = rejected / max(1, rejected + sum(counts["rows"].values()))
        if share > allowed:
            reasons = describe_rejects(rejects_to_show(conversations, config))
            raise ValueError(
                f"dataset {dataset.path_or_dataset!r}: {rejected} rows ({share:.2%}) were rejected, and "
                f"{key}.max_reject_share={allowed} allows {allowed:.2%}. {reasons}. "
                "Correct them, or allow more"
            )


def require_little_personal_data(conversations: Path, config: Config) -> None:
    """Raises ValueError if more texts and images of a dataset show signs of personal data than its config allows."""
    for key, dataset, found in _by_dataset(config, read_json(conversations / STATISTICS)):
        allowed = dataset.max_personal_data
        if allowed is not None and (signs := signs_of_personal_data(found)) > allowed:
            kinds = dict(sorted(found["personal_texts"].items())) | {
                "text burnt into an image": found["burnt_in_text"]["images"]
            }
            raise ValueError(
                f"dataset {dataset.path_or_dataset!r}: {signs} signs of personal data "
                f"({', '.join(f'{kind}: {count}' for kind, count in kinds.items() if count)}), and "
                f"{key}.max_personal_data={allowed} allows fewer. Remove them from the data, or allow more after a look"
            )


def rejects_to_show(conversations: Path, config: Config) -> dict[str, Any]:
    """Returns the rejects of a cache; without the details, which quote the data, if texts must stay out of logs."""
    rejects = read_manifest(conversations)["rejects"]
    return rejects if config.report.images else {reason: r | {"about": ""} for reason, r in rejects.items()}
