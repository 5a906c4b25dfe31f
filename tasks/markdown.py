"""Markdown for the pages of Prefect and MLflow; text from datasets is escaped, so that it never becomes markup."""

import re
from collections.abc import Sequence
from urllib.parse import quote

LONGEST = 120  # characters; longer texts are cut
SAFE = ":/#?&=%@+,;~.-_"  # characters of a URL that need no quoting
_MARKUP = re.compile(r"[\\`*_\[\]|~]")
_HTML = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)")
_LINK = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)  # patterns that the pages turn into links
_BREAK = "\N{ZERO WIDTH SPACE}"


def escaped(text: object, longest: int = LONGEST) -> str:
    r"""Returns `text` as one line that Markdown pages show literally: no markup, no HTML, no link, no new cell.

    Use it in the middle of a line only. Texts of more than `longest` characters are cut.

    >>> escaped("a|b\n<i>")
    'a\\|b &lt;i>'
    """
    line = "".join(character for character in " ".join(str(text).split()) if character.isprintable())
    line = line if len(line) <= longest else f"{line[: longest - 3]}..."
    # MLflow's pages do not accept a backslash before "<", and Prefect's first UI does not decode other entities.
    plain = _HTML.sub(lambda found: "&lt;" if found[0] == "<" else "&amp;", _LINK.sub(_BREAK, line))
    return _MARKUP.sub(lambda found: f"\\{found[0]}", plain)


def code(text: str) -> str:
    """Returns `text` as inline code, for copying; as escaped text if it could end the code or the table cell."""
    return escaped(text, longest=1000) if re.search(r"[`|]", text) or not text.isprintable() else f"`{text}`"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; the cells must be Markdown already."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))


def link(text: str, address: str) -> str:
    """Returns a link. A file's address becomes text, since browsers do not open files from a server's page."""
    if not address.startswith(("http://", "https://")):
        return f"{escaped(text)}: {code(address)}"
    return f"[{escaped(text)}]({quote(address, safe=SAFE)})"
