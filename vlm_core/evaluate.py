"""Answers the validation split, scores the answers, and writes a report.

    python -m vlm_core.evaluate --checkpoint-path epoch_0_step_200
    python -m vlm_core.evaluate --config gemma3_4b_lora --checkpoint-path models:/medpix-gemma3@champion
    python -m vlm_core.evaluate --config gemma3_4b_lora          the base model itself

As controls, the model also answers the same questions with another case's image, with a black image and without one.
Other models can answer them too. The differences measure the reliance on the image and the effect of training. The
most common training answer is a baseline, and a verdict says whether the model has learnt. Writes `report.html`,
`predictions.parquet`, `examples.png` and `result.json`. Answers are stored, so an interrupted evaluation resumes.
"""

from vlm_core.arguments import evaluate_parser, read_config

if __name__ == "__main__":  # before the imports below, which take seconds
    ARGUMENTS = read_config(evaluate_parser(__doc__), "torch and transformers")
else:
    ARGUMENTS = None

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.config import BASE, Config
from vlm_core.config.evaluation import ENGINE
from vlm_core.data.arrow_cache import read_batches
from vlm_core.data.commonest import CommonestAnswers
from vlm_core.data.conversation import last_question
from vlm_core.data.conversation_dataset import ConversationDataset, image_indices
from vlm_core.data.images import decode_image
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import TRAIN
from vlm_core.evaluation.answer_picture import IMAGES, draw_examples
from vlm_core.evaluation.answering import Questions, answer_questions, shown_rows
from vlm_core.evaluation.conditions import shuffle_between_cases
from vlm_core.evaluation.engines import Engine, ask_engines
from vlm_core.evaluation.metrics import PRIMARY, ScoredAnswer, Use, metrics_for
from vlm_core.evaluation.protocols import PROTOCOLS
from vlm_core.evaluation.report import write_report
from vlm_core.evaluation.result import Answers, result_of
from vlm_core.evaluation.result_names import COMMONEST, DATASET, MODEL, RIGHT, SHUFFLED, p_value, with_interval
from vlm_core.evaluation.scores import Question, columns_by_variant, predictions, question_of
from vlm_core.evaluation.text_scores import package_versions
from vlm_core.files import published_file, read_json_lines, write_json
from vlm_core.home import require_writable
from vlm_core.models.model_reference import ModelFiles, find_model, is_uri
from vlm_core.run_directory import CONFIG, EVALUATION, EXAMPLES, METRICS, PREDICTIONS, REPORT, RESULT, VALIDATION
from vlm_core.training.distributed import Ranks, barrier, command, decided_by_main, main_rank_first

logger = logging.getLogger(__name__)


def evaluate(
    config: Config, checkpoint: str | None, output: Path, ranks: Ranks, conversations: Path | None = None
) -> None:
    """Evaluates `checkpoint` (None: the base model) and writes the results to `output`; every rank answers its share.

    Raises ValueError for an unusable model, dataset or directory, before any model is loaded.
    """
    started = time.monotonic()
    require_writable(output)
    labels = config.evaluation.comparisons
    with main_rank_first(ranks):
        conversations = conversations or prepare_conversations(config)[0]
        # A registered model names its base model, which may differ from the recipe's.
        files = find_model(checkpoint, None if checkpoint and is_uri(checkpoint) else config.model)
        engines = {label: Engine.of(model) for label, model in labels.items() if model.startswith(ENGINE)}
        others = {label: _other(model, config) for label, model in labels.items() if label not in engines}
    for model in (files, *others.values()):  # fills the cached property: the main rank reads the weights for all
        vars(model)["fingerprint"] = decided_by_main(ranks, lambda model=model: model.fingerprint)
    identical = [label for label, other in others.items() if other.fingerprint == files.fingerprint]
    for label in identical:
        logger.info("evaluation.compare_with: skipping %s, which is the evaluated model itself", label)
        del others[label]
    with main_rank_first(ranks):
        shown = shown_rows(files, conversations)
    questions, conditions = _questions(config, conversations, shown)
    requested: list[str] = [name for name in config.evaluation.protocols if PROTOCOLS[name].request]
    # First, because an endpoint may refuse before hours of other answers.
    by_engine = ask_engines(engines, questions, [*conditions, *requested], config, ranks)
    answers = answer_questions(files, questions, [*conditions, *requested], config, ranks, MODEL)
    under: dict[str, dict[str, list[ScoredAnswer]]] = {name: {MODEL: answers.pop(name)} for name in requested}
    variants = {MODEL if condition == RIGHT else condition: found for condition, found in answers.items()}
    variants[COMMONEST] = _commonest_answers(questions) if ranks.is_main else []
    for label, other in others.items():
        answers = answer_questions(other, questions, [RIGHT, *requested], config, ranks, label)
        variants[label] = answers.pop(RIGHT)
        for name, found in answers.items():
            under[name][label] = found
    for label, answers in by_engine.items():
        variants[label] = answers[RIGHT]
        for name in requested:
            under[name][label] = answers.pop(name)
    if ranks.is_main:
        about = {
            "checkpoint": _name(checkpoint) or config.model.pretrained_model_name_or_path,
            "model_fingerprint": files.fingerprint,
            "compared": {label: labels[label] for label in (*others, *engines)},
            "identical": {label: labels[label] for label in identical},
            "limit": config.evaluation.limit,
            "complete": config.evaluation.limit is None and "[" not in "".join(config.evaluated_splits),
            "generation": config.evaluation.model_dump(include={"max_new_tokens", "temperature", "top_p"}),
            "seed": config.rng.seed,
            "metrics": package_versions(),
        }
        _publish(config, questions, Answers(variants, under, by_engine), about, output, files, started)
    barrier()


def _name(checkpoint: str | None) -> str | None:
    """Returns the name of a checkpoint for the result. Resolves links, because LATEST changes."""
    return str(Path(checkpoint).resolve()) if checkpoint and Path(checkpoint).is_dir() else checkpoint


def _other(reference: str, config: Config) -> ModelFiles:
    return find_model(None, config.model) if reference == BASE else find_model(reference)


def _questions(config: Config, conversations: Path, shown: list[int]) -> tuple[Questions, list[str]]:
    """Returns the questions (among the rows `shown`) and the conditions to ask them under."""
    dataset = ConversationDataset(conversations, "validation")
    chosen = [shown[i] for i in _chosen(len(shown), config.evaluation.limit)]
    shuffled = shuffle_between_cases([dataset.conversations[i] for i in chosen], config.rng.seed)
    controls = list(config.evaluation.controls)
    if shuffled is None and SHUFFLED in controls:
        logger.warning("skipping the control with shuffled images: the validation split has images of one case only")
        controls.remove(SHUFFLED)
    return Questions(conversations, chosen, shuffled), [RIGHT, *dict.fromkeys(controls)]


def _chosen(rows: int, limit: int | None) -> list[int]:
    """Returns all row indices, or `limit` of them spread evenly: the first rows would cover only a few images."""
    count = min(limit or rows, rows)
    return [i * rows // count for i in range(count)]


def _commonest_answers(questions: Questions) -> list[ScoredAnswer]:
    """Returns for each question the most common answer of the training split to similar questions."""
    commonest = CommonestAnswers()
    for batch in read_batches(questions.conversations / f"{TRAIN}.arrow"):
        for row in batch.to_pylist():
            commonest.add(*last_question(row["conversation"]))
    asked = [last_question(row["conversation"]) for row in questions.rows]
    return [ScoredAnswer(commonest.answer(*question), generated=False) for question in asked]


def _publish(
    config: Config,
    asked: Questions,
    answers: Answers,
    about: dict[str, Any],
    output: Path,
    files: ModelFiles,
    started: float,
) -> None:
    """Writes the reports and the predictions of an evaluation, and `result.json` last."""
    dataset = ConversationDataset(asked.conversations, "validation")
    questions = _scored_questions(config, asked, dataset)
    columns = columns_by_variant(questions, answers.variants)
    result = result_of(config, questions, columns, answers, about, dataset.manifest)
    records = predictions(questions, answers.variants, columns)
    output.mkdir(parents=True, exist_ok=True)
    with published_file(output / PREDICTIONS) as aside:
        pq.write_table(pa.Table.from_pylist(records), aside)
    _draw(records, dataset, output / EXAMPLES if config.report.images else None)
    result["seconds"] = round(time.monotonic() - started, 2)
    write_report(config, result, records, dataset, _history(files.weights), output / REPORT)
    write_json(output / RESULT, result)
    _log_summary(result, output)


def _scored_questions(config: Config, asked: Questions, dataset: ConversationDataset) -> list[Question]:
    """Returns what scores need to know of each question; for example, whether training saw its case and images."""
    trained = ConversationDataset(asked.conversations, TRAIN)
    cases, hashes = set(trained.conversations["case_id"]), {asked.hashes[index] for index in trained.shown_images()}
    closed, held_back = dataset.manifest["closed_questions"], _held_back_shares(config)
    return [
        question_of(
            row, [asked.hashes[i] for i in image_indices(row)], closed, cases, hashes, held_back[row.get(DATASET)]
        )
        for row in asked.rows
    ]


def _held_back_shares(config: Config) -> dict[str | None, float]:
    """Returns the share of the cases of each dataset that is held back; None stands for a single dataset.

    If some are held back, all cases of a dataset that only validates are: no checkpoint was chosen by them.
    """
    share = config.validation_dataset.held_back
    external = {name: 1.0 if share else 0.0 for name in config.datasets if name not in config.trained}
    return {None: share} | dict.fromkeys(config.trained, share) | external


def _history(weights: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the training and validation losses of the run that wrote `weights`; empty lists for any other model."""
    if not (weights.parent / CONFIG).is_file():
        return {"training": [], "validation": []}
    run = weights.parents[1]
    return {"training": read_json_lines(run / METRICS)[0], "validation": read_json_lines(run / VALIDATION)[0]}


def _draw(records: Sequence[dict[str, Any]], dataset: ConversationDataset, path: Path | None) -> None:
    """Draws some images with their answers to `path`; does nothing if `path` is None (`report.images` is false)."""
    if path is None:
        return
    by_image: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        for digest in record["image_sha256"][:1]:
            by_image.setdefault(digest, []).append(record)
    shown = list(by_image)[:IMAGES]
    draw_examples([decode_image(dataset.encoded_image(digest)) for digest in shown], [by_image[d] for d in shown], path)


def _log_summary(result: dict[str, Any], output: Path) -> None:
    model, reliance = result["scores"][MODEL], result["visual_reliance"]
    limit = f" (limited to {result['limit']}: no basis for a promotion)" if result["limit"] else ""
    headlines = metrics_for(Use.HEADLINE)
    found = ", ".join(f"{metric.words} {with_interval(model[metric.name])}" for metric in headlines)
    logger.info(
        "%d questions on %d cases%s: %s -> %s", result["examples"], result["cases"], limit, found, output / REPORT
    )
    logger.log(logging.INFO if result["verdict"]["learnt"] else logging.WARNING, "the verdict on %s: %s",
               result["checkpoint"], result["verdict"]["text"])  # fmt: skip
    if reliance:
        logger.info(
            "the right image adds %s to %s, compared with another case's image",
            with_interval(reliance[PRIMARY]),
            headlines[0].words,
        )
    for name, change in result["differences"].items():
        found = ", ".join(filter(None, [with_interval(change[PRIMARY], sign="+"), p_value(change[PRIMARY])]))
        caveat = "" if result["verdict"]["learnt"] else " (but see the verdict)"
        logger.info("against %s: %s %s%s", name, headlines[0].words, found, caveat)


def main(options: argparse.Namespace, config: Config) -> None:
    """Runs the command."""
    checkpoint = options.checkpoint_path
    is_directory = checkpoint is not None and Path(checkpoint).is_dir()
    beside = Path(checkpoint).resolve().parent if is_directory else Path.cwd()
    output = options.output_dir or beside / EVALUATION
    with command() as ranks:
        evaluate(config, checkpoint, output.absolute(), ranks, options.conversations)


if ARGUMENTS:
    main(*ARGUMENTS)
