"""What a caller of the served model sends as an image is an image, or an error that names the row."""

import base64
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from tests.data.image_files import encode

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # MLflow, about its own classes

PNG = encode(Image.new("RGB", (4, 4), (1, 2, 3)))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n"


@pytest.fixture
def conversation() -> Any:
    """Imported here, where MLflow's warning is known."""
    from tasks.registry.serving import _conversation

    return _conversation


@pytest.mark.parametrize("sent", [base64.b64encode(PNG).decode(), base64.encodebytes(PNG).decode(), PNG])
def test_an_image_is_read(sent: Any, conversation: Any) -> None:
    (turn,) = conversation(0, sent, "What?")
    assert turn["content"][0]["image"].getpixel((1, 1)) == (1, 2, 3)
    assert turn["content"][1] == {"type": "text", "text": "What?"}


@pytest.mark.parametrize(
    "sent",
    ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x", "../x.png", "", "!!!!", None, 5, ["x"], {}, b""]
    + [base64.b64encode(content).decode() for content in (EPS, PNG[:30], b"text", b"\0" * 100)],
)
def test_anything_else_is_an_error_of_the_caller_that_names_the_row(sent: Any, conversation: Any) -> None:
    with pytest.raises(MlflowException, match=r"^row 3: ") as caught:
        conversation(3, sent, "What?")
    assert caught.value.get_http_status_code() == 400
