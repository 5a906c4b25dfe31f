"""Damaged checkpoints and caches give one error that is named, or are found to be damaged: see tests/test_fuzz.py."""

import io
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from tests.conftest import small_config
from tests.fuzz import damaged, fuzz
from vlm_core.cache import cached_directory
from vlm_core.files import write_json
from vlm_core.intact import MANIFEST, damages
from vlm_core.models.feature_store import FeatureStore, damaged_shards
from vlm_core.models.model_directory import read_header
from vlm_core.models.shard_metadata import ShardReader
from vlm_core.resume import fault_of
from vlm_core.run_directory import CHECKSUMS, CONFIG, PROGRESS, TRAINING_STATE
from vlm_core.training.checkpoint import RunProgress, load_progress, load_state

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


@fuzz(60)
@given(damaged([save(WEIGHTS, {"format": "pt"})], (8, 100)))
def test_headers_of_safetensors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with suppress(ValueError):
        read_header(tmp_path / "model.safetensors")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    directory = tmp_path_factory.mktemp("dcp") / "model"
    dcp.save(WEIGHTS, checkpoint_id=directory, no_dist=True)
    return directory, {path.name: path.read_bytes() for path in directory.iterdir()}


@fuzz(40)
@given(data=st.data())
def test_shards(shards: tuple[Path, dict[str, bytes]], data: st.DataObject) -> None:
    directory, files = shards
    name = data.draw(st.sampled_from([".metadata", *files]))
    content = data.draw(damaged([files[name]], (200,)))
    for file, sound in files.items():
        (directory / file).write_bytes(content if file == name else sound)
    with suppress(ValueError):
        reader = ShardReader(directory)
        reader.fill({key: torch.zeros_like(tensor) for key, tensor in WEIGHTS.items()})


CONFIG_TEXT = small_config().to_yaml()


def training_state() -> bytes:
    buffer = io.BytesIO()
    state = {
        "optimizer": {"state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.ones(3)}}},
        "scheduler": {"last": 4},
    }
    torch.save(state, buffer)
    return buffer.getvalue()


STATE = training_state()


@fuzz(25)
@given(data=st.data())
def test_what_a_run_resumes_from(tmp_path: Path, data: st.DataObject) -> None:
    write_json(tmp_path / PROGRESS, asdict(RunProgress("abc", step=4, lowest_validation_loss=1.5)))
    (tmp_path / CONFIG).write_text(CONFIG_TEXT)
    write_json(tmp_path / CHECKSUMS, {PROGRESS: "0" * 64})
    (tmp_path / TRAINING_STATE).write_bytes(STATE)
    name = data.draw(st.sampled_from([PROGRESS, CONFIG, CHECKSUMS, TRAINING_STATE]))
    (tmp_path / name).write_bytes(data.draw(damaged([(tmp_path / name).read_bytes()], (60,))))
    fault = fault_of(tmp_path, thorough=True)
    assert fault is None or str(tmp_path) in fault
    with suppress(ValueError):
        load_progress(tmp_path)
    with suppress(ValueError):
        load_state(tmp_path)


@fuzz(25)
@given(data=st.data())
def test_shards_of_features(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("tower")
    features = torch.arange(12.0).reshape(2, 3, 2)
    FeatureStore(directory).add(["a", "b"], features)
    (shard,) = directory.glob("*.arrow")
    shard.write_bytes(data.draw(damaged([shard.read_bytes()], (400, 1200))))
    found = damaged_shards(directory)
    store = FeatureStore(directory)
    for key, expected in zip("ab", features, strict=True):
        if not found and key in store.places:
            assert store.read([key])[0].equal(expected)


@fuzz(20)
@given(data=st.data())
def test_manifests(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    def build(directory: Path) -> dict[str, object]:
        (directory / "images.arrow").write_bytes(b"images")
        return {"rows": {"train": 100, "validation": 20}, "closed_questions": {"Is it ä?": 3}}

    root = tmp_path_factory.mktemp("caches")
    manifest = cached_directory(root, "key", build)[0] / MANIFEST
    sound = manifest.read_bytes()
    manifest.write_bytes(data.draw(damaged([sound], (100,))))
    found = damages(manifest.parent)
    with suppress(ValueError):
        assert found or json.loads(manifest.read_bytes()) == json.loads(sound)
