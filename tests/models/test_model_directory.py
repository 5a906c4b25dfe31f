"""A model directory that is not whole is refused before anything is loaded, with the file and the remedy."""

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_core.config import ModelConfig
from vlm_core.models.base_model import fetch_model
from vlm_core.models.model_directory import read_header, require_whole_model

WEIGHTS = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def model(tiny_gemma3: Path, tmp_path: Path) -> Path:
    """Returns a copy of the tiny Gemma 3 to damage."""
    return Path(shutil.copytree(tiny_gemma3, tmp_path / "medgemma-4b-pt"))


def cut(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def in_shards(model: Path) -> None:
    """Names two shards in an index, of which only the first is there."""
    (model / WEIGHTS).rename(model / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}))


def outside(model: Path) -> None:
    in_shards(model)
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))


def more_tokens(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    last = {**tokenizer["added_tokens"][-1], "id": 900, "content": "lesion"}
    change(model / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], last])


def other_vocabulary(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    change(model / "config.json", text_config=config["text_config"] | {"vocab_size": 32_000})


@pytest.mark.parametrize(
    ("damage", "reasons"),
    [
        (lambda m: cut(m / WEIGHTS, 0.5), [WEIGHTS, "is incomplete", "download it again"]),
        (lambda m: cut(m / WEIGHTS, 0.999), [WEIGHTS, "is incomplete"]),
        (lambda m: cut(m / WEIGHTS, 0.001), [WEIGHTS, "incomplete"]),
        (lambda m: cut(m / WEIGHTS, 0), [WEIGHTS, "is empty"]),
        (lambda m: (m / WEIGHTS).write_text(POINTER), [WEIGHTS, "Git LFS pointer", "git lfs pull"]),
        (lambda m: (m / WEIGHTS).write_text("<html>404</html>"), [WEIGHTS, "not safetensors"]),
        (lambda m: (m / WEIGHTS).write_bytes(b"\2\0\0\0\0\0\0\0{!"), [WEIGHTS, "damaged header"]),
        (lambda m: (m / WEIGHTS).unlink(), ["has no weights"]),
        (in_shards, ["lacks model-00002-of-00002.safetensors", "download it again"]),
        (outside, ["outside of its directory"]),
        (lambda m: (m / "chat_template.jinja").unlink(), ["no chat template", "medgemma-4b-it", "chat_template.jinja"]),
        (more_tokens, ["has 901 tokens", "embeddings", "resize_token_embeddings(901)"]),
        (other_vocabulary, ["config.json", "vocab_size=32000"]),
        (lambda m: cut(m / "config.json", 0.5), ["config.json", "is not JSON"]),
        (lambda m: (m / "config.json").write_text("[]"), ["config.json", "not a JSON object"]),
        (lambda m: (m / "config.json").write_text("{}"), ["config.json", "no model_type"]),
        (lambda m: (m / "config.json").write_text(POINTER), ["config.json", "Git LFS pointer"]),
        (lambda m: cut(m / "tokenizer.json", 0.9), ["tokenizer.json", "is not JSON"]),
        (lambda m: (m / "tokenizer.json").write_text(POINTER), ["tokenizer.json", "Git LFS pointer"]),
        (lambda m: (m / "config.json").unlink(), ["has no config.json"]),
        (lambda m: (m / "tokenizer.json").unlink(), ["has no tokenizer"]),
    ],
)
def test_what_is_wrong_with_a_model_is_said(model: Path, damage: Callable[[Path], object], reasons: list[str]) -> None:
    require_whole_model(model, str(model))
    damage(model)
    with pytest.raises(ValueError, match=re.escape(reasons[0])) as caught:
        fetch_model(ModelConfig(pretrained_model_name_or_path=str(model)))
    assert all(reason in str(caught.value) for reason in reasons)


def test_a_template_may_be_in_any_of_its_places(model: Path) -> None:
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    for place in ("chat_template.json", "tokenizer_config.json", "processor_config.json"):
        before = (model / place).read_text() if (model / place).exists() else None
        (model / place).write_text(json.dumps(json.loads(before or "{}") | {"chat_template": template}))
        require_whole_model(model, "x")
        (model / place).unlink() if before is None else (model / place).write_text(before)
    with pytest.raises(ValueError, match="instruction-tuned"):
        require_whole_model(model, "x")


def test_links_of_the_hubs_cache_are_followed_and_others_are_not(tiny_gemma3: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / ("a" * 40), tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in tiny_gemma3.iterdir():
        shutil.copy(file, blobs)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    require_whole_model(snapshot, "owner/name")
    assert read_header(snapshot / WEIGHTS)
    (snapshot / "generation_config.json").unlink(missing_ok=True)
    (snapshot / "generation_config.json").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"link that leads out of it: generation_config\.json"):
        require_whole_model(snapshot, "owner/name")


def test_no_code_of_a_model_directory_runs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm_core.models.load import load_processor

    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks on a terminal
    (model / "evil.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\nclass EvilProcessor: pass\n")
    for file in ("processor_config.json", "tokenizer_config.json"):
        change(model / file, auto_map={"AutoProcessor": "evil.EvilProcessor"}, processor_class="EvilProcessor")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_processor(model)
    assert not (tmp_path / "RAN").exists()


def test_every_call_that_could_run_a_models_code_refuses_it() -> None:
    calls = [
        (path.name, node)
        for folder in ("vlm_core", "tasks", "pipelines")
        for path in Path(__file__).parents[2].joinpath(folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_pretrained", "from_config")
        and getattr(node.func.value, "id", "").startswith("Auto")
    ]
    assert len(calls) > 5
    for name, call in calls:
        said = [ast.unparse(keyword) for keyword in call.keywords]
        assert "trust_remote_code=False" in said, f"{name}:{call.lineno}"
