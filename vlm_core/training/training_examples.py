"""Reads the token ids of a run, and refuses them if too many examples are left out."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from vlm_core.config import Config
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.held_back import is_held_back
from vlm_core.data.mixture import dataset_numbers
from vlm_core.data.rejects import describe_rejects
from vlm_core.data.splits import SPLITS, VALIDATION
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.data.tokenization import require_template

logger = logging.getLogger(__name__)

NO_LIMIT = np.iinfo(np.int64).max


def read_examples(
    config: Config, conversations: Path, chat: ChatModel, *, own_collate: bool
) -> dict[str, TokenDataset]:
    """Returns the token ids of both splits; raises ValueError if too many examples are too long or unusable.

    Rows that choose no checkpoint are left out of the validation split: those of datasets that only validate, and of
    the cases in `validation_dataset.held_back`. A user's collate function gets all examples, because their length here
    means nothing for it.
    """
    require_template(chat)
    if own_collate:
        _require_no_rows_left_out(config)
    directory, found = build_tokens(conversations, chat), {}
    for split in SPLITS:
        of_row = dataset_numbers(conversations, split, list(config.datasets))
        used = _choosing(config, conversations, of_row) if split == VALIDATION else np.ones(len(of_row), dtype=bool)
        tokens = _read_split(config, directory, split, of_row, used, own_collate=own_collate)
        if tokens.unasked and not own_collate and "every_answer" in {d.train_on for d in config.datasets.values()}:
            every = " for every dataset" if config.more_datasets else ""
            raise ValueError(
                f"{tokens.unasked} examples of {split} have answers before the last one, and the chat template shows "
                "such answers differently than its generation prompt asks for them; set "
                f"dataset.train_on=last_answer{every}"
            )
        require_few_left_out(config, split, tokens, ConversationDataset(conversations, split).conversations, of_row)
        found[split] = tokens
    return found


def _require_no_rows_left_out(config: Config) -> None:
    """Raises ValueError if validation rows would have to be left out of the batches of a custom collate function."""
    external = [name for name in config.datasets if name not in config.trained]
    why = "the batches of a custom collate function have all cases"
    if share := config.validation_dataset.held_back:
        raise ValueError(f"validation_dataset.held_back={share}: {why}; set validation_dataset.held_back=0")
    for name in external:
        raise ValueError(f"{config.key_of(name)}.split=null: {why}; remove this dataset, and evaluate on it afterwards")


def _choosing(config: Config, conversations: Path, of_row: np.ndarray) -> np.ndarray:
    """Returns for each validation row whether the validation losses, which choose checkpoints, have it.

    Raises ValueError if `validation_dataset.held_back` leaves no case in one of the two parts.
    """
    trained = np.array([dataset.split is not None for dataset in config.datasets.values()])[of_row]
    share = config.validation_dataset.held_back
    if not share:
        return trained
    cases = np.array(ConversationDataset(conversations, VALIDATION).conversations["case_id"])
    held_back = trained & np.array([is_held_back(case, share) for case in cases])
    if not held_back.any() or (held_back == trained).all():
        raise ValueError(
            f"validation_dataset.held_back={share} holds back {len(set(cases[held_back]))} of the "
            f"{len(set(cases[trained]))} cases of the validation split, and both parts need some: use a share nearer "
            "to 0.5, or validate on more cases"
        )
    return trained & ~held_back


def _read_split(
    config: Config, directory: Path, split: str, of_row: np.ndarray, used: np.ndarray, *, own_collate: bool
) -> TokenDataset:
    """Returns the `used` rows of a split, with the limits of each row's dataset."""
    datasets = config.datasets.values()
    longest = np.array([NO_LIMIT if own_collate or d.max_length is None else d.max_length for d in datasets])
    last_only = np.array([dataset.train_on == "last_answer" for dataset in datasets])
    return TokenDataset(directory, split, longest[of_row], last_answer_only=last_only[of_row], used=used)


def require_few_left_out(config: Config, split: str, tokens: TokenDataset, rows: Any, of_row: np.ndarray) -> None:
    """Warns about examples that are too long or unusable for the model; raises ValueError if too many are left out.

    The examples of each dataset are counted apart; `of_row` has the index of each row's dataset.
    """
    for number, (name, dataset) in enumerate(config.datasets.items()):
        key, total, reasons = config.key_of(name), int((of_row == number).sum()), []
        if refused := int((of_row[tokens.refused] == number).sum()):
            reasons.append(f"{refused} cannot be shown to this model ({describe_rejects(tokens.rejects)})")
        if too_long := [int(row) for row in tokens.too_long if of_row[row] == number]:
            first = ", ".join(rows[row]["example_id"] for row in too_long[:3])
            reasons.append(f"{len(too_long)} are longer than {key}.max_length={dataset.max_length} ({first})")
        if not reasons:
            continue
        left_out = refused + len(too_long)
        of = f"{split} of {name}" if config.more_datasets else split
        problem = f"of {total} examples of {of}, {' and '.join(reasons)}"
        if left_out > dataset.max_reject_share * total or left_out == total:
            remedy = "raise either" if too_long else "correct these rows (crop or pad their images), or raise it"
            raise ValueError(f"{problem}, and {key}.max_reject_share={dataset.max_reject_share} allows fewer: {remedy}")
        logger.warning("%s; they are left out", problem)
