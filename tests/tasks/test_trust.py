"""The lock of a registered version: whatever of it changes is named, and the version is neither loaded nor served."""

import json
import warnings
from pathlib import Path
from urllib.parse import urlparse

import mlflow
import pytest
import yaml

from tasks.audit import audit_file
from tasks.ownership import remember_mlflow_run
from tasks.registry import __main__ as command
from tasks.registry import trust
from tasks.registry.arguments import registry_parser
from tasks.registry.register import _signature
from tasks.registry.resolve import resolve_model
from tasks.registry.trust import TAG, _differences, lock_version, verify
from tests.conftest import new_mlflow_store
from vlm_core.cache import checksums, read_manifest
from vlm_core.files import file_sha256, write_json
from vlm_core.intact import FAST, FILES, MANIFEST, fast_checksums

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
        place = (directory / "artifacts").as_uri()
        experiment = self.client.create_experiment("locked", artifact_location=place)
        with mlflow.start_run(experiment_id=experiment) as run, warnings.catch_warnings():
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
def registered(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registered:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tasks.registry.register._tags", lambda result: {"dataset_fingerprint": "abc"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_mlflow_store(tmp_path))
    version = Registered(tmp_path, reference=request.param)
    version.client.set_model_version_tag(NAME, version.version, "dataset_fingerprint", "abc")
    return version


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


@pytest.mark.slow
def test_the_server_gets_the_verified_copy_without_compiled_code(
    registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = registered.files / "code" / "__pycache__" / "x.pyc"
    compiled.parent.mkdir(parents=True)
    compiled.write_bytes(b"what Python would run in place of x.py")
    started: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda program, words, environment: started.append(words))
    options = registry_parser(None).parse_args(["serve", NAME, registered.version, "--port", "1"])
    command.main(options)
    (words,) = started
    served = Path(words[words.index("--model-uri") + 1])
    assert served.is_relative_to(tmp_path / "home" / "cache" / "registered")
    assert checksums(served)["MLmodel"] == checksums(registered.files)["MLmodel"]
    assert list(served.rglob("*.pyc")) == []
    assert "is as it was registered" in capsys.readouterr().out
    (served / "MLmodel").write_text("!!python/object/apply:os.system [x]")
    command.main(options)  # a copy with another checksum is damaged: the version is fetched again
    assert len(started) == 2
    assert checksums(served)["MLmodel"] == checksums(registered.files)["MLmodel"]
    (served / "MLmodel").write_text("!!python/object/apply:os.system [x]")
    _hide_the_change(served)
    with pytest.raises(SystemExit, match=f"MLmodel changed .in {served}, a copy that you can delete"):
        command.main(options)
    assert len(started) == 2
    with pytest.raises(ValueError, match=f"no model '{registered.uri}' at .*MLmodel changed"):
        resolve_model(registered.uri)


def _hide_the_change(copy: Path) -> None:
    """Gives a cache directory the checksums of its present files, as an attacker would."""
    manifest = read_manifest(copy) | {FILES: {name: file_sha256(copy / name) for name in read_manifest(copy)[FILES]}}
    write_json(copy / MANIFEST, {**manifest, FAST: fast_checksums(manifest, copy)})


@pytest.mark.slow
def test_a_version_that_is_not_a_model_is_not_downloaded(registered: Registered, tmp_path: Path) -> None:
    """Whoever can write to the registry chooses the source of a version."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "notes.txt").touch()
    for source in ((tmp_path / "private").as_uri(), (tmp_path / "nowhere").as_uri(), "http://127.0.0.1:9/x"):
        version = registered.client.create_model_version(NAME, source).version
        with pytest.raises(ValueError, match=f"no model 'models:/{NAME}/{version}' at "):
            resolve_model(f"models:/{NAME}/{version}")
    assert list((tmp_path / "home").rglob("notes.txt")) == []


def test_an_empty_lock_proves_nothing() -> None:
    assert _differences({}, {"a": "1"}) == ["the lock lists no files"]
    assert _differences({}, {}) == ["the lock lists no files"]
