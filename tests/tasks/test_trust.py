"""The lock of a registered version: whatever of it changes is named, and the version is neither loaded nor served."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import mlflow
import pytest
import yaml

from tasks.audit import audit_file
from tasks.ownership import remember_mlflow_run
from tasks.registry import trust
from tasks.registry.register import _signature
from tasks.registry.resolve import resolve_model
from tasks.registry.trust import TAG, _differences, lock_version, verify
from vlm_core.cache import checksums
from vlm_core.files import file_sha256, write_json

NAME = "medpix-locked"
SERVING = Path(trust.__file__).with_name("serving.py")


class Registered:
    """A version with its lock; `reference` says that its weights lie beside the registry."""

    def __init__(self, directory: Path, *, reference: bool) -> None:
        weights = directory / "run" / "registered" / "weights"
        weights.mkdir(parents=True)
        (weights / "model.safetensors").write_bytes(b"weights")
        (weights / "config.json").write_text("{}")
        self.weights, self.client = weights, mlflow.MlflowClient()
        config, evaluation = directory / "run" / "config.yaml", directory / "result.json"
        config.write_text("name: demo\n")
        write_json(evaluation, {"dataset_fingerprint": "abc"})
        found = {"weights": {"path": str(weights), "sha256": checksums(weights)}} if reference else {}
        with mlflow.start_run() as run, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(SERVING),
                artifacts=None if reference else {"checkpoint": str(weights)},
                model_config={"model": {"pretrained_model_name_or_path": "x"}, **found},
                signature=_signature(8),
                pip_requirements=["torch"],
                registered_model_name=NAME,
            )
        self.version, self.run_id = str(logged.registered_model_version), run.info.run_id
        remember_mlflow_run(directory / "run", self.run_id)
        lock_version(NAME, self.version, self.run_id, config, evaluation, weights)
        place = self.client.get_logged_model(str(logged.model_id)).artifact_location
        self.files = Path(urlparse(place).path)
        run_files = Path(urlparse(self.client.get_run(self.run_id).info.artifact_uri).path)
        (self.lock,) = run_files.rglob("lock.json")

    @property
    def uri(self) -> str:
        return f"models:/{NAME}/{self.version}"


@pytest.fixture(params=[False, True], ids=["copied", "referenced"])
def registered(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registered]:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tasks.registry.register._tags", lambda result: {"dataset_fingerprint": "abc"})
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.create_experiment("locked", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment("locked")
    version = Registered(tmp_path, reference=request.param)
    version.client.set_model_version_tag(NAME, version.version, "dataset_fingerprint", "abc")
    yield version
    mlflow.set_tracking_uri(before)


def refused(registered: Registered, reason: str, *, loading: bool = True) -> None:
    with pytest.raises(ValueError, match=f"is not as it was registered: .*{reason}"):
        verify(NAME, registered.version)
    if loading:
        with pytest.raises(ValueError, match="is not as it was registered"):
            resolve_model(registered.uri)


@pytest.mark.slow
def test_a_version_is_verified_and_whatever_changes_is_named(registered: Registered) -> None:
    lock = verify(NAME, registered.version)
    assert (lock["run_id"], lock["dataset_fingerprint"]) == (registered.run_id, "abc")
    assert lock["made_with"]["version.torch"]
    weights = next(registered.files.rglob("model.safetensors"), registered.weights / "model.safetensors")
    compiled = registered.files / "__pycache__" / "x.pyc"  # loading a version writes some
    compiled.parent.mkdir()
    compiled.touch()
    assert verify(NAME, registered.version) == lock
    (weights.parent / ".metadata").write_bytes(b"a pickle")
    refused(registered, ".metadata added")
    (weights.parent / ".metadata").unlink()
    content = weights.read_bytes()
    weights.write_bytes(b"others")
    refused(registered, "model.safetensors changed")
    weights.unlink()
    refused(registered, "model.safetensors missing")
    weights.write_bytes(content)
    model = registered.files / "MLmodel"
    described = model.read_text()
    tree = yaml.safe_load(described)
    tree["flavors"]["python_function"]["config"]["weights"] = {"path": "/etc", "sha256": {}}
    model.write_text(yaml.safe_dump(tree))
    refused(registered, "MLmodel changed", loading=False)
    model.write_text(described)
    (registered.lock.parent / "result.json").write_text("{}")
    refused(registered, "result.json beside the lock changed", loading=False)
    write_json(registered.lock.parent / "result.json", {"dataset_fingerprint": "abc"})
    registered.client.set_model_version_tag(NAME, registered.version, "dataset_fingerprint", "xyz")
    refused(registered, "tag dataset_fingerprint='xyz', but the evaluation says 'abc'", loading=False)
    registered.client.set_model_version_tag(NAME, registered.version, "dataset_fingerprint", "abc")
    assert verify(NAME, registered.version) == lock


@pytest.mark.slow
def test_neither_lock_nor_tag_can_be_replaced_in_the_home_that_registered(registered: Registered) -> None:
    lock = json.loads(registered.lock.read_text())
    write_json(registered.lock, lock | {"files": {}})
    refused(registered, "lock.json of the run changed")
    registered.client.set_model_version_tag(
        NAME, registered.version, TAG, checksums(registered.lock.parent)["lock.json"]
    )
    refused(registered, "its tag trust.sha256 differs from this home's audit trail")
    registered.client.delete_model_version_tag(NAME, registered.version, TAG)
    refused(registered, "its tag trust.sha256 differs from this home's audit trail")
    audit_file().unlink()
    with pytest.raises(ValueError, match="has no lock: register it again"):
        verify(NAME, registered.version)


@pytest.mark.slow
def test_loading_reads_the_weights_once(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_model(registered.uri)  # the first load downloads
    read: list[str] = []
    monkeypatch.setattr("vlm_core.cache.file_sha256", lambda path: read.append(path.name) or file_sha256(path))
    resolve_model(registered.uri)
    assert read.count("model.safetensors") == 1


def test_an_empty_lock_proves_nothing() -> None:
    assert _differences({}, {"a": "1"}) == ["the lock lists no files"]
    assert _differences({}, {}) == ["the lock lists no files"]
