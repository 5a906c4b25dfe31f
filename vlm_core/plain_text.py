"""Makes untrusted text safe for terminals and logs: escapes control characters and masks secrets in URLs."""

import logging
import re

from vlm_core.program import as_called

# Control characters, Unicode's line separators and bidirectional controls, and lone surrogates.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_USER = re.compile(r"(?<=://)[^\s/?#]*@")
_SECRET = re.compile(r"(?i)([?&](?:access_?token|token|password|api_?key|signature|sig|x-amz-[\w-]+)=)[^&\s]+")


def printable(text: object) -> str:
    r"""Returns `text` with control characters escaped and the secrets in URLs masked. Keeps line breaks and tabs.

    Commands in it are called as the user calls them: `medpix prepare`, or `python -m vlm_core.prepare`.

    >>> printable("\x1b[2J postgresql://me:secret@db/mlflow")
    '\\x1b[2J postgresql://***@db/mlflow'
    """
    return without_secrets(as_called(_CONTROLS.sub(lambda found: ascii(found[0])[1:-1], str(text))))


def without_secrets(text: str) -> str:
    """Returns `text` with users, passwords and tokens in URLs masked.

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
    """Makes every log message of this process printable, for all handlers."""
    logging.setLogRecordFactory(PlainRecord)
