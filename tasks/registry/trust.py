"""Writes and verifies the lock of a registered version: the sha256 of its files, config and evaluation.

`lock.json` is an artifact of the version's run, next to the config and the evaluation that it covers. Its sha256 is in
a tag of the version and in the audit trail of the home that registered it.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from tasks.audit import audit, read_audit
from tasks.trackers.provenance import provenance
from vlm_core.cache import checksums
from vlm_core.files import file_sha256, read_json, write_json
from vlm_core.plain_text import printable

LOCK, CONFIG, EVALUATION = "lock.json", "config.yaml", "result.json"
TAG = "trust.sha256"  # version tag: the sha256 of its lock
REGISTERED = "registered"  # action in the audit trail
BY_MLFLOW = "registered_model_meta"  # a file that MLflow's client adds to each download
logger = logging.getLogger(__name__)


def lock_version(name: str, version: str, run_id: str, config: Path, evaluation: Path, weights: Path) -> None:
    """Writes the lock of a version that was just registered from the directory `weights`."""
    result = read_json(evaluation)
    files, reference = _registered_files(name, version, weights)
    found = {
        "name": name,
        "version": version,
        "run_id": run_id,
        "files": files,
        "weights": reference,
        "config": file_sha256(config),
        "evaluation": file_sha256(evaluation),
        "dataset_fingerprint": result["dataset_fingerprint"],
        "made_with": provenance(),
    }
    with tempfile.TemporaryDirectory() as directory:
        aside = Path(directory)
        write_json(aside / LOCK, found)
        (aside / CONFIG).write_bytes(config.read_bytes())
        (aside / EVALUATION).write_bytes(evaluation.read_bytes())
        digest = file_sha256(aside / LOCK)
        client = mlflow.MlflowClient()
        client.log_artifacts(run_id, directory, _folder(name, version))
        client.set_model_version_tag(name, version, TAG, digest)
    facts = {key: found[key] for key in ("run_id", "config", "evaluation", "dataset_fingerprint")}
    audit(REGISTERED, name=name, version=version, lock=digest, **facts)


def _registered_files(name: str, version: str, weights: Path) -> tuple[dict[str, str], dict[str, Any] | None]:
    """Returns (the sha256 of the version's files, the config entry for referenced weights).

    Files copied from `weights` are hashed there and not downloaded: they may be large.
    """
    uri = f"models:/{name}/{version}"
    with tempfile.TemporaryDirectory() as directory:
        for entry in mlflow.artifacts.list_artifacts(artifact_uri=uri):
            if entry.path != "artifacts":
                mlflow.artifacts.download_artifacts(artifact_uri=f"{uri}/{entry.path}", dst_path=directory)
        files = _files(Path(directory))
        flavor = Model.load(directory).flavors["python_function"]
    for artifact in (flavor.get("artifacts") or {}).values():
        files |= {f"{artifact['path']}/{path}": digest for path, digest in checksums(weights).items()}
    return files, flavor["config"].get("weights")


def require_trusted(name: str, version: str, directory: Path) -> None:
    """Raises ValueError unless the version's files in `directory` match its lock.

    One of these files, MLmodel, has the checksums of weights that the version refers to; `resolve` compares those.
    A version without a lock passes with a warning, unless this home's audit trail has a lock for it.
    """
    with tempfile.TemporaryDirectory() as aside:
        try:
            lock = _read_lock(name, version, Path(aside))
        except MlflowException as error:
            raise ValueError(f"the lock of version {version} of {name} cannot be read: {printable(error)}") from None
    if lock is None:
        logger.warning("version %s of %s has no lock: changes since its registration cannot be found", version, name)
    elif found := _differences(lock["files"], _files(directory)):
        raise ValueError(_refusal(name, version, found, directory))


def verify(name: str, version: str, local: Path | None = None) -> dict[str, Any]:
    """Returns the lock of a version; raises ValueError that lists every difference to the lock.

    `local` is the `local_copy` of the version; None downloads the files.
    """
    with tempfile.TemporaryDirectory() as directory:
        files, copy = Path(directory) / "lock", Path(directory) / "model"
        for made in (files, copy):
            made.mkdir()
        try:
            lock = _read_lock(name, version, files)
            if lock is None:
                raise ValueError(f"version {version} of {name} has no lock: register it again to get one")
            uri = f"models:/{name}/{version}"
            model = local or Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(copy)))
        except (MlflowException, OSError) as error:
            raise ValueError(f"version {version} of {name} cannot be verified: {printable(error)}") from None
        found = _file_findings(lock, model)
        found += [
            f"{file} beside the lock changed or missing"
            for file, key in ((CONFIG, "config"), (EVALUATION, "evaluation"))
            if not (files / file).is_file() or file_sha256(files / file) != lock[key]
        ]
        if not found:
            found = _tag_findings(name, version, read_json(files / EVALUATION))
    if found:
        raise ValueError(_refusal(name, version, found, local))
    return lock


def _read_lock(name: str, version: str, aside: Path) -> dict[str, Any] | None:
    """Downloads a version's lock and its other two files to `aside`; returns the lock, or None for an older version.

    Raises ValueError if the lock does not match the version's tag or this home's audit trail.
    """
    client = mlflow.MlflowClient()
    registered = client.get_model_version(name, version)
    digest = registered.tags.get(TAG)
    known = _known_digest(name, version, registered.run_id)
    if digest is None and known is None:
        return None
    if known not in (None, digest):
        raise ValueError(_refusal(name, version, [f"its tag {TAG} differs from this home's audit trail"]))
    for file in (LOCK, CONFIG, EVALUATION):
        with suppress(MlflowException, OSError):  # missing files are reported below
            found = client.download_artifacts(str(registered.run_id), f"{_folder(name, version)}/{file}", str(aside))
            shutil.copyfile(found, aside / file)
    if not (aside / LOCK).is_file() or file_sha256(aside / LOCK) != digest:
        raise ValueError(_refusal(name, version, [f"{LOCK} of the run changed or missing"]))
    return read_json(aside / LOCK)


def _known_digest(name: str, version: str, run_id: str | None) -> str | None:
    """Returns the sha256 of a version's lock in this home's audit trail; None if another home registered it."""
    wanted = {"action": REGISTERED, "name": name, "version": version, "run_id": run_id}
    return next((entry["lock"] for entry in reversed(read_audit()) if wanted.items() <= entry.items()), None)


def _file_findings(lock: Mapping[str, Any], directory: Path) -> list[str]:
    found = _differences(lock["files"], _files(directory))
    if weights := lock["weights"]:
        there = checksums(Path(weights["path"])) if Path(weights["path"]).is_dir() else {}
        found += [f"{weights['path']}: {finding}" for finding in _differences(weights["sha256"], there)]
    return found


def _files(directory: Path) -> dict[str, str]:
    """Returns the sha256 of each file of a model, except files that its use adds: compiled code and MLflow's metadata.

    `local_copy` removes compiled code that was downloaded.
    """
    found = checksums(directory)
    return {path: found[path] for path in found if path != BY_MLFLOW and "__pycache__" not in Path(path).parts}


def _differences(expected: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Returns in words how existing files differ from the expected ones: missing, added or changed.

    >>> _differences({"a": "1", "b": "2"}, {"b": "3", "c": "4"})
    ['a missing', 'b changed', 'c added']
    """
    if not expected:
        return ["the lock lists no files"]
    words = {
        path: "missing" if path not in there else "changed" for path in expected if there.get(path) != expected[path]
    }
    words |= {path: "added" for path in there if path not in expected}
    return [f"{path} {words[path]}" for path in sorted(words)]


def _tag_findings(name: str, version: str, result: dict[str, Any]) -> list[str]:
    """Returns the differences between the version's tags and its evaluation, in words."""
    from tasks.registry.register import _tags  # it imports this module

    tags = mlflow.MlflowClient().get_model_version(name, version).tags
    expected = {key: str(value) for key, value in _tags(result).items() if value is not None}
    return [f"tag {key}={tags.get(key)!r}, but the evaluation says {value!r}" for key, value in expected.items()
            if tags.get(key) != value]  # fmt: skip


def _refusal(name: str, version: str, found: list[str], local: Path | None = None) -> str:
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    more += f" (in {local}, a copy that you can delete)" if local else ""
    return (
        f"version {version} of {name} is not as it was registered: {', '.join(found[:5])}{more}. Do not use it until "
        "you know why; put the files back, or register the model again"
    )


def _folder(name: str, version: str) -> str:
    """Returns the artifact folder of the lock in the version's run."""
    return f"trust/{hashlib.sha256(json.dumps([name, version]).encode()).hexdigest()[:16]}"
