"""The two sides of a dataset: as they were published, or divided anew so that no case or image is on both."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_core.config import Config
from vlm_core.data.source import SplitSource, fetch_split

TRAIN, VALIDATION = SPLITS = ("train", "validation")
PUBLISHED, IMAGE = "published", "image"


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
        if self.split_by == IMAGE:
            rule.append("connected")  # Caches that went by an example's first image are others.
        identity = {name: source.fingerprint for name, source in self.sources.items()}
        return hashlib.sha256(json.dumps([identity, rule], sort_keys=True).encode()).hexdigest()

    def side_of(self, name: str) -> str:
        """Returns the side of what must not be divided: a case, or an image with all that examples show beside it.

        It is drawn by its own name: which side it is on depends on no other, so that a dataset that grows moves none.
        """
        drawn = hashlib.sha256(f"{self.seed}|{name}".encode()).digest()
        return VALIDATION if int.from_bytes(drawn[:8]) / 2**64 < self.validation_share else TRAIN


class ConnectedImages:
    """Images that examples show together, directly or by way of others: disjoint sets, joined as examples come."""

    def __init__(self) -> None:
        self._towards: dict[str, str] = {}  # of each image that joined another: one that is nearer to its set's name

    def join(self, images: Sequence[str]) -> None:
        """Puts the images of an example, by their hashes, into one set."""
        names = {self.name(image) for image in images}
        for other in names - {least := min(names)}:
            self._towards[other] = least

    def name(self, image: str) -> str:
        """Returns the least hash of an image's set: of one that is alone, its own, in whatever order examples came."""
        while image in self._towards:
            nearer = self._towards[image]
            self._towards[image] = image = self._towards.get(nearer, nearer)
        return image


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
