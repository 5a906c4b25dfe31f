"""Downloads the large files of a hub repository into huggingface_hub's cache: resumes, verifies, shows progress."""

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import BlobLfsInfo
from huggingface_hub.utils import WeakFileLock, build_hf_headers
from tqdm import tqdm

from vlm_core.progress import ProgressBar

logger = logging.getLogger(__name__)

SHA256 = re.compile(r"[0-9a-f]{64}")


class HubBusyError(RuntimeError):
    """The hub cannot serve the request now (429, 5xx, a broken connection). A later attempt may succeed."""

    wait = 0.0  # the seconds that the hub asks for


def fetch_blobs(storage: Path, files: Mapping[str, BlobLfsInfo], urls: Mapping[str, str], title: str) -> None:
    """Downloads the large `files`, by name, into the cache directory of their repository, unless they are cached.

    Raises HubBusyError if a file arrives damaged, and ValueError if the hub's sha256 of a file is malformed.
    """
    for name, content in files.items():
        if not SHA256.fullmatch(content.sha256):  # the sha256 becomes a file name
            raise ValueError(f"the hub names {content.sha256[:80]!r} as the sha256 of {name}: check HF_ENDPOINT")
    there = sum(path.stat().st_size for content in files.values() for path in _blobs(storage, content) if path.exists())
    total = sum(content.size for content in files.values())
    with ProgressBar(total, title, "byte", done=there) as progress:
        for name, content in files.items():
            _fetch_blob(urls[name], storage, content, name, _counting(progress))


def _counting(progress: ProgressBar) -> type[tqdm]:
    """Returns an invisible bar class for huggingface_hub that forwards its counts to `progress`."""

    class Counting(tqdm):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            progress.update(int(n or 0))

    return Counting


def _blobs(storage: Path, content: BlobLfsInfo) -> tuple[Path, Path]:
    """Returns the paths of a large file in the cache: the complete file, and a partial download."""
    blob = storage / "blobs" / content.sha256
    return blob, blob.with_name(f"{content.sha256}.incomplete")


def _fetch_blob(url: str, storage: Path, content: BlobLfsInfo, name: str, bar: type[tqdm]) -> None:
    """Downloads a large file into the cache, and resumes a partial download.

    huggingface_hub 2.4 resumes only after some errors and never in another process
    (https://github.com/huggingface/huggingface_hub/issues/4196), but it links any file that it finds in blobs/.
    """
    blob, unfinished = _blobs(storage, content)
    lock = storage.parent / ".locks" / storage.name / f"{content.sha256}.lock"  # huggingface_hub's lock
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        # Without compression: the byte range of a compressed body would not match the file.
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        with unfinished.open("ab") as stream:
            if stream.tell() > content.size:
                stream.truncate(0)
                stream.seek(0)
            begun = stream.tell()
            if begun:
                logger.info("%s resumes after %d of %d bytes", name, begun, content.size)
            http_get(
                url,
                stream,
                resume_size=begun,
                headers=headers,
                expected_size=content.size,
                displayed_filename=name,
                tqdm_class=bar,
            )
        with unfinished.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != content.sha256:
            unfinished.unlink()
            raise HubBusyError(f"{url} arrived damaged: its sha256 is {found} and should be {content.sha256}")
        unfinished.rename(blob)
