"""Whether a model directory is whole: checked from the files' headers, before anything is loaded.

transformers would report most of these faults late and without the file: in the middle of loading the weights, or as an
index out of range on the GPU.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlm_core.files import stays_inside

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
WEIGHT_FILES = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
LFS = b"version https://git-lfs.github.com/spec/"
LONGEST_HEADER = 100_000_000  # bytes; safetensors itself refuses longer ones
PRETRAINED = re.compile(r"-pt\b")
EMBEDDINGS = re.compile(r"(^|\.)embed_tokens\.weight$")
AGAIN = "copy or download it again"


def require_whole_model(directory: Path, name: str, *, weights: bool = True) -> None:
    """Raises ValueError, with the file and the remedy, for a directory of a base model that cannot be trained.

    Without `weights`, the weight files may be absent and are not looked at.
    """
    config = _require_config(directory, name)
    for kind, choices in (("processor", PROCESSOR_FILES), ("tokenizer", TOKENIZER_FILES)):
        if not any((directory / choice).is_file() for choice in choices):
            raise ValueError(
                f"model {name!r} has no {kind} ({' or '.join(choices)}); copy the base model's {kind} files beside "
                "its weights, or save them there with processor.save_pretrained(directory)"
            )
    _require_inside(directory, name)
    for file in sorted(directory.glob("*.json")):
        read_object(file)
    _require_template(directory, name)
    if weights:
        require_whole_weights(directory)
        _require_embeddings(directory, name, config)


def require_whole_weights(directory: Path) -> None:
    """Raises ValueError if a weight file in `directory` is missing, cut, or only a Git LFS pointer."""
    found = [directory / file for file in WEIGHT_FILES if (directory / file).is_file()]
    for index in (directory / file for file in INDEX_FILES if (directory / file).is_file() and not found):
        found = _shards(index)
    if not found:
        raise ValueError(f"{directory} has no weights ({' or '.join((*WEIGHT_FILES, *INDEX_FILES))})")
    for file in found:
        if file.suffix == ".safetensors":
            read_header(file)
        else:
            _require_content(file)


def read_header(file: Path) -> dict[str, Any]:
    """Returns `{tensor: {dtype, shape, data_offsets}}` of a safetensors file; raises ValueError for one that is cut."""
    _require_content(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(LONGEST_HEADER, size - 8):
            raise ValueError(f"{file} is incomplete or not safetensors: {AGAIN}")
        try:
            header = json.loads(stream.read(length))
            tensors = {key: value for key, value in header.items() if key != "__metadata__"}
            end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ValueError(f"{file} has a damaged header: {AGAIN}") from None
    if size != end:
        raise ValueError(f"{file} is incomplete: it has {size:,} bytes and should have {end:,}; {AGAIN}")
    return tensors


def read_object(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; raises ValueError that names the file for anything else."""
    _require_content(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}): {AGAIN}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not a JSON object: {AGAIN}")
    return found


def _require_config(directory: Path, name: str) -> dict[str, Any]:
    if not (directory / "config.json").is_file():
        raise ValueError(f"model {name!r} has no config.json: it is not the directory of a transformers model")
    config = read_object(directory / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ValueError(
            f"{directory / 'config.json'} has no model_type: take the config.json that was saved with the model"
        )
    return config


def _require_content(file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"{file} is missing: {AGAIN}")
    with file.open("rb") as stream:
        head = stream.read(len(LFS))
    if not head:
        raise ValueError(f"{file} is empty: {AGAIN}")
    if head == LFS:
        raise ValueError(f"{file} is a Git LFS pointer and not the file itself: run git lfs pull in {file.parent}")


def _shards(index: Path) -> list[Path]:
    """Returns the weight files that an index names; raises ValueError if one is missing or lies elsewhere."""
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{index} lists no weight files: {AGAIN}")
    shards = [index.parent / file for file in sorted(set(files.values()))]
    for shard in shards:
        if shard.parent != index.parent or shard.name == "..":
            raise ValueError(f"{index} names {shard.name!r} outside of its directory: do not use this model")
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ValueError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names: {AGAIN}")
    return shards


def _require_inside(directory: Path, name: str) -> None:
    """Raises ValueError if a downloaded model has links to files that do not belong to it."""
    if directory.parent.name != "snapshots":
        return  # in a local directory, the user may link weights from another disk
    outside = [file.name for file in directory.iterdir() if not stays_inside(directory, file)]
    if outside:
        raise ValueError(f"model {name!r} has a link that leads out of it: {outside[0]}; do not use this model")


def _require_template(directory: Path, name: str) -> None:
    if any((directory / file).is_file() for file in TEMPLATE_FILES) or _templates_within(directory):
        return
    tuned = PRETRAINED.sub("-it", name)
    which = f"the instruction-tuned {tuned}" if tuned != name else "the instruction-tuned checkpoint (-it, -Instruct)"
    raise ValueError(
        f"model {name!r} has no chat template, as checkpoints before instruction tuning (-pt) have none; take {which}, "
        f"or copy its chat_template.jinja into {directory}"
    )


def _templates_within(directory: Path) -> bool:
    """Returns whether a settings file, or the folder for several templates, holds a chat template."""
    settings = (directory / file for file in (*PROCESSOR_FILES, "tokenizer_config.json"))
    return any(file.is_file() and read_object(file).get("chat_template") for file in settings) or any(
        (directory / "additional_chat_templates").glob("*.jinja")
    )


def _require_embeddings(directory: Path, name: str, config: dict[str, Any]) -> None:
    """Raises ValueError unless tokenizer, config and weights agree on the number of token embeddings."""
    text = config.get("text_config")
    own = text.get("vocab_size") if isinstance(text, dict) else None
    configured = own if own is not None else config.get("vocab_size")
    rows = next(_embedding_rows(directory), None)
    if isinstance(configured, int) and rows is not None and rows != configured:
        raise ValueError(
            f"{directory / 'config.json'} has vocab_size={configured} and the weights have {rows} embeddings: take the "
            "config.json that was saved with these weights"
        )
    known, tokens = rows if rows is not None else configured, _tokens(directory)
    if isinstance(known, int) and tokens > known + (config.get("additional_vocab_size") or 0):
        raise ValueError(
            f"model {name!r}: its tokenizer has {tokens} tokens and the model {known} embeddings; call "
            f"model.resize_token_embeddings({tokens}) and save the model again, or take the tokenizer files that were "
            "published with these weights"
        )


def _embedding_rows(directory: Path) -> Iterator[int]:
    """Yields the number of token embeddings in the safetensors files of a directory."""
    for file in sorted(directory.glob("*.safetensors")):
        for tensor, found in read_header(file).items():
            if EMBEDDINGS.search(tensor):
                yield found["shape"][0]


def _tokens(directory: Path) -> int:
    """Returns how many ids the fast tokenizer in a directory can give, 0 if it has none."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        return 0
    return _tokens_of(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _tokens_of(file: Path, _: int) -> int:
    found = read_object(file)
    vocabulary = (found.get("model") or {}).get("vocab") or {}
    ids = [-1, *(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))]
    return 1 + max([*ids, *(token.get("id", -1) for token in found.get("added_tokens") or [])])
