"""What a caller of a served model may ask for, and what it gets if it asks for more; the model is a stub."""

import base64
import io
import json
import math
import threading
import time
import warnings
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from tests.conftest import noise
from vlm_core.config import ImagesConfig
from vlm_core.evaluation.served_confidence import identity_of, served_confidence

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow about its own type hints
    from tasks.registry import serving
    from tasks.registry.serving import ImageQuestionModel, Turn


def encoded(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "png")
    return base64.b64encode(stream.getvalue()).decode()


IMAGE = encoded(noise((8, 8)))
PNG = base64.b64decode(IMAGE)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n"


class Stub:
    """A model that embeds `tokens` tokens, one after the other, and answers with the number of its row."""

    def __init__(self, tokens: int = 1) -> None:
        self.embeddings, self.tokens, self.model = torch.nn.Embedding(4, 4), tokens, self

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embeddings

    def answer(self, batch: list[Any], settings: Any) -> list[Any]:
        for _ in range(self.tokens):
            self.embeddings(torch.tensor([1]))
            time.sleep(0.005)
        texts = [conversation[0]["content"][-1]["text"] for conversation in batch]
        return [SimpleNamespace(text=text, logprob=math.log(0.9), truncated=text == "yes, yes") for text in texts]


def model(stub: Any) -> ImageQuestionModel:
    served = ImageQuestionModel()
    served.answerer, served.turn, served.images = stub, Turn(stub), ImagesConfig()
    return served


def predict(served: ImageQuestionModel, *rows: tuple[Any, Any], max_new_tokens: int = 4, **config: Any) -> Any:
    frame = pandas.DataFrame({"image": [image for image, _ in rows], "question": [text for _, text in rows]})
    context = SimpleNamespace(model_config={"batch_size": 2, **config})
    return served.predict(context, frame, {"max_new_tokens": max_new_tokens})


def ask(served: ImageQuestionModel, *rows: tuple[Any, Any], max_new_tokens: int = 4) -> list[str]:
    return predict(served, *rows, max_new_tokens=max_new_tokens)["answer"].tolist()


def test_each_row_is_answered() -> None:
    assert ask(model(Stub()), (IMAGE, "a?"), (f"{IMAGE[:20]}\n{IMAGE[20:]}", "b?"), (IMAGE, "c?")) == ["a?", "b?", "c?"]


def test_closed_questions_have_a_calibrated_confidence() -> None:
    """The stub repeats the question, and finds each answer 90 % probable; of such answers, 60 % were right."""
    offset = math.log(0.6 / 0.4) - 0.5 * math.log(0.9 / 0.1)
    fitted = {"slope": 0.5, "intercept": offset, "closed": [identity_of("Which side?")]}
    questions = ("Which side?", "No lesion.", "yes, yes", "Nothing is seen.", "There is no lesion.")
    given = predict(model(Stub()), *((IMAGE, text) for text in questions), confidence=fitted)
    assert given["confidence"].tolist() == [0.6, 0.6, None, None, None]  # cut off, open, open
    assert json.loads(given.to_json(orient="records"))[2] == {"answer": "yes, yes", "confidence": None}
    for unknown in ({"confidence": {"reason": "too few closed questions"}}, {}):
        assert predict(model(Stub()), (IMAGE, "No lesion."), **unknown)["confidence"].tolist() == [None]


def test_what_a_version_gets_from_its_evaluation() -> None:
    greedy, sampled = {"temperature": 0.0}, {"temperature": 0.7}
    found = {"questions": 40, "served": {"slope": 1.0, "intercept": 0.0, "closed": []}}
    assert served_confidence({"generation": greedy, "calibration": found})["slope"] == 1.0
    assert "too few closed questions" in served_confidence({"generation": greedy, "calibration": None})["reason"]
    assert "sampled" in served_confidence({"generation": sampled, "calibration": found})["reason"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((encoded(Image.new("1", (8000, 8000))), "q"), "more than 50,000,000 pixels together"),
        ((IMAGE, ""), "row 0: a question is a text of 1 to 20,000 characters"),
        ((IMAGE, "a" * 20_001), "row 0: a question is a text"),
        ((IMAGE, None), "row 0: a question is a text"),
    ],
)
def test_a_bad_row_is_named(row: tuple[Any, Any], reason: str) -> None:
    with pytest.raises(MlflowException, match=reason):
        ask(model(Stub()), row)


@pytest.mark.parametrize(
    "sent",
    ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x", "../x.png", "", "!!!!", None, 5, ["x"], {}, b""]
    + [base64.b64encode(content).decode() for content in (EPS, PNG[:30], b"text", b"\0" * 100)],
)
def test_what_is_no_image_is_an_error_of_the_caller(sent: Any) -> None:
    with pytest.raises(MlflowException, match=r"^row 1: ") as caught:
        ask(model(Stub()), (IMAGE, "q"), (sent, "q"))
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize("length", [0, -1, 1025, 10**9])
def test_the_length_of_an_answer_is_limited(length: int) -> None:
    with pytest.raises(MlflowException, match=f"max_new_tokens={length}: it must be between 1 and 1024"):
        ask(model(Stub()), (IMAGE, "q"), max_new_tokens=length)


def test_the_rows_and_the_pixels_of_a_request_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MlflowException, match="65 rows: a request must have between 1 and 64"):
        ask(model(Stub()), *[(IMAGE, "q")] * 65)
    monkeypatch.setattr(serving, "MAX_PIXELS", 150)
    with pytest.raises(MlflowException, match="row 2: the images have more than 150 pixels"):
        ask(model(Stub()), *[(IMAGE, "q")] * 3)


def test_a_request_ends_when_its_time_is_up_and_the_next_one_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "1")
    slow = model(Stub(tokens=10**6))
    outcome: list[str] = []

    def ask_first() -> None:
        try:
            ask(slow, (IMAGE, "q"))
        except MlflowException as error:
            outcome.append(error.message)

    first = threading.Thread(target=ask_first)
    first.start()
    time.sleep(0.2)
    with pytest.raises(MlflowException, match="took too long"):  # it waits for the first one, which ends
        ask(slow, (IMAGE, "q"))
    first.join()
    assert ["took too long" in message for message in outcome] == [True]
    slow.answerer.tokens = 1
    assert ask(slow, (IMAGE, "q")) == ["q"]


def test_an_error_of_the_model_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Stub):
        def answer(self, batch: list[Any], settings: Any) -> list[Any]:
            raise RuntimeError("/srv/secret/weights")

    with pytest.raises(MlflowException, match="the model failed; the server's log says why") as error:
        ask(model(Broken()), (IMAGE, "q"))
    assert "secret" not in error.value.serialize_as_json()
    assert "/srv/secret/weights" in caplog.text
