"""Markdown for the pages of Prefect and MLflow: what comes from data stays text there."""

import re
from collections.abc import Sequence
from urllib.parse import quote

LONGEST = 120  # characters of a text from data
SAFE = ":/#?&=%@+,;~.-_"  # in an address
_MARKUP = re.compile(r"[\\`*_\[\]|~]")
_HTML = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)")
_LINK = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)  # in what pages link by themselves
_BREAK = "\N{ZERO WIDTH SPACE}"


def escaped(text: object, longest: int = LONGEST) -> str:
    r"""Returns `text` as one line that Markdown pages show literally: no markup, no HTML, no link, no new cell.

    It is for the middle of a line. What is longer than `longest` characters is cut.

    >>> escaped("a|b\n<i>")
    'a\\|b &lt;i>'
    """
    line = "".join(character for character in " ".join(str(text).split()) if character.isprintable())
    line = line if len(line) <= longest else f"{line[: longest - 3]}..."
    # MLflow's pages take no backslash before "<", and Prefect's first UI shows other entities as they are.
    plain = _HTML.sub(lambda found: "&lt;" if found[0] == "<" else "&amp;", _LINK.sub(_BREAK, line))
    return _MARKUP.sub(lambda found: f"\\{found[0]}", plain)


def code(text: str) -> str:
    """Returns `text` to be copied, as code; with characters that would end the code or the cell, as text."""
    return escaped(text, longest=1000) if re.search(r"[`|]", text) or not text.isprintable() else f"`{text}`"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of cells that are Markdown already."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))


def link(text: str, address: str) -> str:
    """Returns a link; the address of a file is shown as text, since browsers open none from a server's page."""
    if not address.startswith(("http://", "https://")):
        return f"{escaped(text)}: {code(address)}"
    return f"[{escaped(text)}]({quote(address, safe=SAFE)})"
