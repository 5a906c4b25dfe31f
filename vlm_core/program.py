"""How the user calls this project's commands: `medpix prepare`, or `python -m vlm_core.prepare`."""

import re

NAMES: dict[str, str] = {}  # {"vlm_core.prepare": "medpix prepare"}: filled by the command `medpix`
_MODULE = re.compile(r"python -m ((?:vlm_core|tasks|pipelines)(?:\.\w+)+)")
_TARGET = re.compile(r"\bmake (?=(?:up|env|down)[`)])")


def as_called(text: str) -> str:
    """Returns a text with the user's way of calling a command in place of `python -m MODULE` and `make up`.

    >>> NAMES["vlm_core.prepare"] = "medpix prepare"
    >>> as_called("python -m vlm_core.prepare FOLDER")
    'medpix prepare FOLDER'
    """
    if not NAMES:
        return text
    return _TARGET.sub("medpix ", _MODULE.sub(lambda found: NAMES.get(found[1], found[0]), text))
