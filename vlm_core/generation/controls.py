"""Controls: the same questions with another case's image. A model that scores the same has not learnt to look."""

import random
from collections.abc import Sequence
from typing import Any

from vlm_core.data.conversations import image_indices


def shuffle_between_cases(examples: Sequence[dict[str, Any]], seed: int) -> dict[int, int] | None:
    """Returns `{image index: index of an image of another case}` for all images of `examples`.

    None where all images belong to one case, so that there is nothing to shuffle with.
    """
    cases: dict[int, set[str]] = {}
    for example in examples:
        for index in image_indices(example):
            cases.setdefault(index, set()).add(example["case_id"])
    generator = random.Random(seed)
    images = sorted(cases)
    others = {image: [other for other in images if not cases[image] & cases[other]] for image in images}
    if not all(others.values()):
        return None
    return {image: generator.choice(others[image]) for image in images}
