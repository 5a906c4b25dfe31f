"""What the fuzz tests share: how long they search, and damage to files.

The suite tries few examples, the same ones each time. `make stress` sets MEDPIX_FUZZ: they then try that many times as
many, other ones each time. Hypothesis prints the one that fails.
"""

import os
import resource
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("MEDPIX_FUZZ", "1"))
HUGE = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0")  # as a length or a dimension
IGNORED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


def fuzz(examples: int) -> Any:
    """Returns the settings of a test that tries `examples` examples in the suite."""
    return settings(max_examples=examples * TIMES, derandomize=TIMES == 1, suppress_health_check=IGNORED)


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes], near: tuple[int, ...] = (400, 2000)) -> bytes:
    """Returns one of `files` that is cut, with bytes changed, or with four of them replaced by a huge number.

    Most changes are within the first bytes, of which `near` has numbers: headers are there.
    """
    content = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 8))):
        end = min(len(content) - 1, draw(st.sampled_from([*near, len(content)])))
        content[draw(st.integers(0, end))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(content) - 4))
        content[at : at + 4] = draw(st.sampled_from(HUGE))
    return bytes(content[: draw(st.one_of(st.just(len(content)), st.integers(1, len(content))))])


def peak_memory() -> int:
    """Returns the largest resident memory that this process has had, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
