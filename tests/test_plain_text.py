"""Nothing from data acts in a terminal or a log, and no password in an address is shown."""

import io
import logging

import pytest

from vlm_core.plain_text import PlainRecord, printable, without_secrets


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[2J",
        "\x1b]0;a\x07",
        "\x1b]52;c;cHdu\x07",
        "\x9b31m",
        "a\rb",
        "a\x08b",
        "\x00",
        "\x7f",
        "\u202etxt",
        "\ud800",
    ],
)
def test_what_a_terminal_acts_on_becomes_visible(text: str) -> None:
    shown = printable(f"before {text} after\n\tnext")
    assert shown.isascii()
    assert shown.startswith("before ")
    assert shown.endswith("after\n\tnext")
    assert all(character.isprintable() or character in "\n\t" for character in shown)


@pytest.mark.parametrize("text", ["déjà vu", "左肺 بطن", "a b", "5 µm², 37 °C"])
def test_other_texts_stay(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql+psycopg2://me:p@ss:w@db:5432/mlflow", "postgresql+psycopg2://***@db:5432/mlflow"),
        ("https://hf_token@hub.example/x", "https://***@hub.example/x"),
        ("see http://u:p@a/b and http://c:d@e", "see http://***@a/b and http://***@e"),
        ("https://a/b?x=1&token=abc&y=2#c", "https://a/b?x=1&token=***&y=2#c"),
        ("https://s3/b?X-Amz-Signature=abc", "https://s3/b?X-Amz-Signature=***"),
        ("http://127.0.0.1:4200/api", "http://127.0.0.1:4200/api"),
        ("https://a/b@c", "https://a/b@c"),
        ("models:/medpix@champion", "models:/medpix@champion"),
        ("mail me@example.org", "mail me@example.org"),
    ],
)
def test_secrets_in_addresses_are_masked(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


def test_a_log_is_plain_wherever_a_handler_sends_it() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    record = PlainRecord("x", logging.INFO, "f", 1, "%s from %s", ("\x1b[2J", "http://me:secret@hub"), None)
    handler.handle(record)
    assert stream.getvalue() == "\\x1b[2J from http://***@hub\n"
