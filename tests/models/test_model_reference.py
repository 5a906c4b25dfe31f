"""Models are found by the names that people use, and identified by what they compute."""

import shutil
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp

from tests.conftest import small_config, tiny_directory
from vlm_core.config import ModelConfig
from vlm_core.families import GEMMA3, Family
from vlm_core.files import read_json, write_json, write_text
from vlm_core.models.load import load_model
from vlm_core.models.model_reference import find_model
from vlm_core.models.prepare import prepare_model
from vlm_core.models.weights import load_trained, save_weights


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = prepare_model(small_config(**{"peft.dim": 4}), tiny_directory("gemma3"), GEMMA3, None)
    save_weights(model, tmp_path / "epoch_0_step_1" / "model")
    return tmp_path / "epoch_0_step_1"


def test_an_adapter_knows_its_base_model(adapter: Path) -> None:
    files = find_model(adapter)
    assert (files.weights, files.base) == (adapter / "model", tiny_directory("gemma3"))
    assert files.config.torch_dtype == "auto"
    # Our checkpoints also record the dtype of the computation.
    write_text(adapter / "config.yaml", small_config(**{"model.torch_dtype": "bfloat16"}).to_yaml())
    assert find_model(adapter).config.torch_dtype == "bfloat16"
    other = ModelConfig(pretrained_model_name_or_path=str(tiny_directory("gemma3n")))
    assert find_model(adapter, other).base == tiny_directory("gemma3n")


@pytest.mark.parametrize("named", [{}, {"base_model_name_or_path": None}])
def test_an_adapter_without_a_base_model_is_refused(tmp_path: Path, named: dict[str, None]) -> None:
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA"} | named)
    with pytest.raises(ValueError, match=r"adapter_config\.json does not name the base model: write its hub id"):
        find_model(tmp_path)


def test_weights_without_a_processor_use_the_base_models(tmp_path: Path) -> None:
    base = tiny_directory("gemma3")
    load_model(base, small_config().model).save_pretrained(tmp_path / "weights")
    files = find_model(tmp_path / "weights", small_config().model)
    assert (files.weights, files.base) == (tmp_path / "weights", base)
    with pytest.raises(ValueError, match="has no processor"):
        find_model(tmp_path / "weights")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_distributed_checkpoint_is_loaded_over_its_base_model(tmp_path: Path, family: Family, wrapped: bool) -> None:
    base = tiny_directory(family.model_type)
    trained = load_model(base, small_config().model)
    for parameter in trained.parameters():
        parameter.data += 0.1
    state = trained.state_dict()
    dcp.save({"model": state} if wrapped else state, checkpoint_id=tmp_path / "epoch_0_step_1" / "model", no_dist=True)
    files = find_model(tmp_path / "epoch_0_step_1", ModelConfig(pretrained_model_name_or_path=str(base)))
    loaded = load_trained(files.weights, files.base, small_config().model).state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in loaded.items())
    assert files.fingerprint != find_model(base).fingerprint
    other = tiny_directory("gemma3n" if family is GEMMA3 else "gemma3")
    with pytest.raises(ValueError, match="lacks .* weights of this model"):
        load_trained(files.weights, other, small_config().model)


def test_a_name_and_its_directory_are_the_same_model() -> None:
    base = tiny_directory("gemma3")
    names = [find_model("builtin:tiny-gemma3"), find_model(str(base)), find_model(base)]
    assert {files.fingerprint for files in names} == {names[0].fingerprint}


def test_a_fingerprint_changes_with_what_is_computed(adapter: Path, tmp_path: Path) -> None:
    first = find_model(adapter).fingerprint
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    assert find_model(moved).fingerprint == first
    settings = read_json(moved / "model" / "adapter_config.json")
    write_json(moved / "model" / "adapter_config.json", settings | {"lora_alpha": 1})
    assert find_model(moved).fingerprint != first
    computed = small_config(**{"model.torch_dtype": "bfloat16"}).model
    assert find_model(adapter, computed).fingerprint != find_model(adapter, small_config().model).fingerprint
    weights = find_model(tiny_directory("gemma3")).fingerprint
    assert len({first, weights, find_model(tiny_directory("gemma3n")).fingerprint}) == 3


def test_an_unknown_name_lists_the_possibilities() -> None:
    with pytest.raises(ValueError, match="neither a directory, nor a hub id .* nor a URI such as models:/name@alias"):
        find_model("nothing")
    with pytest.raises(ValueError, match="neither a directory"):
        find_model("unknown-scheme:/x")


def test_fingerprints_cover_weights_of_every_format(tmp_path: Path) -> None:
    base = tiny_directory("gemma3")
    prints = set()
    for content in (b"one", b"two"):
        directory = tmp_path / content.decode()
        directory.mkdir()
        shutil.copy(base / "config.json", directory)
        with pytest.raises(ValueError, match="has no weights"):
            _ = find_model(directory, small_config().model).fingerprint
        (directory / "pytorch_model.bin").write_bytes(content)
        prints.add(find_model(directory, small_config().model).fingerprint)
    assert len(prints) == 2
