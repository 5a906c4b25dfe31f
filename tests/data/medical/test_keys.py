"""What an image becomes is part of every key downstream, so another window never gets old features or answers."""

from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch

from tests.conftest import tiny_directory
from vlm_core.cache import read_manifest
from vlm_core.data.medical import settings
from vlm_core.data.phantom import write_phantom
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import fetch_splits
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.evaluation.answering import Questions
from vlm_core.evaluation.result_names import RIGHT
from vlm_core.evaluation.store import Store
from vlm_core.families import FAMILIES
from vlm_core.models.chat import FastChat
from vlm_core.models.feature_store import FeatureStore
from vlm_core.models.load import load_processor
from vlm_core.recipe import load_config

KEYS = (
    "the source",
    "the conversation cache",
    "the data's fingerprint",
    "the token cache",
    "the features of a question",
    "its answer",
    "the likelihood of its reference",
)
BY_PIXELS = KEYS[4:]


@pytest.fixture(scope="module")
def chat() -> FastChat:
    return FastChat(load_processor(tiny_directory("gemma3")), FAMILIES["gemma3"])


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Eight DICOM series of four slices."""
    write_phantom(tmp_path / "scans", num_images=8, seed=1, image_size=32, form="dicom", slices=4)
    return tmp_path / "scans"


def keys_of(scans: Path, chat: FastChat, **changes: Any) -> dict[str, Any]:
    """Returns every key of the first validation question: directories, fingerprints, and what its stores are asked."""
    wanted = {"dataset.path_or_dataset": str(scans), "dataset.images.window": "40/80"}
    config = load_config("demo", wanted | {f"dataset.images.{name}": value for name, value in changes.items()})
    splits = fetch_splits(config)
    cache, _ = prepare_conversations(config, splits)
    tokens = build_tokens(cache, chat)
    questions = Questions(cache, [0], None)
    asked = questions.under(RIGHT, TokenDataset(tokens, "validation"), chat)
    features = [questions.hashes[image] for image in asked.prompts[0].images]
    found = (splits.fingerprint, cache.name, read_manifest(cache)["fingerprint"], tokens.name, features,
             asked.prompt_keys[0], asked.answered_keys[0])  # fmt: skip
    return dict(zip(KEYS, found, strict=True))


def turned_over(scans: Path) -> None:
    """Writes in every header that the rows lead the other way, and leaves the pixels as they are."""
    for path in (scans / "images").rglob("IM*"):
        header = pydicom.dcmread(path)
        along_rows, along_columns = header.ImageOrientationPatient[:3], header.ImageOrientationPatient[3:]
        header.ImageOrientationPatient = [*(-step for step in along_rows), *along_columns]
        header.save_as(path)


def test_window_slices_and_orientation_change_every_key(home: Path, scans: Path, chat: FastChat) -> None:
    plain = keys_of(scans, chat)
    assert keys_of(scans, chat) == plain
    changed = {
        "window": keys_of(scans, chat, window="50/400"),
        "slices": keys_of(scans, chat, slices="2 evenly"),
    }
    turned_over(scans)
    changed["orientation"] = keys_of(scans, chat)
    for change, found in changed.items():
        assert {name: found[name] != plain[name] for name in KEYS} == dict.fromkeys(KEYS, True), change
    (home / "features").mkdir()
    features, answers = FeatureStore(home / "features"), Store(home / "answers", {})
    features.add(plain[BY_PIXELS[0]], [torch.zeros(1)] * 4)
    features.refresh()
    answers.add({plain["its answer"]: {"text": "old"}})
    for change in ("window", "orientation"):
        asked = changed[change]
        assert features.missing(asked[BY_PIXELS[0]]) == asked[BY_PIXELS[0]]
        assert asked["its answer"] not in answers
    assert features.missing(changed["slices"][BY_PIXELS[0]]) == []  # the same slices, of which fewer are shown


def test_a_version_changes_all_but_what_is_found_by_pixels(
    home: Path, scans: Path, chat: FastChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of this code, and of a package that decodes. Features and answers of equal pixels are equal, and stay."""
    plain = keys_of(scans, chat)
    monkeypatch.setattr(settings, "MEDICAL_VERSION", settings.MEDICAL_VERSION + 1)
    code = keys_of(scans, chat)
    version = settings._version
    monkeypatch.setattr(settings, "_version", lambda name: f"{version(name)}.post1")
    package = keys_of(scans, chat)
    for before, after in ((plain, code), (code, package)):
        assert {name for name in KEYS if after[name] == before[name]} == set(BY_PIXELS)
