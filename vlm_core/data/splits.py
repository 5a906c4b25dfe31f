"""The two sides of a dataset: as they were published, or divided anew so that no case or image is on both."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from vlm_core.config import Config
from vlm_core.data.source import SplitSource, fetch_split

TRAIN, VALIDATION = SPLITS = ("train", "validation")
PUBLISHED = "published"


@dataclass(frozen=True)
class Splits:
    """Checked sources, and the rule by which their rows come to train or to validate."""

    sources: dict[str, SplitSource]  # by the split that published them
    split_by: str = PUBLISHED
    seed: int = 0
    validation_share: float = 0.0

    @property
    def fingerprint(self) -> str:
        """Returns a hash of all that decides which rows stand on which side."""
        rule = [self.split_by, self.seed, self.validation_share] if self.split_by != PUBLISHED else [PUBLISHED]
        identity = {name: source.fingerprint for name, source in self.sources.items()}
        return hashlib.sha256(json.dumps([identity, rule], sort_keys=True).encode()).hexdigest()

    def side_of(self, published: str, case: str, image: str) -> str:
        """Returns the side of a row that was published in the split `published`.

        A case, or image, is drawn by its own name: which side it is on depends on no other, so that a dataset that
        grows moves none of them.
        """
        if self.split_by == PUBLISHED:
            return published
        drawn = hashlib.sha256(f"{self.seed}|{case if self.split_by == 'case' else image}".encode()).digest()
        return VALIDATION if int.from_bytes(drawn[:8]) / 2**64 < self.validation_share else TRAIN


def fetch_splits(config: Config) -> Splits:
    """Returns the checked sources of both splits; raises ValueError as `fetch_split` does."""
    sources = {TRAIN: fetch_split(config.dataset)}
    if config.validation_source is not None:
        sources[VALIDATION] = fetch_split(config.validation_source)
    rule = config.dataset
    return Splits(sources, rule.split_by, rule.split_seed, rule.validation_share)


def revisions(splits: Splits) -> dict[str, Any]:
    """Returns `{split: commit}` of sources on the hub, None for others."""
    return {name: source.revision for name, source in splits.sources.items()}
