"""The playground answers whoever has the password, on its own page only; its models are stubs."""

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from tasks.playground import page
from tasks.playground.page import create_app
from tests.conftest import noise
from tests.e2e.pages import chromium
from tests.e2e.services import free_port, wait_until

PASSWORD, PORT = "medpix:secret", 5002
OWN = f"http://127.0.0.1:{PORT}"


def trained(image: str, question: str) -> dict[str, Any]:
    if question == "too long":
        raise ValueError("row 0: a question is a text of 1 to 20,000 characters")
    if question == "out of memory":
        raise RuntimeError("DefaultCPUAllocator: /secret/path")
    return {"model": "medpix-demo, version 4", "answer": f"<b>{question}</b> {len(image)}", "confidence": 0.914}


def base(image: str, question: str) -> dict[str, Any]:
    return {"model": "the base model, before training", "answer": "", "confidence": None}


@pytest.fixture
def client() -> TestClient:
    found = TestClient(create_app([trained, base], PASSWORD, PORT), base_url=OWN)
    found.auth = ("medpix", "secret")
    return found


def test_both_models_answer(client: TestClient) -> None:
    reply = client.post("/ask", json={"image": "aGk=", "question": "Is there a lesion?"})
    assert reply.json() == {"answers": [trained("aGk=", "Is there a lesion?"), base("", "")]}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "invalid"),
        (b"[]", "invalid"),
        (b'{"image": "aGk="}', "invalid"),
        (b'{"image": "aGk=", "question": "too long"}', "row 0: a question"),
        (b'{"image": "' + b"a" * 2000, "more than 1,000 bytes"),
    ],
)
def test_a_bad_request_is_named(client: TestClient, body: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_BYTES", 1000)
    reply = client.post("/ask", content=body)
    assert (reply.status_code, reason in reply.json()["error"]) == (400, True)


def test_a_failing_model_is_named_without_details(client: TestClient) -> None:
    reply = client.post("/ask", json={"image": "", "question": "out of memory"})
    assert (reply.status_code, reply.json()) == (500, {"error": "the model failed; the command's log says why"})


@pytest.mark.parametrize("given", [None, ("medpix", "wrong"), ("medpix", "secre"), ("", "")])
def test_a_password_is_needed(client: TestClient, given: tuple[str, str] | None) -> None:
    client.auth = given
    for reply in (client.get("/"), client.post("/ask", json={"image": "", "question": "?"})):
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, 'Basic realm="medpix"')


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}])
def test_other_pages_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/ask", json={"image": "", "question": "?"}, headers=headers).status_code == 403


def test_headers_that_are_no_password_are_refused(client: TestClient) -> None:
    client.auth = None
    for given in ("Basic", "Basic %%%", "Bearer x", f"Basic {base64.b64encode(PASSWORD.encode()).decode()}x"):
        assert client.get("/", headers={"authorization": given}).status_code == 401


@pytest.fixture
def address() -> Iterator[str]:
    """The address of a running playground."""
    port = int(free_port())
    server = uvicorn.Server(uvicorn.Config(create_app([trained, base], PASSWORD, port), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, "the page is served")
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_shows_both_answers(address: str, width: int, tmp_path: Path) -> None:
    noise((64, 48)).save(tmp_path / "slice.png")
    (tmp_path / "slice.dcm").write_bytes(b"no picture for a browser")
    with chromium() as browser:
        credentials: Any = {"username": "medpix", "password": "secret"}
        shown = browser.new_page(http_credentials=credentials, viewport={"width": width, "height": 900})
        shown.goto(address)
        shown.get_by_label("Image").set_input_files(tmp_path / "slice.dcm")
        shown.get_by_text("A browser does not show this format").wait_for()
        shown.get_by_label("Image").set_input_files(tmp_path / "slice.png")
        shown.get_by_alt_text("the chosen image").wait_for()
        shown.get_by_label("Question").fill("too long")
        shown.get_by_role("button", name="Ask").click()
        shown.get_by_text("a question is a text of 1 to 20,000 characters").wait_for()
        shown.get_by_label("Question").fill("Is there a lesion?")
        shown.get_by_role("button", name="Ask").click()
        shown.get_by_text("<b>Is there a lesion?</b>").wait_for()  # as text, not as HTML
        shown.get_by_text("of answers as sure as this one, 91 % were right").wait_for()
        shown.get_by_text("(empty)").wait_for()
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        shown.screenshot(path=str(tmp_path / "page.png"))
