"""A dataset reads its own files alone, whatever its card, state or links say; nothing is fetched meanwhile."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from huggingface_hub import DatasetCard

from vlm_core.config import DatasetConfig, ModelConfig
from vlm_core.data import source
from vlm_core.data.dataset_card import has_named_files
from vlm_core.data.dataset_safety import require_own_files

ROW = {"image": "x.png", "question": "q?", "answer": "yes"}


def write_table(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "train.jsonl").write_text(json.dumps(ROW) + "\n")


def write_card(directory: Path, data_files: object, file: str = "README.md") -> None:
    write_table(directory)
    card = json.dumps({"configs": [{"config_name": "default", "data_files": data_files}]})
    (directory / file).write_text(card if file.endswith("yaml") else f"---\n{card}\n---\n")


def write_saved(directory: Path, filename: object, key: str = "_data_files") -> None:
    Dataset.from_dict({name: [value] for name, value in ROW.items()}).save_to_disk(str(directory))
    state = json.loads((directory / "state.json").read_text())
    (directory / "state.json").write_text(json.dumps(state | {key: [{"filename": filename}]}))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that opens a connection."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


UNKNOWN_TYPE = '{"features": {"a": {"_type": "os.system"}}}'
ADDRESSES = ["http://127.0.0.1:1/train.jsonl", "zip://*.jsonl::http://127.0.0.1:1/x.zip", "hf://datasets/a/b/x.jsonl"]
PATHS = ["../other/train.jsonl", "/etc/passwd", "sub/../../other/*.jsonl", "..\\other\\train.jsonl"]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("place", [*ADDRESSES, "file:///etc/passwd"])
def test_addresses_in_a_card_are_refused_and_not_fetched(tmp_path: Path, place: str, file: str) -> None:
    for number, data_files in enumerate((place, [place], [{"split": "train", "path": place}], {"train": [place]})):
        write_card(tmp_path / str(number), data_files, file)
        with pytest.raises(ValueError, match="which is not a file of it"):
            source.open_dataset(DatasetConfig(path_or_dataset=str(tmp_path / str(number))))


ADDRESS = '{"configs": [{"config_name": "default", "data_files": "http://127.0.0.1:1/train.jsonl"}]}'
# Headers that `datasets` reads, however they are written.
HEADERS = {
    "a byte-order mark": f"\ufeff---\n{ADDRESS}\n---\n",
    "blank lines first": f"\n \n---\n{ADDRESS}\n---\n",
    "spaces first": f"  ---\n{ADDRESS}\n---\n",
    "line breaks of old Macs": f"---\r{ADDRESS}\r---\n",
    "a line that begins as the end does": f"---\n---x: 1\n{ADDRESS[1:-1]}\n---\n",
}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("header", HEADERS)
def test_the_header_is_the_one_that_datasets_reads(tmp_path: Path, header: str) -> None:
    write_table(tmp_path)
    (tmp_path / "README.md").write_bytes(HEADERS[header].encode())
    assert "http" in str(DatasetCard.load(tmp_path / "README.md").data)
    with pytest.raises(ValueError, match="which is not a file of it"):
        source.open_dataset(DatasetConfig(path_or_dataset=str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"configs: [\n", "is not YAML"), (b"[" * 5000, "is not YAML"), (b"#" * 10_000_000, "more than 10,000,000 bytes")],
)
def test_a_card_that_cannot_be_read_is_one_clear_error(tmp_path: Path, content: bytes, reason: str) -> None:
    write_table(tmp_path)
    (tmp_path / "README.md").write_bytes(b"---\n" + content + b"\n---\n")
    assert has_named_files(tmp_path, None)  # The error comes when the dataset is opened.
    with pytest.raises(ValueError, match=reason):
        source.open_dataset(DatasetConfig(path_or_dataset=str(tmp_path)))


@pytest.mark.parametrize("place", PATHS)
def test_paths_in_a_card_of_somebody_else_stay_inside(tmp_path: Path, place: str) -> None:
    write_card(tmp_path, [{"split": "train", "path": place}])
    with pytest.raises(ValueError, match="outside of itself"):
        require_own_files(tmp_path, "owner/data", anywhere=False)
    require_own_files(tmp_path, "data", anywhere=True)


def test_a_sound_card_is_read_and_one_that_repeats_itself_ends(tmp_path: Path) -> None:
    write_card(tmp_path, [{"split": "train", "path": "*.jsonl"}])
    require_own_files(tmp_path, "owner/data", anywhere=False)
    (tmp_path / "README.md").write_text(
        "---\nconfigs: &a\n- data_files: *a\n- x: &b [*a, *a]\n- y: [*b, *b]\n---\nsee https://x.org\n"
    )
    require_own_files(tmp_path, "owner/data", anywhere=False)


@pytest.mark.parametrize("anywhere", [True, False])
@pytest.mark.parametrize("key", ["_data_files", "_indices_data_files"])
@pytest.mark.parametrize("filename", ["../private/data-00000-of-00001.arrow", "/etc/passwd", "file:///x", "link.arrow"])
def test_a_state_names_files_beside_it(tmp_path: Path, filename: str, key: str, anywhere: bool) -> None:
    Dataset.from_dict({"image": ["HIDDEN"]}).save_to_disk(str(tmp_path / "private"))
    write_saved(tmp_path / "saved", filename, key)
    (tmp_path / "saved" / "link.arrow").symlink_to("../private/data-00000-of-00001.arrow")
    with pytest.raises(ValueError, match="outside of itself|leads out"):
        require_own_files(tmp_path / "saved", "data", anywhere=anywhere)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: (d / "state.json").write_text("{"), "state.json is not JSON"),
        (lambda d: (d / "state.json").write_text("[]"), "not a JSON object"),
        (lambda d: (d / "state.json").write_text('{"_data_files": [5]}'), "names no file"),
        (lambda d: (d / "dataset_dict.json").write_text('{"splits": ["../private"]}'), "outside of itself"),
        (lambda d: (d / "dataset_dict.json").write_text('{"splits": ["train"]}'), "lacks train/state.json"),
        (
            lambda d: (d / "dataset_info.json").write_text('{"features": {"a": {"_type": "os.system"}}}'),
            "save it again",
        ),
        (lambda d: (d / "data-00000-of-00001.arrow").write_bytes(b"cut"), "save it again"),
    ],
)
def test_a_damaged_saved_dataset_is_one_clear_error(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    write_saved(tmp_path, "data-00000-of-00001.arrow")
    source.open_dataset(DatasetConfig(path_or_dataset=str(tmp_path)))
    damage(tmp_path)
    with pytest.raises(ValueError, match=reason):
        source.open_dataset(DatasetConfig(path_or_dataset=str(tmp_path)))


def test_links_out_of_somebody_elses_dataset_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "other")
    for number, (link, target) in enumerate(
        [("train.jsonl", "../other/train.jsonl"), ("sub", "../other"), ("images/x.png", "/etc/hostname")]
    ):
        place = tmp_path / str(number) / link
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
        with pytest.raises(ValueError, match="link that leads out of it"):
            require_own_files(tmp_path / str(number), "owner/data", anywhere=False)
        require_own_files(tmp_path / str(number), "data", anywhere=True)


@pytest.mark.parametrize("kind", [ModelConfig, DatasetConfig])
@pytest.mark.parametrize(
    "revision", ["../../x", "a/../b", "/abs", "..", "a//b", "a b", "", "x/", "a\n", "-x", "~", "a:b"]
)
def test_revisions_are_names(kind: type[ModelConfig | DatasetConfig], revision: str) -> None:
    name = "pretrained_model_name_or_path" if kind is ModelConfig else "path_or_dataset"
    with pytest.raises(ValueError, match="revision"):
        kind(**{name: "owner/name", "revision": revision})
    for sound in ("main", "v1.0", "refs/pr/1", "feature/x-y_z", "a" * 40):
        assert kind(**{name: "owner/name", "revision": sound}).revision == sound
