"""docs/models.md says of each model type what a tiny checkpoint of its real classes does."""

from collections.abc import Iterator

import pytest
import torch

from tests.model_table import EXAMPLES, PAGE, directory_by_name, row


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models need a third of the processor time without a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_says_what_is_found(name: str) -> None:
    line = "| " + " | ".join(row(name, directory_by_name()[name]())) + " |"
    page = PAGE.read_text(encoding="utf-8").splitlines()
    assert line in page, "run python -m tests.model_table, and look at what changed"


def test_the_page_has_every_row() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(rows) == len(EXAMPLES) >= 14
    assert all(f"| {example} |" in "\n".join(rows) for example in EXAMPLES.values())
