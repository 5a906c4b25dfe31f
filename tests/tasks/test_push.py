"""A version is pushed to a hub on loopback: its weights and its card, and no path of this machine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi, ModelCard

from tasks.registry import push as pushing
from tasks.registry.push import push
from tests.hub import Hub, serve
from vlm_core.files import write_json

Push = Callable[..., str]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with a base model, which takes the token `hf_right`."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: gemma\n---\n# Base\n")
    with serve({"google/base": tmp_path / "base"}) as hub:
        hub.token = "hf_right"
        yield hub


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """An adapter that names its base model's directory on this machine."""
    directory = tmp_path / "weights"
    directory.mkdir()
    write_json(directory / "adapter_config.json", {"r": 8, "base_model_name_or_path": str(tmp_path / "base")})
    (directory / "adapter_model.safetensors").write_bytes(b"\0" * 3000)
    (directory / "README.md").write_text("peft's empty card")
    return directory


@pytest.fixture
def pushed(hub: Hub, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Push:
    """Pushes version 3, whose base model and token are the arguments, and its verification."""

    def run(base: str = "google/base", token: str = "hf_right", *, public: bool = False) -> str:
        version = SimpleNamespace(name="medpix-tiny", version=3, description="Trained on `owner/data`.\n\n### Use")
        client = SimpleNamespace(get_model_version=lambda name, number: version)
        monkeypatch.setattr(pushing.mlflow, "MlflowClient", lambda: client)
        monkeypatch.setattr(pushing, "local_copy", lambda version: weights)
        monkeypatch.setattr(pushing, "verify", lambda *version: None)
        monkeypatch.setattr(pushing, "resolve_model", lambda uri: (weights, {"pretrained_model_name_or_path": base}))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
        monkeypatch.setattr(pushing, "HfApi", lambda: HfApi(endpoint=hub.url, token=token))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(weights.parent / "hub"))
        return push("medpix-tiny", "3", "ward/tiny", public=public)

    return run


def test_a_version_is_one_commit_of_a_private_repository(pushed: Push, hub: Hub, weights: Path) -> None:
    address = pushed()
    ((commit, files),) = hub.repositories["ward/tiny"].items()
    assert address == f"{hub.url}/ward/tiny/commit/{commit}"
    assert "ward/tiny" in hub.private
    assert files.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert files["adapter_model.safetensors"] == (weights / "adapter_model.safetensors").read_bytes()
    assert b'"base_model_name_or_path": "google/base"' in files["adapter_config.json"]
    assert not [path for path, content in files.items() if str(weights.parent).encode() in content]
    card = ModelCard(files["README.md"].decode())
    read_by_the_hub = {"base_model": "google/base", "license": "gemma", "library_name": "peft"}
    assert read_by_the_hub.items() <= card.data.to_dict().items()
    assert "# medpix-tiny, version 3" in card.text
    assert "Trained on `owner/data`." in card.text


def test_a_second_push_is_a_second_commit(pushed: Push, hub: Hub) -> None:
    pushed(public=True)
    pushed(public=True)
    assert len(hub.repositories["ward/tiny"]) == 2
    assert "ward/tiny" not in hub.private


def test_a_token_that_may_not_write_is_named(pushed: Push, hub: Hub) -> None:
    with pytest.raises(ValueError, match=r"the hub refused ward/tiny: .*401[\s\S]*hf auth login"):
        pushed(token="hf_wrong")
    assert "ward/tiny" not in hub.repositories


def test_an_adapter_over_a_directory_is_refused(pushed: Push, hub: Hub) -> None:
    with pytest.raises(ValueError, match="adapter over /data/my-base, which others do not have: merge it"):
        pushed(base="/data/my-base")
    assert hub.requests == []


def test_full_weights_over_a_directory_are_pushed(pushed: Push, hub: Hub, weights: Path) -> None:
    (weights / "adapter_config.json").unlink()
    pushed(base="/data/my-base")
    ((_, files),) = hub.repositories["ward/tiny"].items()
    card = ModelCard(files["README.md"].decode())
    assert {"license": "other", "library_name": "transformers"}.items() <= card.data.to_dict().items()
    assert card.data.base_model is None
