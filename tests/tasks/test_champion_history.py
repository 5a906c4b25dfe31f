"""The history of champions is complete and append-only, and rollbacks follow it. In a real registry."""

import re
import threading
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import mlflow
import pytest
from prefect.client.schemas.objects import CreatedBy
from prefect.context import FlowRunContext

from tasks.registry import __main__ as command
from tasks.registry.arguments import registry_parser
from tasks.registry.champion_history import (
    BEFORE,
    BY_HAND,
    GATE,
    KEPT,
    OUTSIDE,
    ROLLED_BACK,
    UNREADABLE,
    append,
    new_change,
)
from tasks.registry.versions import changes, find_champion, keep_champion, make_champion, promote, roll_back
from tasks.trackers.provenance import responsible_user
from tests.conftest import new_mlflow_store

pytestmark = pytest.mark.slow


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    """The client of a new registry with the model `m`, which has four versions."""
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_mlflow_store(tmp_path))
    client = mlflow.MlflowClient()
    client.create_registered_model("m")
    for number in range(1, 5):
        client.create_model_version("m", source=tmp_path.as_uri(), tags={"token_f1": f"0.{number}"})
    return client


def moves() -> list[tuple[str, str | None, str | None]]:
    return [(change.kind, change.before, change.after) for change in changes("m")]


def test_each_change_is_an_entry_with_user_time_reason_and_scores(client: mlflow.MlflowClient) -> None:
    make_champion("m", "1", "the first model of its name")
    keep_champion("m", "2", "token_f1 is lower")
    promote("m", "3", "reviewed by hand")
    roll_back("m", "misses small lesions")
    assert moves() == [(GATE, None, "1"), (KEPT, "1", "1"), (BY_HAND, "1", "3"), (ROLLED_BACK, "3", "1")]
    history = changes("m")
    assert [change.scores.get("token_f1") for change in history] == ["0.1", None, "0.3", "0.1"]
    assert history[1].reason == "version 2 is not promoted: token_f1 is lower"
    assert [history[2].reason, history[3].reason] == ["reviewed by hand", "misses small lesions"]
    assert {change.user for change in history} == {responsible_user()}
    assert all(change.time.endswith("+00:00") for change in history)
    assert client.get_model_version("m", "2").tags["promotion"] == "not promoted: token_f1 is lower"
    client.delete_model_version("m", "3")
    assert changes("m") == history


def test_each_rollback_goes_back_one_more_version(client: mlflow.MlflowClient) -> None:
    for version in ("1", "2", "3"):
        promote("m", version, "")
    assert [roll_back("m"), roll_back("m")] == ["2", "1"]
    with pytest.raises(ValueError, match="has no earlier champion to roll back to; the champion is version 1"):
        roll_back("m")
    assert find_champion("m") == "1"
    promote("m", "4", "")  # starts at the version to which the rollbacks led
    assert roll_back("m") == "1"
    with pytest.raises(ValueError, match="no earlier champion"):
        roll_back("m")


def test_a_version_that_was_champion_twice_is_rolled_back_twice(client: mlflow.MlflowClient) -> None:
    for version in ("1", "2", "1", "1"):
        promote("m", version, "")
    assert [roll_back("m"), roll_back("m")] == ["2", "1"]
    with pytest.raises(ValueError, match="no earlier champion"):
        roll_back("m")


def test_deleted_versions_are_skipped_and_named(client: mlflow.MlflowClient) -> None:
    for version in ("1", "2", "3"):
        promote("m", version, "")
    client.delete_model_version("m", "2")
    assert roll_back("m", "worse") == "1"
    assert changes("m")[-1].reason == "worse; skipped, since deleted: version 2"
    promote("m", "4", "")
    client.delete_model_version("m", "1")
    with pytest.raises(ValueError, match="no earlier champion to roll back to; skipped, since deleted: version 1"):
        roll_back("m")


def test_a_deleted_champion_is_replaced_by_the_previous_one(client: mlflow.MlflowClient) -> None:
    promote("m", "1", "")
    promote("m", "2", "")
    client.delete_model_version("m", "2")
    assert moves()[-1] == (OUTSIDE, "2", None)
    assert roll_back("m") == "1"
    assert moves()[-2:] == [(OUTSIDE, "2", None), (ROLLED_BACK, None, "1")]


def test_a_registry_without_a_history_rolls_back_once(client: mlflow.MlflowClient) -> None:
    client.set_registered_model_alias("m", "champion", "3")
    client.set_model_version_tag("m", "3", "previous_champion", "2")
    client.set_model_version_tag("m", "2", "previous_champion", "3")  # this tag used to make two rollbacks toggle
    assert moves() == [(BEFORE, "2", "3")]
    assert roll_back("m") == "2"
    with pytest.raises(ValueError, match="no earlier champion"):
        roll_back("m")
    assert moves() == [(BEFORE, "2", "3"), (ROLLED_BACK, "3", "2")]


@pytest.mark.parametrize("moved_to", ["4", None])
def test_an_external_change_is_reported_and_rolled_back(client: mlflow.MlflowClient, moved_to: str | None) -> None:
    promote("m", "1", "")
    if moved_to:
        client.set_registered_model_alias("m", "champion", moved_to)
    else:
        client.delete_registered_model_alias("m", "champion")
    assert moves()[-1] == (OUTSIDE, "1", moved_to)
    assert moves() == moves()  # reading writes nothing
    promote("m", "2", "")
    assert moves() == [(BY_HAND, None, "1"), (OUTSIDE, "1", moved_to), (BY_HAND, moved_to, "2")]
    assert roll_back("m") == (moved_to or "1")


def test_the_creator_of_the_flow_run_is_named_before_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    creator = CreatedBy(id=uuid4(), type="USER", display_value="Ann")
    context = SimpleNamespace(flow_run=SimpleNamespace(created_by=creator))
    account = responsible_user()
    assert re.fullmatch(r"[^@ ]+@[^@ ]+", account)
    monkeypatch.setattr(FlowRunContext, "get", lambda: context)
    assert responsible_user() == f"Ann (user), {account}"
    context.flow_run.created_by = None  # a local server, with a run that a person started
    assert responsible_user() == account


def test_no_entry_is_lost_if_homes_do_not_share_a_lock(client: mlflow.MlflowClient) -> None:
    """Four writers write at the same moment: some read the same history, and give their entries the same number."""
    entries = [new_change(BY_HAND, None, version, version, {}) for version in "1234"]
    threads = [threading.Thread(target=append, args=("m", entry)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(change.reason for change in changes("m") if change.kind == BY_HAND) == ["1", "2", "3", "4"]


def test_odd_texts_fit_the_database_and_print_as_plain_text(
    client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "\x1b" * 900 + "[31mred\x1b[0m\nFORGED  line " + "\N{HEART WITH ARROW}" * 9000
    promote("m", "1", reason)
    promote("m", "2", "fine")
    tags = client.get_registered_model("m").tags
    assert max(len(value) for value in tags.values()) < 5000  # PostgreSQL's limit
    client.set_registered_model_tag("m", min(tags), "not JSON")
    assert moves()[0][0] == UNREADABLE
    client.set_registered_model_tag("m", min(tags), tags[min(tags)])
    command.main(registry_parser(None).parse_args(["history", "m"]))
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["time", "user", "kind", "from", "to"]
    assert "\x1b" not in first
    assert "FORGED" in first
    assert second.endswith("fine")
