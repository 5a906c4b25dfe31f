"""Answers the validation split and scores the answers.

    python -m vlm_core.evaluate --config demo --checkpoint-path DIR

Writes `predictions.parquet` and `result.json`. The same questions are also asked about images shuffled between
cases: what the scores lose is what the model owes to looking.
"""

import logging
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.cli import ConfigParser
from vlm_core.config import Config, EvaluationConfig
from vlm_core.data.batches import ImageInputs, PixelInputs
from vlm_core.data.closed import closed_kind
from vlm_core.data.conversations import ConversationDataset, build_conversations, fetch_splits, image_indices
from vlm_core.data.images import decode_image
from vlm_core.data.tokens import TokenDataset, build_tokens
from vlm_core.files import write_json
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.controls import shuffle_between_cases
from vlm_core.generation.decode import Answer, without_answer
from vlm_core.generation.metrics import score
from vlm_core.generation.prompts import Prompts, prompt_of
from vlm_core.generation.sheet import IMAGES, draw_examples
from vlm_core.home import require_writable
from vlm_core.models.fetch import fetch_model
from vlm_core.models.load import is_adapter, weights_directory
from vlm_core.models.vision import DetachedTower
from vlm_core.progress import ProgressBar
from vlm_core.run_directory import EVALUATION, EXAMPLES, PREDICTIONS, RESULT
from vlm_core.training.distributed import Ranks, barrier, command, main_rank_first
from vlm_core.training.encoding import cached_features

logger = logging.getLogger(__name__)


def evaluate(config: Config, checkpoint: Path, output: Path, ranks: Ranks, conversations: Path | None = None) -> None:
    """Writes `predictions.parquet` and `result.json` into `output`; every rank answers its share of the questions."""
    started = time.monotonic()
    require_writable(output)
    with main_rank_first(ranks):
        conversations = conversations or build_conversations(fetch_splits(config))[0]
        if is_adapter(weights_directory(checkpoint)):
            fetch_model(config.model)
    dataset = ConversationDataset(conversations, "validation")
    chosen = _chosen(len(dataset), config.evaluation.limit)
    examples = [dataset.conversations[i] for i in chosen]
    shuffled = shuffle_between_cases(examples, config.rng.seed)
    if shuffled is None:
        logger.warning("the validation split has images of one case only: no control with shuffled images")
    answerer = Answerer.load(checkpoint, config.model, ranks.local_rank)
    with main_rank_first(ranks):
        tokens = TokenDataset(build_tokens(conversations, answerer.processor, answerer.family), "validation")
    images = _image_inputs(config, answerer, conversations)
    prompts = Prompts([prompt_of(tokens[i]) for i in chosen], answerer.image_token)
    mine = prompts.share(config.evaluation.batch_size, ranks.rank, ranks.world_size)
    right = prompts.select(mine)
    with ProgressBar(len(mine) * (2 if shuffled else 1), "evaluate", "answer", enabled=ranks.is_main) as progress:
        answers = _answer(answerer, right, images, config.evaluation, progress)
        controls: list[Answer | None] = [None] * len(mine)
        if shuffled:
            controls = [*_answer(answerer, right.showing(shuffled), images, config.evaluation, progress)]
    closed = dataset.manifest["closed_questions"]
    rows = zip([examples[i] for i in mine], answers, controls, strict=True)
    records = [_record(*row, closed, dataset) for row in rows]
    predictions = _gather(records, output, ranks)
    if ranks.is_main:
        result = {
            **score(predictions),
            "limit": config.evaluation.limit,
            "dataset_fingerprint": dataset.manifest["fingerprint"],
            "checkpoint": str(checkpoint),
            "seconds": round(time.monotonic() - started, 2),
        }
        _draw(examples, predictions, dataset, output)
        write_json(output / RESULT, result)
        logger.info("closed accuracy %s, with shuffled images %s, token F1 %s over %d questions -> %s",
                    result["closed_accuracy"], result["closed_accuracy_shuffled"], result["token_f1"],
                    result["examples"], output)  # fmt: skip
    barrier()


def _chosen(rows: int, limit: int | None) -> list[int]:
    """Returns all rows of the split, or `limit` of them spread evenly over it: its head is a few images only."""
    count = min(limit or rows, rows)
    return [i * rows // count for i in range(count)]


def _image_inputs(config: Config, answerer: Answerer, conversations: Path) -> ImageInputs:
    """Returns the features of the vision cache where it has all images for this tower, else the images' pixels."""
    if config.vision_cache.enabled:
        features = cached_features(answerer.model, answerer.processor, answerer.family, conversations)
        if features:
            logger.info("vision cache: every image is there, the tower is not needed")
            DetachedTower(answerer.model, answerer.family)
            return features
    return PixelInputs.of(conversations, answerer.processor)


def _answer(
    answerer: Answerer, prompts: Prompts, images: ImageInputs, settings: EvaluationConfig, progress: ProgressBar
) -> list[Answer]:
    """Returns the answers in the order of `prompts`."""
    answers: dict[int, Answer] = {}
    for groups in prompts.batches(settings.batch_size):
        answers |= answerer.answer_groups(prompts, groups, images, settings.max_new_tokens)
        progress.update(sum(len(group.members) for group in groups))
    return [answers[i] for i in range(len(prompts))]


def _question(example: dict[str, Any]) -> str:
    texts = [part["text"] for part in without_answer(example["conversation"])[-1]["content"] if part["type"] == "text"]
    return "\n".join(texts)


def _record(
    example: dict[str, Any],
    answer: Answer,
    shuffled: Answer | None,
    closed_questions: dict[str, list[str]],
    dataset: ConversationDataset,
) -> dict[str, Any]:
    question, reference = _question(example), example["conversation"][-1]["content"][0]["text"]
    return {
        "example_id": example["example_id"],
        "case_id": example["case_id"],
        "mode": example["mode"],
        "image_sha256": dataset.image_hashes(example),
        "question": question,
        "reference": reference,
        "prediction": answer.text,
        "prediction_shuffled": shuffled.text if shuffled else None,
        "generated_tokens": answer.tokens,
        "truncated": answer.truncated,
        "closed_kind": closed_kind(question, reference, closed_questions),
    }


def _gather(records: list[dict[str, Any]], output: Path, ranks: Ranks) -> list[dict[str, Any]]:
    """Writes this rank's records and returns, on the main rank, those of all ranks, published as one file."""
    part = output / f".{PREDICTIONS}.{ranks.rank}"
    output.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records), part)
    barrier()
    if not ranks.is_main:
        return []
    parts = [output / f".{PREDICTIONS}.{rank}" for rank in range(ranks.world_size)]
    table = pa.concat_tables([pq.read_table(path) for path in parts], promote_options="permissive")
    table = table.sort_by("example_id")
    pq.write_table(table, parts[0])
    parts[0].replace(output / PREDICTIONS)
    for path in parts[1:]:
        path.unlink()
    return table.to_pylist()


def _draw(
    examples: list[dict[str, Any]], predictions: list[dict[str, Any]], dataset: ConversationDataset, output: Path
) -> None:
    by_id = {record["example_id"]: record for record in predictions}
    by_image: dict[int, list[dict[str, Any]]] = {}
    for example in examples:
        for index in image_indices(example)[:1]:
            by_image.setdefault(index, []).append(by_id[example["example_id"]])
    shown = list(by_image)[:IMAGES]
    images = [decode_image(dataset.images[index]["encoded"]) for index in shown]
    draw_examples(images, [by_image[index] for index in shown], output / EXAMPLES)


def main() -> None:
    """Runs the command."""
    parser = ConfigParser(prog="python -m vlm_core.evaluate", description=__doc__)
    parser.add_argument("--checkpoint-path", type=Path, required=True, help="epoch_E_step_S, or a model or adapter")
    parser.add_argument("--output-dir", type=Path, help="default: evaluation/ beside the checkpoint")
    parser.add_argument("--conversations", type=Path, help="cache directory of the conversations, when it is known")
    options, config = parser.parse_config()
    output = options.output_dir or options.checkpoint_path.resolve().parent / EVALUATION
    with command() as ranks:
        evaluate(config, options.checkpoint_path, output.absolute(), ranks, options.conversations)


if __name__ == "__main__":
    main()
