"""A language model behind an OpenAI-compatible address: what a judge and a model to compare with have in common.

Data leaves this machine only to addresses that the machine's operator allows in an environment variable. Replies are
stored as they come, by what was asked, so that an interrupted command resumes and nothing is paid for twice.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, ClassVar, TypeVar

from vlm_core.evaluation.store import Store
from vlm_core.progress import ProgressBar

AT_ONCE = 8  # requests
T = TypeVar("T")


@dataclass(frozen=True)
class Endpoint:
    """A model at an address such as `http://127.0.0.1:8000/v1`. `timeout` is in seconds for each request."""

    model: str
    url: str
    timeout: float = 60.0
    retries: int = 5
    allowed_by: ClassVar[str]  # environment variable: addresses that data may be sent to, separated by commas
    role: ClassVar[str]  # what it is called in errors
    sends: ClassVar[str]  # what it gets

    def __post_init__(self) -> None:
        allowed = [entry.strip().rstrip("/") for entry in os.environ.get(self.allowed_by, "").split(",")]
        if self.url.rstrip("/") not in filter(None, allowed):
            raise ValueError(
                f"{self.sends} may not be sent to {self.url}: the machine's operator adds the address to "
                f"{self.allowed_by} (now {', '.join(filter(None, allowed)) or 'unset'})"
            )
        if find_spec("openai") is None:
            raise ValueError(f"{self.role} needs the package openai: pip install 'medpix-finetune[judge]'")

    @cached_property
    def client(self) -> Any:
        """The client. It repeats requests after timeouts, lost connections, rate limits and errors of the server."""
        from openai import OpenAI

        key = os.environ.get("OPENAI_API_KEY") or "none"  # servers of one's own need no key
        return OpenAI(base_url=self.url, api_key=key, timeout=self.timeout, max_retries=self.retries)

    def ask_all(self, work: Mapping[str, T], ask: Callable[[T], dict[str, Any]], store: Store, unit: str) -> None:
        """Stores `ask(item)` by its key for each item of `work`, as the replies come.

        Raises ValueError if the endpoint fails for good, or if `ask` raises one. The replies until then are stored.
        """
        from openai import OpenAIError

        with ThreadPoolExecutor(AT_ONCE) as pool, ProgressBar(len(work), self.role, unit) as progress:
            try:
                for key, reply in zip(work, pool.map(ask, work.values()), strict=True):
                    store.add({key: reply})
                    progress.update()
            except (OpenAIError, ValueError) as error:
                pool.shutdown(cancel_futures=True)
                raise ValueError(
                    f"{self.role} {self.model} at {self.url} failed ({type(error).__name__}: {error}); the replies "
                    "until then are stored, and the same command asks for the rest"
                ) from error
