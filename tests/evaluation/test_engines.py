"""A model behind an endpoint is in the same report: the same questions, controls and protocols, but no likelihoods."""

import base64
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from openai import OpenAI
from PIL import Image

from tests.conftest import fresh_home, small_config
from tests.endpoint import StandIn, endpoint
from vlm_core.config import Config
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.evaluate import evaluate
from vlm_core.evaluation.engines import Engine
from vlm_core.files import read_json
from vlm_core.run_directory import PREDICTIONS, REPORT, RESULT
from vlm_core.training.distributed import Ranks

CONCISELY = "Please answer the question concisely."


def reply(body: dict[str, Any]) -> tuple[str, str]:
    return ("limited", "yes") if body["model"] == "m" else (body["model"], "yes")


def images(body: dict[str, Any]) -> list[Image.Image]:
    """Returns the images of a request."""
    parts = [part for message in body["messages"] for part in message["content"] if part["type"] == "image_url"]
    encoded = [part["image_url"]["url"].removeprefix("data:image/png;base64,") for part in parts]
    return [Image.open(io.BytesIO(base64.b64decode(one, validate=True))) for one in encoded]


def config_of(server: StandIn, model: str = "m") -> Config:
    settings = {"limit": 8, "max_new_tokens": 4, "controls": ["shuffled", "blank", "question_only"]}
    settings |= {"compare_with": [f"gpt=openai:{model}@{server.url}"], "protocols": ["slake_medevalkit"]}
    return small_config(**{f"evaluation.{key}": value for key, value in settings.items()})


def test_an_endpoint_answers_the_same_questions_and_is_in_the_same_report(
    small_conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDPIX_HOME", str(fresh_home(tmp_path / "home")))
    with endpoint(reply) as server:
        monkeypatch.setenv("MEDPIX_ENGINES", server.url)
        evaluate(config_of(server), None, tmp_path / "out", Ranks(), small_conversations)
        monkeypatch.setattr("vlm_core.evaluate._publish", lambda *arguments: None)
        evaluate(config_of(server), None, tmp_path / "out", Ranks(), small_conversations)  # asks nothing again
        bodies = {json.dumps(body, sort_keys=True) for body in server.asked}
        assert len(server.asked) == len(bodies) + 1  # the request that was limited came again
    result, records = read_json(tmp_path / "out" / RESULT), pq.read_table(tmp_path / "out" / PREDICTIONS).to_pylist()
    assert [record["prediction_gpt"] for record in records] == ["yes"] * 8
    closed = [record["reference"].lower().startswith("yes") for record in records if record["closed_kind"]]
    assert result["scores"]["gpt"]["closed_accuracy"]["value"] == pytest.approx(np.mean(closed), abs=1e-4)
    for name in ("logprob", "perplexity", "calibration_error"):
        assert result["scores"]["gpt"][name]["value"] is None
        assert name == "calibration_error" or result["scores"]["model"][name]["value"] is not None
    assert {record["logprob_gpt"] for record in records} == {None}
    assert result["differences"]["gpt"]["token_f1"]["value"] is not None
    assert set(result["protocols"]["slake_medevalkit"]["scores"]) == {"model", "gpt"}
    # Its controls are scored too; this one does not look.
    controls = result["engines"]["gpt"]["token_f1"]
    assert list(controls) == ["right", "shuffled", "blank", "question_only", "adds"]
    assert controls["adds"]["value"] == 0
    page = (tmp_path / "out" / REPORT).read_text()
    assert f"gpt (openai:m@{server.url}): asked over the network" in page
    assert "So log-probability, perplexity and calibration error have no value there." in page
    check_requests([json.loads(body) for body in bodies], records, small_conversations)


def check_requests(bodies: list[dict[str, Any]], records: list[dict[str, Any]], conversations: Path) -> None:
    """Checks what was sent: each question with its image, another one, a black one and none, and with the request."""
    dataset = ConversationDataset(conversations, "validation")
    rows = {row["example_id"]: row for row in (dataset[i] for i in range(len(dataset)))}
    sent = Counter()
    for body in bodies:
        assert (body["max_tokens"], body["temperature"]) == (4, 0)
        assert body["messages"][-1]["role"] == "user"
        text = body["messages"][-1]["content"][-1]["text"].strip()
        shown = images(body)
        pixels = shown[0].tobytes() if shown else b""
        own = {
            rows[r["example_id"]]["conversation"][0]["content"][0]["image"].tobytes()
            for r in records
            if text.startswith(r["question"].strip())
        }
        kind = "none" if not shown else "black" if not any(pixels) else "right" if pixels in own else "another"
        sent[("requested " if "\n" in text else "") + kind] += 1
    questions = len({(record["question"], *record["image_sha256"]) for record in records})
    assert sent["right"] == sent["requested right"] == questions
    assert sent["none"] == len({record["question"] for record in records}) == sent["black"]
    assert sent["another"] >= 1


def test_what_an_endpoint_refuses_is_known_before_a_model_is_loaded(
    small_conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDPIX_HOME", str(fresh_home(tmp_path / "home")))

    def refuse(*arguments: Any, **settings: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("vlm_core.evaluation.answering.Answerer.load", refuse)
    monkeypatch.setattr(Engine, "client", property(lambda self: OpenAI(base_url=self.url, api_key="k", max_retries=0)))
    with endpoint(reply) as server:
        monkeypatch.setenv("MEDPIX_JUDGES", server.url)  # which allows texts only
        for model, allowed, fault in (
            ("m", "", "questions and images may not be sent to http.*adds the address to MEDPIX_ENGINES"),
            (
                "down",
                server.url,
                r"the engine down at .* failed \(InternalServerError.*asks for the rest",
            ),
            ("garbage", server.url, r"the engine garbage at .* failed \(ValueError: a reply is not a chat completion"),
        ):
            monkeypatch.setenv("MEDPIX_ENGINES", allowed)
            with pytest.raises(ValueError, match=fault):
                evaluate(config_of(server, model), None, tmp_path / "out", Ranks(), small_conversations)


@pytest.mark.parametrize(
    "reference", ["openai:m", "openai:@http://x/v1", "openai:m@ftp://x", "openai:m@localhost:8000"]
)
def test_a_reference_without_model_or_address_is_named(reference: str) -> None:
    with pytest.raises(ValueError, match="is not openai:MODEL@URL"):
        Engine.of(reference)


def test_an_endpoint_is_called_after_its_model() -> None:
    named = small_config(
        **{"evaluation.compare_with": ["base", "openai:org/qwen3@http://h:1/v1", "a=openai:x@http://h/"]}
    )
    assert named.evaluation.comparisons == {
        "base": "base",
        "qwen3": "openai:org/qwen3@http://h:1/v1",
        "a": "openai:x@http://h/",
    }
