"""The guide's function for MedPix-VQA, by its name: a split as conversations, to look at or to train on elsewhere."""

from vlm_core.config import DatasetConfig
from vlm_core.data.conversation_cache import ConversationDataset, build_conversations
from vlm_core.data.source import fetch_split
from vlm_core.data.splits import TRAIN, Splits


def make_medpix_vqa_dataset(path_or_dataset: str = "mmoukouba/MedPix-VQA", split: str = "train") -> ConversationDataset:
    """Returns a split as a sequence of `{"conversation": [...], ...}`, images decoded on access.

    Raises ValueError as `fetch_split` does.

    >>> make_medpix_vqa_dataset("builtin:phantom", "train[:10]")[0]["conversation"][1]["role"]
    'assistant'
    """
    source = fetch_split(DatasetConfig(path_or_dataset=path_or_dataset, split=split))
    return ConversationDataset(build_conversations(Splits({TRAIN: source}))[0], TRAIN)
