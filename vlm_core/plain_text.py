"""Texts from data, models and other programs, as they may reach a terminal or a log: nothing acts, no secret shows."""

import logging
import re

# What a terminal acts on or shows in another order (Unicode's bidirectional controls), and halves of surrogate pairs.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_USER = re.compile(r"(?<=://)[^\s/?#]*@")
_SECRET = re.compile(r"(?i)([?&](?:access_?token|token|password|api_?key|signature|sig|x-amz-[\w-]+)=)[^&\s]+")


def printable(text: object) -> str:
    r"""Returns `text` with its control characters written as escapes and the secrets in its addresses masked.

    Line breaks and tabs stay.

    >>> printable("\x1b[2J postgresql://me:secret@db/mlflow")
    '\\x1b[2J postgresql://***@db/mlflow'
    """
    return without_secrets(_CONTROLS.sub(lambda found: ascii(found[0])[1:-1], str(text)))


def without_secrets(text: str) -> str:
    """Returns `text` without the user, password and token that an address in it may have.

    >>> without_secrets("https://hub.example/a?token=secret&b=1")
    'https://hub.example/a?token=***&b=1'
    """
    return _SECRET.sub(r"\1***", _USER.sub("***@", text))


class PlainRecord(logging.LogRecord):
    """A log record whose message is printable."""

    def getMessage(self) -> str:
        """Returns the message with its arguments."""
        return printable(super().getMessage())


def keep_logs_plain() -> None:
    """Makes every message that this process logs printable, wherever a handler sends it."""
    logging.setLogRecordFactory(PlainRecord)
