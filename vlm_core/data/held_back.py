"""Divides a validation split by case: one part chooses during training, the held-back part decides afterwards.

The part of a case depends on its id alone. So a case stays in its part when the dataset grows.
"""

import hashlib

from vlm_core.data.case_ids import case_key


def is_held_back(case_id: str, share: float) -> bool:
    """Returns whether a case belongs to the held-back part, to which about `share` of all cases belong."""
    if not share:
        return False
    digest = hashlib.sha256(b"held back " + case_key(case_id).encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64
