"""The table of model types in docs/models.md: what a tiny checkpoint of each type does, found by trying.

`python -m tests.model_table` writes the table into the page; tests/test_model_table.py compares.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from tests.conftest import noise, small_config, tiny_directory
from tests.more_models import MORE, more_directory
from tests.other_models import WRITERS, directory_of
from vlm_core.config import PeftConfig
from vlm_core.data.batches import shown_images
from vlm_core.data.collate import collate
from vlm_core.data.conversation import Conversation, answer_turn, images_of, question_turn
from vlm_core.data.packing import pack
from vlm_core.data.token_cache import TokenizedExample
from vlm_core.export import merge
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.decode import stop_tokens, to_answer
from vlm_core.generation.sampling import GenerationSettings
from vlm_core.models.base_model import TINY_WRITERS
from vlm_core.models.chat import load_chat
from vlm_core.models.frozen_tower import DetachedTower, feature_inputs, vision_features
from vlm_core.models.load import load_model
from vlm_core.models.lora import apply_lora
from vlm_core.models.model_reference import find_model
from vlm_core.models.weights import save_weights
from vlm_core.training.loss import TokenLoss, supervised_tokens

BUILTIN = [name.removeprefix("tiny-") for name in TINY_WRITERS]
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
EXAMPLES = {
    "gemma3": "Gemma 3, MedGemma",
    "gemma3n": "Gemma 3n",
    "gemma4": "Gemma 4 E2B, E4B",
    "gemma4_26b": "Gemma 4 26B-A4B, 31B",
    "gemma4_unified": "Gemma 4 12B",
    "glm4v": "GLM-4.1V",
    "idefics3": "Idefics3",
    "internvl": "InternVL3",
    "llava": "LLaVA 1.5",
    "llava_onevision": "LLaVA-OneVision",
    "mistral3": "Mistral Small 3.1",
    "paligemma": "PaliGemma",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL 4B, 8B, 32B",
    "qwen3_vl_moe": "Qwen3-VL 30B-A3B, 235B-A22B",
    "qwen3_5": "Qwen3.5",
    "smolvlm": "SmolVLM",
}
IMAGES = [noise(size) for size in ((90, 56), (56, 56))]
ASKED = [("Where is it?", 0, "On the left side."), ("Which organ?", 0, "The lung."), ("Is it large?", 1, "No.")]
CONVERSATIONS: list[Conversation] = [
    [question_turn(question, [IMAGES[image]]), answer_turn(answer)] for question, image, answer in ASKED
]
STEPS, RATE, NEW_TOKENS = 2, 1e-3, 6


@dataclass(frozen=True)
class Trial:
    """A tiny checkpoint of a model type, and how to try what it does."""

    directory: Path

    @cached_property
    def chat(self) -> Any:
        return load_chat(self.directory)

    def model(self) -> Any:
        return load_model(self.directory, small_config().model)

    def examples(self) -> list[TokenizedExample]:
        found = []
        for conversation, (_, image, _) in zip(CONVERSATIONS, ASKED, strict=True):
            grids = self.chat.image_grids([IMAGES[image].size])
            tokenized = self.chat.tokenize(conversation, grids)
            found.append(TokenizedExample(tokenized.input_ids, tokenized.supervised, [image], grids))
        return found

    def images(self, rows: Sequence[Sequence[int]]) -> Any:
        return self.chat.image_inputs([[IMAGES[index] for index in row] for row in rows])

    def batch(self) -> Any:
        return collate([{"conversation": conversation} for conversation in CONVERSATIONS], self.chat)

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        return TokenLoss(model, self.chat)(batch)

    def packed(self) -> Any:
        first, second, third = self.examples()
        rows = [[[first, second], [third]]]
        return pack(rows, self.chat) | self.images([shown_images(rows)])


def plain_batch(trial: Trial) -> Any:
    """The usual code: the processor's batch of rendered conversations, with the tokens after the prompt as labels."""
    processor, family = trial.chat.processor, trial.chat.family
    end = family.end_of_turn.strip() or processor.tokenizer.eos_token
    prompts, texts = [], []
    for conversation, (_, _, answer) in zip(CONVERSATIONS, ASKED, strict=True):
        prompts.append(processor.apply_chat_template(conversation[:1], tokenize=False, add_generation_prompt=True))
        shown = processor.apply_chat_template(conversation, tokenize=False).rpartition(answer)[0]
        # Some templates show an answer otherwise than after their generation prompt.
        texts.append((shown if shown.startswith(prompts[-1]) else prompts[-1]) + answer + end)
    bos = processor.tokenizer.bos_token
    options = {
        "images": [images_of(conversation) for conversation in CONVERSATIONS],
        "add_special_tokens": not (bos and prompts[0].startswith(bos)),
        "padding": True,
        "padding_side": "right",
        "return_tensors": "pt",
    }
    batch = dict(processor(text=texts, **options))
    starts = processor(text=prompts, **options)["attention_mask"].sum(1)
    index = torch.arange(batch["input_ids"].shape[1])
    answers = (index >= starts[:, None]) & (batch["attention_mask"] == 1)
    return batch | {"labels": batch["input_ids"].masked_fill(~answers, -100)}


def curve(model: Any, loss: Callable[[], torch.Tensor]) -> list[float]:
    """Returns the losses of a few steps of gradient descent, and at the end."""
    losses = []
    for _ in range(STEPS + 1):
        model.zero_grad()
        value = loss()
        value.backward()
        losses.append(value.item())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
    return losses


def trains(trial: Trial) -> bool:
    """Whether the losses are those of a plain transformers loop."""
    ours, plain, made, expected = trial.model(), trial.model(), trial.batch(), plain_batch(trial)
    count = supervised_tokens(made)
    mine = curve(ours, lambda: trial.loss(ours, made) / count)
    other = curve(plain, lambda: plain(**expected, num_items_in_batch=torch.tensor(count)).loss)
    return close(mine, other) and other[-1] < other[0]


def adapts(trial: Trial) -> bool:
    """Whether an adapter loads in plain peft, and its merge in plain transformers, with the same loss."""
    batch, model = trial.batch(), trial.model()
    untrained = trial.loss(model, batch).item()
    model = apply_lora(model, PeftConfig(dim=4, dropout=0.0), trial.chat.family, {"vision_tower", "embeddings"})
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        adapter, merged = Path(place, "adapter"), Path(place, "merged")
        save_weights(model.eval(), adapter)
        merge(find_model(adapter), merged)
        plain = PeftModel.from_pretrained(trial.model(), str(adapter)).eval()
        whole = AutoModelForImageTextToText.from_pretrained(merged).eval()
        losses = [trial.loss(kind, batch).item() for kind in (model, plain, whole)]
    return close(losses[:1] * 2, losses[1:]) and not close(losses[:1], [untrained])


@torch.no_grad()
def answers(trial: Trial) -> bool:
    """Whether the answers are those of `generate` for one question at a time."""
    model, chat = trial.model().eval(), trial.chat
    asked = [conversation[:1] for conversation in CONVERSATIONS]
    found = Answerer(model, chat).answer(asked, GenerationSettings(NEW_TOKENS))
    expected = []
    for conversation in asked:
        processor = chat.processor
        inputs = processor.apply_chat_template(
            conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        made = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=sorted(stop_tokens(chat)), pad_token_id=0
        )
        expected.append(to_answer(made[0, inputs["input_ids"].shape[1] :].tolist(), chat))
    return found == expected


def packs(trial: Trial) -> bool:
    """Whether questions share an image's prefix, with the same loss."""
    if not trial.chat.packs:
        return False
    model = trial.model()
    return close([trial.loss(model, trial.packed()).item()], [trial.loss(model, trial.batch()).item()])


@torch.no_grad()
def caches(trial: Trial) -> bool:
    """Whether cached features of a frozen tower replace the images, with the same loss."""
    if not trial.chat.caches_features:
        return False
    model, family, batch = trial.model(), trial.chat.family, trial.packed()
    expected = trial.loss(model, batch).item()
    features = vision_features(model, {key: batch[key] for key in family.image_inputs}, family)
    grids = trial.chat.image_grids([image.size for image in IMAGES])
    rest = {key: value for key, value in batch.items() if key not in family.image_inputs}
    DetachedTower(model, family)
    return close([trial.loss(model, rest | feature_inputs([*features], grids, trial.chat)).item()], [expected])


COLUMNS: dict[str, Callable[[Trial], bool]] = {
    "trains": trains,
    "LoRA, merged": adapts,
    "answers": answers,
    "packs": packs,
    "caches": caches,
}


def close(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a / b - 1) < 2e-5 for a, b in zip(one, other, strict=True))


def directory_by_name() -> dict[str, Callable[[], Path]]:
    """Returns where the tiny checkpoint of each row lies, in the order of the table."""
    found: dict[str, Callable[[], Path]] = {}
    for names, find in ((BUILTIN, tiny_directory), (WRITERS, directory_of), (MORE, more_directory)):
        found |= {name: lambda name=name, find=find: find(name) for name in names}
    return {name: found[name] for name in EXAMPLES}


def row(name: str, directory: Path) -> list[str]:
    """Returns the cells of a model type's row."""
    trial, cells = Trial(directory), list[str]()
    try:
        model_type = trial.chat.family.model_type
    except ValueError as error:
        reason = "no chat template" if "has no chat template" in str(error) else str(error)
        return [f"`{name}`", EXAMPLES[name], f"refused: {reason}", *[""] * (len(COLUMNS) - 1)]
    for works in COLUMNS.values():
        torch.manual_seed(0)
        cells.append("yes" if works(trial) else "no")
    return [f"`{model_type}`", EXAMPLES[name], *cells]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns the table in Markdown."""
    lines = [["model type", "for example", *COLUMNS], ["---"] * (len(COLUMNS) + 2), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def found_rows() -> list[list[str]]:
    """Returns the rows of all model types."""
    return [row(name, find()) for name, find in directory_by_name().items()]


def write() -> None:
    """Writes the table into the page, in place of the one that it has."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("| model type")
    after = rest[rest.index("\n\n") :]
    PAGE.write_text(before + table(found_rows()) + after, encoding="utf-8")


if __name__ == "__main__":
    write()
