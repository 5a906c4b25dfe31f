"""The vision cache returns exactly the tower's features or an error, and computes none of them twice."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import fresh_home, small_config, tiny_directory
from vlm_core.data.batches import DecodedImages, ImageInputs
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.conversation_dataset import image_sizes
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.encode import encode
from vlm_core.families import Family
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.prompts import Prompts, prompt_of
from vlm_core.generation.sampling import GenerationSettings
from vlm_core.models.feature_store import FeatureStore
from vlm_core.models.frozen_tower import DetachedTower, feature_inputs, tower_fingerprint, vision_features
from vlm_core.models.load import load_model
from vlm_core.models.prepare import prepare_model
from vlm_core.training.distributed import Ranks
from vlm_core.training.vision_cache import FeatureInputs, encode_images

CPU = torch.device("cpu")


@pytest.fixture
def model(family: Family) -> Any:
    return load_model(tiny_directory(family.model_type), small_config().model)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conversations: Path) -> Path:
    """A separate home, so that every test starts without features."""
    home = fresh_home(tmp_path / "home")
    monkeypatch.setenv("MEDPIX_HOME", str(home))
    return home


def shards(home: Path) -> list[Path]:
    return sorted(home.glob("cache/vision/*/*.arrow"))


def shown(features: FeatureInputs, image: int) -> torch.Tensor:
    """Returns the features of one image."""
    found = features([[image]])
    return found[next(key for key in ("pixel_values", "image_features") if key in found)]


def test_features_are_read_as_computed_and_computed_once(
    model: Any, chat: ChatModel, conversations: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = encode_images(model, chat, conversations, Ranks(), CPU, 0)
    images, sizes = DecodedImages.of(conversations, chat), image_sizes(conversations)
    grids = chat.image_grids([sizes[i] for i in (3, 0, 39)])
    alone = [vision_features(model, images([[i]]), chat.family)[0] for i in (3, 0, 39)]  # as on a CPU: one at a time
    expected = feature_inputs(alone, grids, chat)
    found = features([[3, 0], [39]])
    assert found.keys() == expected.keys()
    assert all(found[key].equal(expected[key]) for key in found)
    written = [(path, path.stat().st_mtime_ns) for path in shards(home)]
    monkeypatch.setattr("vlm_core.training.vision_cache.vision_features", None)  # encoding now fails
    again = encode_images(model, chat, conversations, Ranks(), CPU, 0)
    assert shown(again, 5).equal(shown(features, 5))
    assert [(path, path.stat().st_mtime_ns) for path in shards(home)] == written


def test_a_killed_job_resumes(
    model: Any, chat: ChatModel, conversations: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_core.training.vision_cache.IMAGES_PER_SHARD", 8)
    encode_images(model, chat, conversations, Ranks(), CPU, 0)
    expected = {path.name: path.read_bytes() for path in shards(home)}
    assert len(expected) == 5
    for lost in shards(home)[1:3]:
        lost.unlink()
    leftover = shards(home)[0].parent / ".0123.arrow.77"
    leftover.write_bytes(b"half a shard")
    cut = shards(home)[0]
    cut.write_bytes(cut.read_bytes()[:-200])  # as after a power cut
    encoded: list[int] = []

    def counted(*arguments: Any) -> Any:
        features = vision_features(*arguments)
        encoded.append(len(features))
        return features

    monkeypatch.setattr("vlm_core.training.vision_cache.vision_features", counted)
    encode_images(model, chat, conversations, Ranks(), CPU, 0)
    assert sum(encoded) == 24
    assert len(FeatureStore(shards(home)[0].parent).places) == 40
    assert not leftover.exists()


def test_damaged_bytes_are_noticed_and_encoded_again(
    model: Any, chat: ChatModel, conversations: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = shown(encode_images(model, chat, conversations, Ranks(), CPU, 0), 7)
    (shard,) = shards(home)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    store = FeatureStore(shard.parent)
    with pytest.raises(ValueError, match="is damaged .*delete it, and its images are encoded again"):
        store.read(list(store.places))
    assert shown(encode_images(model, chat, conversations, Ranks(), CPU, 0), 7).equal(good)
    assert "is damaged" in caplog.text


def test_a_full_disk_is_reported_before_encoding(
    model: Any, chat: ChatModel, conversations: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(ValueError, match="the vision cache needs .* for 40 images .*vision_cache.enabled=false"):
        encode_images(model, chat, conversations, Ranks(), CPU, 0)
    assert not shards(home)


def test_other_weights_dtype_or_preprocessing_are_another_cache(model: Any, chat: ChatModel) -> None:
    before = tower_fingerprint(model, chat)
    assert tower_fingerprint(model, chat) == before
    language = model.model.language_model.layers[0].self_attn.q_proj.weight
    language.data += 1
    assert tower_fingerprint(model, chat) == before
    assert tower_fingerprint(model.to(torch.bfloat16), chat) != before
    model.to(torch.float32)
    next(model.get_submodule(chat.family.vision_tower).parameters()).data += 1
    changed = tower_fingerprint(model, chat)
    assert changed != before
    chat.processor.image_processor.rescale_factor *= 2
    try:
        assert tower_fingerprint(model, chat) not in (before, changed)
    finally:
        chat.processor.image_processor.rescale_factor /= 2


@pytest.mark.parametrize("peft", [None, {"dim": 4}], ids=["full", "lora"])
def test_training_and_evaluation_in_bfloat16_share_the_cache(peft: dict[str, int] | None, chat: ChatModel) -> None:
    family = chat.family
    base = tiny_directory(family.model_type)
    # Qwen's projector is part of the tower, and in the cache only if it is frozen as well.
    frozen = {"freeze_config.freeze_projector": family.vision_features == "model.visual"}
    config = small_config(**{"model.torch_dtype": "bfloat16", "peft": peft}, **frozen)
    trained = tower_fingerprint(prepare_model(config, base, family, None), chat)
    assert tower_fingerprint(load_model(base, config.model), chat) == trained


def test_a_tower_that_trains_is_not_encoded_ahead(
    conversations: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    encode(small_config(**{"freeze_config.freeze_vision_tower": False}), Ranks(), conversations)
    assert "the vision tower trains" in caplog.text
    encode(small_config(**{"vision_cache.enabled": False}), Ranks(), conversations)
    assert not shards(home)
    encode(small_config(), Ranks(), conversations)
    assert len(shards(home)) == 1


def test_answers_from_features_are_those_from_pixels(model: Any, chat: ChatModel, conversations: Path) -> None:
    tokens = TokenDataset(build_tokens(conversations, chat), "validation")
    answerer, prompts = Answerer(model.eval(), chat), Prompts([prompt_of(tokens[i]) for i in range(12)], chat)

    def answers(images: ImageInputs) -> dict[int, Any]:
        (groups,) = prompts.batches(len(prompts))
        return answerer.answer_groups(prompts, groups, images, GenerationSettings(4), [""] * len(prompts))

    expected = answers(DecodedImages.of(conversations, chat))
    features = encode_images(model, chat, conversations, Ranks(), CPU, 0)
    DetachedTower(model, chat.family)
    assert answers(features) == expected
