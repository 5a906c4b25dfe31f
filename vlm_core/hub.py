"""Downloads from the Hugging Face hub, with a specific error message for each kind of failure.

Uses the shared cache of `huggingface_hub`, and its environment variables `HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME` and
`HF_HUB_OFFLINE`. Files in the cache are not downloaded again.
"""

import errno
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from typing import Literal, TypeVar

import httpx2
from huggingface_hub import (
    DatasetInfo,
    HfApi,
    ModelInfo,
    constants,
    file_download,
    get_cached_repo_tree,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import filter_repo_objects, parse_ratelimit_headers

from vlm_core.files import write_text
from vlm_core.hub_blobs import HubBusyError, fetch_blobs

logger = logging.getLogger(__name__)

REPOSITORY_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT_ID = re.compile(r"[0-9a-f]{40}")
BLOB_NAME = re.compile(r"\w[\w.+=:-]{0,127}")
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between attempts, unless the hub asks for more
LONGEST_WAIT = 300.0  # seconds: the hub counts requests in windows of five minutes
UNREACHABLE = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
    httpx2.InvalidURL,
)

RepositoryKind = Literal["dataset", "model"]
T = TypeVar("T")


class HubUnreachableError(ValueError):
    """The hub cannot be reached: the network is down, or HF_HUB_OFFLINE is set."""


def _checked_etag(etag: str | None) -> str | None:
    """Normalizes an ETag as huggingface_hub does; raises ValueError if it is unsafe as a file name in the cache."""
    found = _normalize_etag(etag)
    if found is not None and not BLOB_NAME.fullmatch(found):
        raise ValueError(f"{constants.ENDPOINT} sent the ETag {found[:80]!r}, which is not one: check HF_ENDPOINT")
    return found


_normalize_etag = file_download._normalize_etag
file_download._normalize_etag = _checked_etag  # huggingface_hub 2.4 joins the ETag to its cache path unchecked


def is_repository_id(name: str) -> bool:
    """Returns whether `name` is a hub repository: it has the form `owner/name`, and no local path has that name."""
    return REPOSITORY_ID.fullmatch(name) is not None and not name.startswith(".") and not Path(name).exists()


def download(repository: str, kind: RepositoryKind, revision: str | None, patterns: list[str]) -> Path:
    """Returns the local snapshot of a repository at one commit; the name of the directory is the commit id.

    An interrupted download resumes. If the hub cannot be reached, the cached commit of the branch is used, with a
    warning. Raises ValueError that says what failed and what to do, or HubBusyError if a later attempt may succeed.
    """
    commit = revision
    try:
        pinned = revision is not None and COMMIT_ID.fullmatch(revision)
        commit = revision if pinned else current_commit(repository, kind, revision)
        snapshot = _patiently(partial(_fetch, repository, kind, commit, patterns))
    except (HubUnreachableError, HubBusyError) as error:
        return _from_cache(repository, kind, commit, patterns, error)
    _remember(repository, kind, revision, snapshot.name)
    return snapshot


def current_commit(repository: str, kind: RepositoryKind, revision: str | None) -> str:
    """Returns the commit that a branch or tag of a repository (None: the default branch) points to now.

    Raises as `download` does.
    """

    def ask() -> str:
        with _explained(repository, kind, revision):
            commit = _info(repository, kind, revision).sha or ""
        if not COMMIT_ID.fullmatch(commit):  # the commit becomes a directory name
            raise ValueError(
                f"{constants.ENDPOINT} names {commit[:80]!r} as the commit of {repository}, which is not one: check "
                "HF_ENDPOINT"
            )
        return commit

    return _patiently(ask)


def _info(
    repository: str, kind: RepositoryKind, revision: str | None, *, files: bool = False
) -> DatasetInfo | ModelInfo:
    """Returns the hub's metadata of a repository. The timeout is short, because some networks silently drop packets."""
    api = HfApi()
    ask = api.dataset_info if kind == "dataset" else api.model_info
    return ask(repository, revision=revision, files_metadata=files, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _patiently(work: Callable[[], T]) -> T:
    """Calls `work`, retries with growing waits while the hub is busy, and returns its result.

    huggingface_hub retries some of its requests, but not the one for the commit, and reports a busy hub as an
    unreachable one.
    """
    for attempt, wait in enumerate(WAITS, start=1):
        try:
            return work()
        except HubBusyError as error:
            wait = max(wait, min(error.wait, LONGEST_WAIT))
            logger.warning("%s; trying again in %g s (%d of %d)", error, wait, attempt, len(WAITS))
            time.sleep(wait)
    return work()


def _fetch(repository: str, kind: RepositoryKind, commit: str, patterns: list[str]) -> Path:
    """Returns the snapshot of a commit, after downloading the files that the cache lacks."""
    with _explained(repository, kind, commit), suppress(CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        get_cached_repo_tree(repository, repo_type=kind, revision=commit)  # raises if the cache has no file list
        return _snapshot(repository, kind, commit, patterns, local=True)
    with _explained(repository, kind, commit):
        files = _info(repository, kind, commit, files=True).siblings or []
        wanted = filter_repo_objects(files, allow_patterns=patterns, key=lambda file: file.rfilename)
        large = {
            file.rfilename: file.lfs
            for file in wanted
            if file.lfs and 0 < file.lfs.size <= constants.MAX_HTTP_DOWNLOAD_SIZE
        }
        urls = {name: hf_hub_url(repository, name, repo_type=kind, revision=commit) for name in large}
        fetch_blobs(_storage(repository, kind), large, urls, f"download {repository}")
        return _snapshot(repository, kind, commit, patterns, local=False)


def _snapshot(repository: str, kind: RepositoryKind, revision: str | None, patterns: list[str], *, local: bool) -> Path:
    return Path(
        snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=patterns, local_files_only=local
        )
    )


def _storage(repository: str, kind: RepositoryKind) -> Path:
    """Returns the directory of a repository in huggingface_hub's cache, which holds blobs/, refs/ and snapshots/."""
    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type=kind))


def _remember(repository: str, kind: RepositoryKind, revision: str | None, commit: str) -> None:
    """Stores the commit of a branch in the cache, for later use without the hub. Ignores a read-only cache."""
    if revision != commit:
        with suppress(OSError):
            write_text(_storage(repository, kind) / "refs" / (revision or constants.DEFAULT_REVISION), commit)


def _from_cache(
    repository: str, kind: RepositoryKind, revision: str | None, patterns: list[str], error: Exception
) -> Path:
    """Returns the cached snapshot; if the cache has none, raises `error` again with a remedy."""
    try:
        snapshot = _snapshot(repository, kind, revision, patterns, local=True)
    except LocalEntryNotFoundError:
        remedy = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "check the network and HF_ENDPOINT"
        if isinstance(error, HubBusyError):
            remedy = "try again later"
        raise type(error)(
            f"{error}, and it is not complete in the cache {constants.HF_HUB_CACHE}; {remedy}, or give the path of a "
            "local directory that holds it"
        ) from error
    if not constants.HF_HUB_OFFLINE:
        logger.warning("%s; using commit %s from the cache", error, snapshot.name)
    return snapshot


@contextmanager
def _explained(repository: str, kind: RepositoryKind, revision: str | None) -> Iterator[None]:
    """Turns errors of huggingface_hub into errors that say what failed and what to do."""
    try:
        yield
    except (HFValidationError, httpx2.HTTPError, httpx2.InvalidURL, JSONDecodeError, OSError) as error:
        # huggingface_hub hides the cause of a failed download in a "file not in the cache" error.
        met = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
        failure, reason = _failure(met, repository, kind, revision)
        explained = failure(f"cannot download the {kind} {repository!r}: {reason}")
        if isinstance(explained, HubBusyError) and isinstance(met, HfHubHTTPError):
            explained.wait = _wait_asked_for(met.response)
        raise explained from error


def _failure(
    error: BaseException, repository: str, kind: RepositoryKind, revision: str | None
) -> tuple[type[Exception], str]:
    """Returns the exception type for a huggingface_hub error, and the reason to put after "cannot download ...: "."""
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"
    detail = " ".join(str(error).split()) or type(error).__name__
    status, phrase = 0, ""
    if isinstance(error, HfHubHTTPError):
        status, phrase = error.response.status_code, error.response.reason_phrase
    failure: type[Exception] = ValueError
    if isinstance(error, GatedRepoError):
        reason = f"it is gated: accept its licence at {page}, then set HF_TOKEN to a token of that account"
    elif isinstance(error, RevisionNotFoundError):
        reason = f"it has no revision {revision!r}: name a branch, tag or commit of {page}"
    elif isinstance(error, RepositoryNotFoundError | HFValidationError):
        reason = "the repository does not exist, or it is private and HF_TOKEN is not set to a token that may read it"
    elif status in (401, 403):
        reason = f"the hub does not accept the token (HF_TOKEN, or the one that is logged in): {detail}"
    elif status in (408, 429) or status >= 500:
        # Do not quote the error: it may contain a file's signed URL.
        failure, reason = HubBusyError, f"{constants.ENDPOINT} cannot serve it now ({status} {phrase})"
    elif isinstance(error, OfflineModeIsEnabled):
        failure, reason = HubUnreachableError, "HF_HUB_OFFLINE is set"
    elif isinstance(error, UNREACHABLE):
        failure, reason = HubUnreachableError, f"{constants.ENDPOINT} could not be reached ({detail})"
    elif isinstance(error, httpx2.TransportError):
        failure, reason = HubBusyError, f"the connection to {constants.ENDPOINT} broke ({detail})"
    elif isinstance(error, JSONDecodeError):
        reason = f"the server at {constants.ENDPOINT} is not a hub ({detail}): check the network and HF_ENDPOINT"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = (
            f"no space left for the cache {constants.HF_HUB_CACHE} ({detail}): free some and run again to resume the "
            "download, or set HF_HOME to a directory on another disk"
        )
    elif isinstance(error, OSError) and not status:
        reason = f"{detail} (cache {constants.HF_HUB_CACHE}; HF_HOME moves it)"
    else:
        reason = f"the hub answered: {detail}"
    return failure, reason


def _wait_asked_for(response: httpx2.Response) -> float:
    """Returns the seconds that the hub asks to wait before a retry, 0 if it does not ask."""
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else 0.0
