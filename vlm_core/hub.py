"""Downloads from the Hugging Face hub, with a message of its own for each way in which they fail.

`HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE` mean what they mean to `huggingface_hub`, whose shared
cache is used: a repository that is there already is not fetched again.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import httpx
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPOSITORY_ID = re.compile(r"[\w.-]+/[\w.-]+")


class HubBusyError(RuntimeError):
    """The hub answered that it cannot serve the request now (429 or 5xx): trying again can help."""


RepositoryKind = Literal["dataset", "model"]


def is_repository_id(name: str) -> bool:
    """Returns whether `name` means a hub repository: it has the form `owner/name` and is no local directory."""
    return REPOSITORY_ID.fullmatch(name) is not None and not name.startswith(".") and not Path(name).is_dir()


def download(repository: str, kind: RepositoryKind, revision: str | None, patterns: list[str]) -> Path:
    """Returns the local snapshot of a repository at one commit; the directory's name is the commit's id.

    Raises ValueError that says what could not be reached and what to do about it, HubBusyError where waiting helps.
    """
    with _explained(repository, kind, revision):
        return Path(snapshot_download(repository, repo_type=kind, revision=revision, allow_patterns=patterns))


def current_commit(repository: str, kind: RepositoryKind, revision: str | None) -> str:
    """Returns the commit that a branch or tag of a repository (null: the default branch) points to now.

    Raises as `download` does.
    """
    with _explained(repository, kind, revision):
        return HfApi().repo_info(repository, repo_type=kind, revision=revision).sha or ""


@contextmanager
def _explained(repository: str, kind: RepositoryKind, revision: str | None) -> Iterator[None]:
    """Says for each way in which the hub fails what it is and what to do."""
    try:
        yield
        return
    except GatedRepoError:
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"
        reason = f"it is gated: accept its licence at {page}, then set HF_TOKEN to a token of that account"
    except RevisionNotFoundError:
        reason = f"it has no revision {revision!r}"
    except (RepositoryNotFoundError, HFValidationError):
        reason = "there is no such repository, or it is private and HF_TOKEN is not set to a token that may read it"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError):
        reason = (
            f"HF_HUB_OFFLINE is set and it is not in the cache {constants.HF_HUB_CACHE}"
            if constants.HF_HUB_OFFLINE
            else f"{constants.ENDPOINT} could not be reached and it is not in the cache {constants.HF_HUB_CACHE}"
        )
        reason += "; check the network or HF_ENDPOINT, or give the path of a local directory that holds it"
    except HfHubHTTPError as error:
        if error.response.status_code == 429 or error.response.status_code >= 500:
            raise HubBusyError(f"{constants.ENDPOINT} cannot serve {repository!r} now: {error}") from error
        reason = f"the hub answered: {error}"
    except OSError as error:
        reason = f"{error} (cache {constants.HF_HUB_CACHE}; HF_HOME moves it)"
    raise ValueError(f"cannot download the {kind} {repository!r}: {reason}")
