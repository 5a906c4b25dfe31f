"""A run on several datasets: its steps have the stated shares, it resumes exactly, and it is evaluated apart."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import small_config
from vlm_core.config import Config
from vlm_core.data.batches import build_batches
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.loader import plan_epoch
from vlm_core.data.prepare import prepare_conversations
from vlm_core.evaluate import _held_back_shares, evaluate
from vlm_core.files import read_json, read_json_lines
from vlm_core.finetune import finetune
from vlm_core.run_directory import METRICS, REPORT, RESULT
from vlm_core.training.distributed import Ranks
from vlm_core.training.setup import gather

PHANTOM = "builtin:phantom?images=12"
DATASETS = [
    {"path_or_dataset": PHANTOM, "name": "one", "weight": 3},
    {"path_or_dataset": f"{PHANTOM}&seed=1", "name": "two", "weight": 1, "train_on": "last_answer", "max_length": 300},
    {"path_or_dataset": f"{PHANTOM}&seed=2", "name": "far", "split": None, "validation_split": "validation"},
]
# Five steps an epoch. Step 6 is in the second one, in the middle of a pass of each dataset.
LENGTH = {"global_batch_size": 40, "num_epochs": 3, "max_steps": 7, "ckpt_every_steps": 6, "val_every_steps": None}


def config_of(directory: Path, **others: Any) -> Config:
    return small_config(
        **{
            "dataset": DATASETS,
            "step_scheduler": LENGTH,
            "checkpoint.checkpoint_dir": str(directory),
            "evaluation.limit": 12,
            "evaluation.controls": [],
            "evaluation.compare_with": [],
        }
        | others
    )


@pytest.fixture(scope="module")
def conversations() -> Path:
    return prepare_conversations(config_of(Path("unused")))[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, conversations: Path) -> Path:
    directory = tmp_path_factory.mktemp("mixture") / "run"
    finetune(config_of(directory), Ranks(), conversations)
    return directory


def test_the_inputs_have_the_rules_of_each_dataset(tmp_path: Path, conversations: Path) -> None:
    inputs = gather(config_of(tmp_path / "run"), tmp_path / "run", Ranks(), conversations)
    assert inputs.mixture is not None
    assert (inputs.mixture.names, inputs.mixture.sizes, inputs.mixture.drawn) == (("one", "two"), [100, 100], [150, 50])
    rows = ConversationDataset(conversations, "validation").conversations
    validated = Counter(rows[inputs.validation.row_of(i)]["dataset"] for i in range(len(inputs.validation)))
    assert validated == {"one": 20, "two": 20}  # no checkpoint is chosen by external rows
    assert Counter(row["dataset"] for row in rows) == {"one": 20, "two": 20, "far": 20}


def test_steps_have_the_stated_shares_for_any_number_of_ranks(tmp_path: Path, conversations: Path) -> None:
    inputs = gather(config_of(tmp_path / "run"), tmp_path / "run", Ranks(), conversations)
    batches = build_batches(inputs.config, inputs.train, lambda rows: {}, inputs.chat)
    steps = plan_epoch(len(inputs.train), 40, inputs.config.rng.seed, 0, batches.groups, inputs.mixture)
    for world_size in (1, 2, 3):
        of_steps = []
        for step in steps:
            shares = [batches.micro_batches(step, rank, world_size) for rank in range(world_size)]
            read = [
                i
                for share in shares
                for micro in share
                if micro.counted
                for row in micro.rows
                for g in row
                for i in g.members
            ]
            assert sorted(read) == sorted(step)
            of_steps.append(np.bincount(inputs.mixture.of_example[read], minlength=2).tolist())
        assert np.sum(of_steps, axis=0).tolist() == [150, 50]
        assert all(20 <= one <= 40 for one, _ in of_steps)


def test_a_resumed_run_draws_what_an_uninterrupted_one_draws(
    tmp_path: Path, finished: Path, conversations: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    shutil.rmtree(run / "epoch_1_step_7")
    (run / "LATEST").unlink()
    (run / RESULT).unlink()
    finetune(config_of(run), Ranks(), conversations)
    resumed, whole = ([record["loss"] for record in read_json_lines(path / METRICS)[0]] for path in (run, finished))
    assert resumed == whole
    assert len(whole) == 7


def test_the_evaluation_shows_each_dataset_apart_and_together(
    finished: Path, conversations: Path, tmp_path: Path
) -> None:
    output = tmp_path / "evaluation"
    evaluate(config_of(finished), str(finished / "LATEST"), output, Ranks(), conversations)
    result = read_json(output / RESULT)
    groups = result["groups"]["dataset"]
    assert {name: group["examples"] for name, group in groups.items()} == {"far": 4, "one": 4, "two": 4}
    assert result["examples"] == 12
    mean = sum(group["scores"]["model"]["token_f1"]["value"] for group in groups.values()) / 3
    assert result["scores"]["model"]["token_f1"]["value"] == pytest.approx(mean, abs=1e-4)
    page = (output / REPORT).read_text()
    assert "Token F1 by dataset" in page
    assert "External validation: no row of far trains" in page
    assert '<select id="dataset"><option value="">all</option><option>far</option>' in page


def test_external_cases_are_held_back_in_full(tmp_path: Path, conversations: Path) -> None:
    """They choose no checkpoint. So of a divided validation split, they are in the part that decides."""
    config = config_of(tmp_path / "run", **{"validation_dataset.held_back": 0.5})
    inputs = gather(config, tmp_path / "run", Ranks(), conversations)
    rows = ConversationDataset(conversations, "validation").conversations
    validated = Counter(rows[inputs.validation.row_of(i)]["dataset"] for i in range(len(inputs.validation)))
    assert 0 < sum(validated.values()) < 40
    assert "far" not in validated
    assert _held_back_shares(config) == {None: 0.5, "one": 0.5, "two": 0.5, "far": 1.0}
    assert set(_held_back_shares(config_of(tmp_path)).values()) == {0.0}


def test_the_cache_of_other_datasets_is_refused(tmp_path: Path, small_conversations: Path) -> None:
    with pytest.raises(ValueError, match="is not the cache of one, two, far: it has one dataset without a name"):
        gather(config_of(tmp_path / "run"), tmp_path / "run", Ranks(), small_conversations)


def test_another_weight_is_another_run(finished: Path, conversations: Path) -> None:
    with pytest.raises(ValueError, match=r"holds another run .*'weight': 3.0.*set checkpoint.checkpoint_dir"):
        finetune(config_of(finished, **{"dataset.weight": 2}), Ranks(), conversations)
