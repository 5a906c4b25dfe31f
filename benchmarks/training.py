"""Measures our training and a plain transformers loop on the same examples in the same optimizer steps."""

import contextlib
import shutil
import statistics
import subprocess
import sys
import time
import timeit
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import PeakMemory
from benchmarks.workload import BFLOAT16
from vlm_core.config import Config
from vlm_core.data.batches import DecodedImages, PackedBatches, PlainBatches
from vlm_core.data.loader import iterate_steps, plan_epoch
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.families import GEMMA3
from vlm_core.files import read_json_lines, write_text
from vlm_core.finetune import finetune
from vlm_core.home import medpix_home
from vlm_core.models.chat import load_chat
from vlm_core.models.frozen_tower import DetachedTower
from vlm_core.models.load import device_of
from vlm_core.models.prepare import prepare_model
from vlm_core.models.structured_attention import use_structured_attention
from vlm_core.run_directory import METRICS
from vlm_core.training.distributed import Ranks
from vlm_core.training.loss import TokenLoss, supervised_tokens
from vlm_core.training.vision_cache import encode_images

WARM_UP = 1  # steps that are not measured


def ours(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Trains with `vlm_core.finetune` as its command does; the vision cache is filled first and timed separately."""
    shutil.rmtree(medpix_home() / "cache" / "vision", ignore_errors=True)
    with PeakMemory() as memory:
        encode_seconds = _encode(config, conversations) if config.vision_cache.enabled else 0.0
        finetune(config, Ranks(), conversations)
    records = read_json_lines(Path(config.checkpoint.checkpoint_dir or "") / METRICS)[0]
    figures = {
        key: statistics.median(record[key] for record in records[WARM_UP:])
        for key in ("tokens_per_second", "model_flops_utilisation")
        if key in records[-1]
    }
    return figures | {
        "seconds": records[-1]["elapsed_seconds"] - records[WARM_UP - 1]["elapsed_seconds"],
        "losses": [record["loss"] for record in records],
        "encode_seconds": encode_seconds,
        "peak_mb": memory.megabytes,
    }


def _encode(config: Config, conversations: Path) -> float:
    """Fills the vision cache, and returns the seconds that this took."""
    base = Path(config.model.pretrained_model_name_or_path)
    model, chat = prepare_model(config, base, GEMMA3, None), load_chat(base)
    started = time.monotonic()
    encode_images(model, chat, conversations, Ranks(), device_of(0), 0)
    return time.monotonic() - started


def ours_two_processes(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Trains with the same command under torchrun, on two processes."""
    run = Path(config.checkpoint.checkpoint_dir or "")
    shutil.rmtree(medpix_home() / "cache" / "vision", ignore_errors=True)
    encode_seconds = _encode(config, conversations)
    write_text(run / "config.yaml", config.to_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    arguments = ["--config", str(run / "config.yaml"), "--conversations", str(conversations)]
    peak = 0
    job = subprocess.Popen(
        [*command, "vlm_core.finetune", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while job.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):  # a rank may end while it is measured
            ranks = psutil.Process(job.pid).children(recursive=True)
            peak = max(peak, sum(rank.memory_info().rss for rank in ranks))
        time.sleep(0.05)
    if job.returncode:
        raise SystemExit(f"torchrun ended with {job.returncode}")
    records = read_json_lines(run / METRICS)[0]
    seconds = records[-1]["elapsed_seconds"] - records[WARM_UP - 1]["elapsed_seconds"]
    return {
        "seconds": seconds,
        "losses": [record["loss"] for record in records],
        "encode_seconds": encode_seconds,
        "peak_mb": peak / 1e6,
    }


def efficiency(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Measures the FLOPs per second of a packed step, as a share of those of a large matrix product here."""
    base = Path(config.model.pretrained_model_name_or_path)
    chat, model = load_chat(base), prepare_model(config, base, GEMMA3, None)
    tokens = TokenDataset(build_tokens(conversations, chat), "train")
    images = encode_images(model, chat, conversations, Ranks(), device_of(0), 0)
    DetachedTower(model, GEMMA3)
    batches = PackedBatches(tokens, images, chat, config.packing.max_tokens)
    samples = config.step_scheduler.batch_size
    built = [batches.batch(micro_batch) for micro_batch in batches.micro_batches(range(samples), 0, 1)]
    use_structured_attention(model, device_of(0))
    objective = TokenLoss(model.to(device_of(0)).train(), chat, skip_unused=True)

    def step() -> None:
        for batch in built:
            objective({key: value.to(device_of(0)) for key, value in batch.items()}).backward()

    with FlopCounterMode(display=False) as counter, PeakMemory() as memory:
        step()
    seconds = timeit.timeit(step, number=2) / 2
    one, other = torch.randn(2048, 2048, device=device_of(0)), torch.randn(2048, 2048, device=device_of(0))
    product = min(timeit.repeat(lambda: one @ other, number=5, repeat=5)) / 5
    share = (counter.get_total_flops() / seconds) / (2 * 2048**3 / product)
    return {
        "seconds": seconds * (steps - WARM_UP),
        "peak_mb": memory.megabytes,
        "flops_share": share,
        "flops_per_sample": counter.get_total_flops() / samples,
    }


def order_of(config: Config, tokens: TokenDataset) -> list[list[int]]:
    return plan_epoch(len(tokens), config.step_scheduler.batch_size, config.rng.seed, 0, tokens.groups)


def repeated(order: list[list[int]], steps: int) -> list[list[int]]:
    return [order[i % len(order)] for i in range(steps)]


def with_plain_lora(config: Config) -> Config:
    """Returns `config` with the layers of peft, which the other contenders use."""
    plain = config.peft and config.peft.model_copy(update={"use_triton": False})
    return config.model_copy(update={"peft": plain})


def plain(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Trains with a usual transformers loop: pixels and logits for every example, and gradient accumulation."""
    base = Path(config.model.pretrained_model_name_or_path)
    chat = load_chat(base)
    with PeakMemory() as memory:
        model = prepare_model(with_plain_lora(config), base, GEMMA3, None).to(device_of(0)).train()
        tokens = TokenDataset(build_tokens(conversations, chat), "train")
        size = config.step_scheduler.local_batch_size
        batches = PlainBatches(tokens, DecodedImages.of(conversations, chat), chat, size)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.optimizer.lr, betas=config.optimizer.betas, weight_decay=0.01)
        planned = [batches.micro_batches(step, 0, 1) for step in repeated(order_of(config, tokens), steps)]
        losses, started = [], 0.0
        for number, step in enumerate(iterate_steps(planned, batches.batch, num_workers=0), start=1):
            count = torch.tensor(sum(map(supervised_tokens, step)))
            loss = 0.0
            for batch in step:
                batch = {key: value.to(device_of(0)) for key, value in batch.items()}
                with torch.autocast(device_of(0).type, torch.bfloat16, enabled=BFLOAT16):
                    part = model(**batch, num_items_in_batch=count.to(device_of(0)), use_cache=False).loss
                part.backward()
                loss += part.item()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss)
            if number == WARM_UP:
                started = time.monotonic()
    return {"seconds": time.monotonic() - started, "losses": losses, "peak_mb": memory.megabytes}
