"""`python -m benchmarks.data`: measures data preparation stage by stage, and compares it with `datasets.map`.

The data is generated in MedPix-VQA's shape: 2,050 images of 512 pixels with ten questions each. Every measurement runs
in its own process.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
IMAGES, MANY_IMAGES, IMAGE_SIZE = 2050, 8200, 512
MAPPED_ROWS = 200  # `datasets.map` stores 9.6 MB of pixels per row, so its total is extrapolated from these rows
PUBLISHED_SIZE = {"height": 896, "width": 896}


class Stages:
    """Measures the seconds of named stages that run one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        """Runs `work`, records its seconds under `name`, and returns its result."""
        started = time.monotonic()
        result = work()
        self.seconds[name] = time.monotonic() - started
        return result


def generate(images: int, directory: Path) -> dict[str, Any]:
    """Writes the generated dataset."""
    from vlm_core.data.phantom import write_phantom

    write_phantom(directory, images, seed=0, image_size=IMAGE_SIZE)
    size = sum(path.stat().st_size for path in directory.rglob("*.parquet"))
    return {"bytes": size}


def prepare(images: int, directory: Path) -> dict[str, Any]:
    """Finds or builds both caches; the home decides whether they are cold or warm."""
    from vlm_core.config import ModelConfig
    from vlm_core.data.conversation_cache import build_conversations
    from vlm_core.data.conversation_dataset import ConversationDataset
    from vlm_core.data.splits import fetch_splits
    from vlm_core.data.token_cache import TokenDataset, build_tokens
    from vlm_core.models.base_model import fetch_model
    from vlm_core.models.chat import load_chat
    from vlm_core.recipe import load_config

    config = load_config("demo", {"dataset.path_or_dataset": str(directory)})
    chat = load_chat(fetch_model(ModelConfig(pretrained_model_name_or_path="builtin:tiny-gemma3")))
    before, stages = _peak(), Stages()
    splits = stages.time("find and hash the source", lambda: fetch_splits(config))
    conversations, reused = stages.time("conversations", lambda: build_conversations(splits))
    tokens = stages.time("token ids", lambda: build_tokens(conversations, chat))
    opened = stages.time("open", lambda: (ConversationDataset(conversations, "train"), TokenDataset(tokens, "train")))
    cache = sum(path.stat().st_size for root in (conversations, tokens) for path in root.iterdir())
    rows = len(opened[0])
    return {
        "seconds": stages.seconds,
        "rows": rows,
        "reused": reused,
        "cache_bytes": cache,
        "peak_mb": _peak() - before,
    }


def mapped(images: int, directory: Path) -> dict[str, Any]:
    """Does what users usually write: `datasets.map` with the processor, which stores ids and pixels of every row."""
    from datasets import load_dataset

    from vlm_core.config import ModelConfig
    from vlm_core.models.base_model import fetch_model
    from vlm_core.models.load import load_processor

    processor: Any = load_processor(fetch_model(ModelConfig(pretrained_model_name_or_path="builtin:tiny-gemma3")))
    processor.image_processor.size = PUBLISHED_SIZE
    before = _peak()

    def process(row: dict[str, Any]) -> dict[str, Any]:
        user = [{"type": "image", "image": row["image_id"].convert("RGB")}, {"type": "text", "text": row["question"]}]
        answer = [{"type": "text", "text": row["answer"]}]
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        return processor.apply_chat_template(turns, tokenize=True, return_dict=True)

    files = sorted(str(path) for path in directory.rglob("train-*.parquet"))
    rows: Any = load_dataset("parquet", data_files=files, split=f"train[:{MAPPED_ROWS}]", cache_dir=f"{directory}-hf")
    started = time.monotonic()
    result = rows.map(process, remove_columns=rows.column_names)
    seconds = time.monotonic() - started
    size = sum(Path(file["filename"]).stat().st_size for file in result.cache_files)
    return {"rows": len(rows), "map_seconds": seconds, "cache_bytes": size, "peak_mb": _peak() - before}


def _peak() -> float:
    """Returns the peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _run(work: str, images: int, directory: Path) -> dict[str, Any]:
    environment = os.environ | {
        "MEDPIX_HOME": f"{directory.parent}/home",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
    }
    command = [sys.executable, "-m", "benchmarks.data", work, str(images), str(directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{work} failed:\n{done.stderr[-3000:]}")
    record = json.loads(done.stdout.splitlines()[-1]) | {"work": work, "images": images}
    print(record, flush=True)
    return record


def _table(records: list[dict[str, Any]]) -> str:
    cold, warm, user, many = (record for record in records if record["work"] != "generate")
    cold_seconds, warm_seconds, many_seconds = (sum(record["seconds"].values()) for record in (cold, warm, many))
    speed, user_speed = cold["rows"] / cold_seconds, user["rows"] / user["map_seconds"]
    lines = [
        "# Measured: preparing data",
        "",
        f"{IMAGES:,} images of {IMAGE_SIZE} pixels, {10 * IMAGES:,} rows, {records[0]['bytes'] / 1e6:,.0f} MB of "
        "parquet files; two cores; written by `python -m benchmarks.data`.",
        "",
        "| stage | cold, s | warm, s |",
        "|---|---|---|",
        *(f"| {name} | {cold['seconds'][name]:.2f} | {warm['seconds'][name]:.3f} |" for name in cold["seconds"]),
        f"| all | {cold_seconds:.2f} | {warm_seconds:.3f} |",
        "",
        "| | rows per second | all training rows, s | bytes per row | peak MB |",
        "|---|---|---|---|---|",
        f"| both caches, cold | {speed:,.0f} | {cold_seconds:.0f} | {cold['cache_bytes'] / cold['rows']:,.0f} "
        f"| {cold['peak_mb']:.0f} |",
        f"| `datasets.map` with the processor ({user['rows']} rows, extrapolated) | {user_speed:,.1f} "
        f"| {cold['rows'] / user_speed:,.0f} | {user['cache_bytes'] / user['rows']:,.0f} | {user['peak_mb']:.0f} |",
        "",
        "| images | rows | cold, s | peak MB above the start |",
        "|---|---|---|---|",
        f"| {IMAGES:,} | {10 * IMAGES:,} | {cold_seconds:.1f} | {cold['peak_mb']:.0f} |",
        f"| {MANY_IMAGES:,} | {10 * MANY_IMAGES:,} | {many_seconds:.1f} | {many['peak_mb']:.0f} |",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs all measurements and writes results/data.json and data.md; with arguments, runs one and prints it."""
    if len(sys.argv) > 1:
        work, images, directory = sys.argv[1:]
        functions = {"generate": generate, "prepare": prepare, "mapped": mapped}
        print(json.dumps(functions[work](int(images), Path(directory))))
        return
    records = []
    with tempfile.TemporaryDirectory(prefix="medpix-bench-") as root:
        for work, images in (
            ("generate", IMAGES),
            ("prepare", IMAGES),
            ("prepare", IMAGES),
            ("mapped", IMAGES),
            ("generate", MANY_IMAGES),
            ("prepare", MANY_IMAGES),
        ):
            records.append(_run(work, images, Path(root) / str(images)))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "data.json").write_text(json.dumps(records, indent=1) + "\n")
    (RESULTS / "data.md").write_text(_table(records))


if __name__ == "__main__":
    main()
