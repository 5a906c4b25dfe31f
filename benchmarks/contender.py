"""One measurement in a process of its own: `python -m benchmarks.contender '{"contender": "ours", ...}'`.

Prints a line of JSON. Every contender reads the same examples in the same optimizer steps, from the same weights; the
losses that it reports show it.
"""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.workload import BFLOAT16, SIZES, config_of, decode, write_data, write_model
from vlm_core.config import Config
from vlm_core.data.batches import PackedBatches, PixelInputs, PlainBatches
from vlm_core.data.collate import collate_prompts
from vlm_core.data.conversations import ConversationDataset, build_conversations, fetch_splits
from vlm_core.data.loader import iterate_steps, plan_epoch
from vlm_core.data.tokens import TokenDataset, build_tokens
from vlm_core.families import GEMMA3
from vlm_core.files import read_json_lines, write_text
from vlm_core.finetune import finetune
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.decode import generate_greedily, stop_tokens, without_answer
from vlm_core.generation.prompts import Prompts, prompt_of
from vlm_core.home import medpix_home
from vlm_core.models.load import device_of, load_processor
from vlm_core.models.prepare import prepare_model
from vlm_core.models.vision import DetachedTower
from vlm_core.run_directory import METRICS
from vlm_core.training.distributed import Ranks
from vlm_core.training.encoding import encode_images
from vlm_core.training.loss import TokenLoss, supervised_tokens

WARM_UP = 1  # steps that are not counted


class PeakMemory:
    """The largest memory above that at the start, in MB: resident, looked at every 5 ms; or the GPU's."""

    def __enter__(self) -> "PeakMemory":
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.process, self.stopped = psutil.Process(), threading.Event()
        self.before = self.peak = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.stopped.wait(0.005):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()

    @property
    def megabytes(self) -> float:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e6
        return (self.peak - self.before) / 1e6


def ours(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """`vlm_core.finetune`, as its command runs it; the vision cache is filled before, and timed apart."""
    shutil.rmtree(medpix_home() / "cache" / "vision", ignore_errors=True)
    with PeakMemory() as memory:
        encode_seconds = _encode(config, conversations) if config.vision_cache.enabled else 0.0
        finetune(config, Ranks(), conversations)
    records = read_json_lines(Path(config.checkpoint.checkpoint_dir or "") / METRICS)[0]
    return {
        "seconds": records[-1]["elapsed_seconds"] - records[WARM_UP - 1]["elapsed_seconds"],
        "losses": [record["loss"] for record in records],
        "encode_seconds": encode_seconds,
        "peak_mb": memory.megabytes,
    }


def _encode(config: Config, conversations: Path) -> float:
    """Returns the seconds that it took to fill the vision cache."""
    base = Path(config.model.pretrained_model_name_or_path)
    model, processor = prepare_model(config, base, GEMMA3, None), load_processor(base)
    started = time.monotonic()
    encode_images(model, processor, GEMMA3, conversations, Ranks(), device_of(0))
    return time.monotonic() - started


def ours_two_processes(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """The same under torchrun, on two processes."""
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
        with contextlib.suppress(psutil.NoSuchProcess):  # a rank that ends while it is looked at
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
    """Floating-point operations a second of a packed step over those of a large matrix product on this machine."""
    base = Path(config.model.pretrained_model_name_or_path)
    processor, model = load_processor(base), prepare_model(config, base, GEMMA3, None)
    tokens = TokenDataset(build_tokens(conversations, processor, GEMMA3), "train")
    images = encode_images(model, processor, GEMMA3, conversations, Ranks(), device_of(0))
    DetachedTower(model, GEMMA3)
    batches = PackedBatches(tokens, images, processor.tokenizer, config.packing.max_tokens)
    samples = config.step_scheduler.global_batch_size
    planned = batches.micro_batches(range(samples), 0, 1)
    made = [batches.batch(micro_batch) for micro_batch in planned]
    objective = TokenLoss(model.to(device_of(0)).train(), GEMMA3)

    def step() -> None:
        for batch in made:
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
        "flops_a_sample": counter.get_total_flops() / samples,
    }


def _order(config: Config, tokens: TokenDataset) -> list[list[int]]:
    return plan_epoch(len(tokens), config.step_scheduler.global_batch_size, config.rng.seed, 0, tokens.groups)


def plain(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """A transformers loop as anyone would write it: pixels and logits of every row, gradients accumulated."""
    base = Path(config.model.pretrained_model_name_or_path)
    processor = load_processor(base)
    with PeakMemory() as memory:
        model = prepare_model(config, base, GEMMA3, None).to(device_of(0)).train()
        tokens = TokenDataset(build_tokens(conversations, processor, GEMMA3), "train")
        size = config.step_scheduler.local_batch_size
        batches = PlainBatches(tokens, PixelInputs.of(conversations, processor), processor.tokenizer, size)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.optimizer.lr, betas=config.optimizer.betas, weight_decay=0.01)
        planned = [batches.micro_batches(step, 0, 1) for step in _epochs(_order(config, tokens), steps)]
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


def _epochs(order: list[list[int]], steps: int) -> list[list[int]]:
    return [order[i % len(order)] for i in range(steps)]


def trl(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """TRL's SFTTrainer with completion-only loss; its defaults of bf16 and gradient checkpointing are off, as here."""
    from datasets import Dataset, Features, Image, Sequence, Value
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    base = Path(config.model.pretrained_model_name_or_path)
    processor: Any = load_processor(base)
    source = ConversationDataset(conversations, "train")
    tokens = TokenDataset(build_tokens(conversations, processor, GEMMA3), "train")

    def rows() -> Iterator[dict[str, Any]]:
        for index in (i for step in _epochs(_order(config, tokens), steps) for i in step):
            user, model = source.conversations[index]["conversation"]
            (image,) = (part["image"] for part in user["content"] if part["type"] == "image")
            question = "".join(part["text"] for part in user["content"] if part["type"] == "text")
            answer = model["content"][0]["text"]
            yield {
                "images": [decode(source.images[image]["encoded"])],
                # Standard texts and not conversations: the newline behind the answer would be supervised as well.
                "prompt": f"<bos><start_of_turn>user\n<start_of_image>{question}<end_of_turn>\n<start_of_turn>model\n",
                "completion": f"{answer}<end_of_turn>",
            }

    features = Features({"images": Sequence(Image()), "prompt": Value("string"), "completion": Value("string")})
    dataset = Dataset.from_list(list(rows()), features=features)
    schedule = config.step_scheduler
    clock: dict[int, float] = {}

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock[state.global_step] = time.monotonic()

    with PeakMemory() as memory:
        model = prepare_model(config, base, GEMMA3, None)
        trainer = SFTTrainer(
            model=model,
            processing_class=processor,
            train_dataset=dataset,
            callbacks=[Clock()],
            args=SFTConfig(
                output_dir=str(Path(config.checkpoint.checkpoint_dir or "") / "trl"),
                max_length=None,
                bf16=BFLOAT16,
                use_cpu=not torch.cuda.is_available(),
                gradient_checkpointing=False,
                completion_only_loss=True,
                report_to=[],
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
                dataloader_pin_memory=False,
                train_sampling_strategy="sequential",
                per_device_train_batch_size=schedule.local_batch_size,
                gradient_accumulation_steps=schedule.global_batch_size // schedule.local_batch_size,
                max_steps=steps,
                learning_rate=config.optimizer.lr,
                lr_scheduler_type="constant",
                adam_beta1=config.optimizer.betas[0],
                adam_beta2=config.optimizer.betas[1],
                weight_decay=0.01,
            ),
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": clock[steps] - clock[WARM_UP], "losses": losses, "peak_mb": memory.megabytes}


def answer_ours(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Shared-prefix generation as `vlm_core.evaluate` does it, from pixels."""
    answerer, prompts, pixels = _questions(config, conversations)
    stops, longest = stop_tokens(answerer.processor.tokenizer, GEMMA3), config.evaluation.max_new_tokens
    answers: dict[int, list[int]] = {}
    with PeakMemory() as memory:
        started = time.monotonic()
        for groups in prompts.batches(config.evaluation.batch_size):
            rows = [[prompts.prompts[i] for i in group.members] for group in groups]
            shown = pixels([image for row in rows for image in row[0].images])
            ids = generate_greedily(answerer.model, GEMMA3, rows, shown, answerer.image_token, stops, longest)
            answers |= dict(zip((i for group in groups for i in group.members), ids, strict=True))
        seconds = time.monotonic() - started
    return {"seconds": seconds, "answers": [answers[i] for i in range(len(prompts))], "peak_mb": memory.megabytes}


def answer_batched(config: Config, conversations: Path, steps: int, batch_size: int | None = None) -> dict[str, Any]:
    """`model.generate` on batches of questions, padded on the left."""
    answerer, prompts, _ = _questions(config, conversations)
    dataset = ConversationDataset(conversations, "train")
    size = batch_size or config.evaluation.batch_size
    answers: list[list[int]] = []
    with PeakMemory() as memory:
        started = time.monotonic()
        for start in range(0, len(prompts), size):
            rows = [dataset[i] for i in range(start, min(start + size, len(prompts)))]
            asked = [{"conversation": without_answer(row["conversation"])} for row in rows]
            inputs = collate_prompts(asked, answerer.processor, GEMMA3).items()
            moved = {key: value.to(answerer.model.device) for key, value in inputs}
            output = answerer.model.generate(
                **moved,
                max_new_tokens=config.evaluation.max_new_tokens,
                do_sample=False,
                eos_token_id=list(stop_tokens(answerer.processor.tokenizer, GEMMA3)),
                pad_token_id=0,
            )
            answers += output[:, moved["input_ids"].shape[1] :].tolist()
        seconds = time.monotonic() - started
    return {"seconds": seconds, "answers": answers, "peak_mb": memory.megabytes}


def answer_one_by_one(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """`model.generate`, a question at a time."""
    return answer_batched(config, conversations, steps, batch_size=1)


def _questions(config: Config, conversations: Path) -> tuple[Answerer, Prompts, PixelInputs]:
    answerer = Answerer.load(None, config.model)
    tokens = TokenDataset(build_tokens(conversations, answerer.processor, GEMMA3), "train")
    prompts = Prompts([prompt_of(tokens[i]) for i in range(len(tokens))], answerer.image_token)
    return answerer, prompts, PixelInputs.of(conversations, answerer.processor)


def read_cold(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """Conversations and token ids of a data set that was never seen."""
    shutil.rmtree(medpix_home() / "cache" / "conversations", ignore_errors=True)
    shutil.rmtree(medpix_home() / "cache" / "tokens", ignore_errors=True)
    return read_warm(config, conversations, steps)


def read_warm(config: Config, conversations: Path, steps: int) -> dict[str, Any]:
    """The same again: what a second run pays before its first step."""
    base = Path(config.model.pretrained_model_name_or_path)
    processor = load_processor(base)
    before = psutil.Process().io_counters().read_chars
    with PeakMemory() as memory:
        started = time.monotonic()
        conversations, _ = build_conversations(fetch_splits(config))
        tokens = TokenDataset(build_tokens(conversations, processor, GEMMA3), "train")
        seconds = time.monotonic() - started
    read = psutil.Process().io_counters().read_chars - before
    return {"seconds": seconds, "answers": [None] * len(tokens), "peak_mb": memory.megabytes, "bytes_read": read}


CONTENDERS: dict[str, Callable[[Config, Path, int], dict[str, Any]]] = {
    "ours": ours,
    "ours-two-processes": ours_two_processes,
    "efficiency": efficiency,
    "plain": plain,
    "trl": trl,
    "answer-ours": answer_ours,
    "answer-batched": answer_batched,
    "answer-one-by-one": answer_one_by_one,
    "read-cold": read_cold,
    "read-warm": read_warm,
}


def main() -> None:
    """Runs the measurement that the argument describes."""
    logging.basicConfig(level=logging.WARNING)
    wanted = json.loads(sys.argv[1])
    torch.set_num_threads(wanted["threads"])
    root = Path(wanted["directory"])
    model, data = root / f"model-{wanted['size']}", root / f"data-{wanted['images']}x{wanted['questions']}"
    run = root / "run"
    shutil.rmtree(run, ignore_errors=True)
    write_model(model, SIZES[wanted["size"]])
    write_data(data, wanted["images"], wanted["questions"])
    assert wanted["batch"] % wanted["rows"] == 0, "or TRL would take fewer examples a step than the others"
    schedule = {"max_steps": "steps", "global_batch_size": "batch", "local_batch_size": "rows"}
    overrides = {f"step_scheduler.{key}": wanted[name] for key, name in schedule.items()}
    config = config_of(model, data, run, wanted["tuning"], **overrides, **wanted.get("overrides", {}))
    conversations, _ = build_conversations(fetch_splits(config))
    result = CONTENDERS[wanted["contender"]](config, conversations, wanted["steps"])
    print(json.dumps(wanted | result | _speeds(wanted, result) | {"machine": machine()}))


def _speeds(wanted: dict[str, Any], result: dict[str, Any]) -> dict[str, float]:
    """Returns samples a second: of the steps alone, and with the filling of the vision cache over 1 and 3 epochs."""
    if "answers" in result:
        rate = len(result["answers"]) / result["seconds"]
        return dict.fromkeys(("samples_per_second", "effective_per_second", "epoch_1"), rate)
    rate = wanted["batch"] * (wanted["steps"] - WARM_UP) / result["seconds"]
    total = wanted["batch"] * wanted["steps"]  # of the images that were encoded
    filling = result.get("encode_seconds", 0.0)
    over = {epochs: epochs * total / (filling + epochs * total / rate) for epochs in (1, 3)}
    return {"samples_per_second": rate, "effective_per_second": over[3], "epoch_1": over[1]}


def machine() -> str:
    """Returns what this runs on, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16"
    return f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, torch {torch.__version__}, float32"


if __name__ == "__main__":
    main()
