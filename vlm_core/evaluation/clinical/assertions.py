"""What a text asserts about an image: findings present or absent, and values such as the side or the plane.

A finding that is only "possible" is asserted neither as present nor as absent.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from vlm_core.data.closed_questions import normalize
from vlm_core.evaluation.clinical.lexicon import ABNORMALITY, DEVICE, FINDING, REGION, Phrase, lexicon
from vlm_core.evaluation.clinical.pipeline import sentences

MILLIMETRES = "millimetres"
_LENGTH = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?:\s*[x×*]\s*(\d+(?:\.\d+)?)){0,2}\s*-?\s*(mm|cm)\b", re.IGNORECASE)
_YES_NO = re.compile(r"\s*(yes|no)\b\s*(?:[.,;:!-]+|\n|$)\s*", re.IGNORECASE)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_MANY = {"multiple", "several", "numerous", "many", "innumerable", "few"}
_ONE = {"single", "solitary"}
_UNITS = {"mm", "cm", "-", "x", "year", "years", "month", "months", "day", "days", "%", "weeks"}
_ASKS_NUMBER = re.compile(r"\bhow many\b|\bnumber of\b|\bone or (of )?two\b", re.IGNORECASE)
_WH = re.compile(r"\s*(what|where|which|how|who|when|why)\b", re.IGNORECASE)
MANY = "many"


@dataclass(frozen=True)
class Assertions:
    """What a text asserts. `values` maps an axis ("side", "plane", "region", ...) to the values that it gives."""

    present: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    values: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.present or self.absent or self.values)


@cache
def assertions_of(text: str, question: str) -> Assertions:
    """Returns what `text` asserts as an answer to `question`; a text that repeats the question asserts nothing."""
    words = normalize(text)
    repeats = words in normalize(question) and len(words.split()) > 3  # "Left" is an answer to "left or right?"
    if not words or repeats:
        return Assertions()
    polarity = _YES_NO.match(text)
    present, absent, values = _read(text[polarity.end() :] if polarity else text)
    if polarity:
        asked = _asked(question)
        (present if polarity[1].lower() == "yes" else absent).update(asked - present - absent)
    if number := _bare_number(text, question):
        values["count"].add(number)
    absent -= present
    return Assertions(frozenset(present), frozenset(absent), {k: frozenset(v) for k, v in values.items() if v})


def _read(text: str) -> tuple[set[str], set[str], dict[str, set[str]]]:
    present: set[str] = set()
    absent: set[str] = set()
    values: dict[str, set[str]] = defaultdict(set)
    for sentence, spans in sentences(text):
        if sentence.text.rstrip().endswith("?"):
            continue
        _add_findings(spans, present, absent)
        for axis, found in _affirmed_values(sentence, spans).items():
            values[axis] |= found
        values["count"] |= set(_counts(spans))
        values[MILLIMETRES] |= set(_lengths(sentence.text))
    return present, absent, values


def _add_findings(spans: Sequence[tuple[Any, Phrase]], present: set[str], absent: set[str]) -> None:
    has_region = any(phrase.kind == REGION for _, phrase in spans)
    for span, phrase in spans:
        denied = span._.denied
        if phrase.kind == "normal":
            if not denied and not has_region and not span._.uncertain:
                absent.add(ABNORMALITY)
        elif phrase.kind in (FINDING, DEVICE) and not span._.uncertain:
            if denied and has_region and phrase.names[0] == ABNORMALITY:
                continue  # "no abnormality of the liver" says nothing about the rest
            (absent if denied else present).update(phrase.names)


def _affirmed_values(sentence: Any, spans: Sequence[tuple[Any, Phrase]]) -> dict[str, set[str]]:
    """Returns `{axis: values}` of a sentence. Values joined by "or" assert nothing."""
    found: dict[str, set[str]] = defaultdict(set)
    last: dict[str, Any] = {}
    open_axes = set()
    denies_finding = any(span._.denied and phrase.kind in (FINDING, DEVICE) for span, phrase in spans)
    for span, phrase in spans:
        axis = phrase.kind
        if axis in (FINDING, DEVICE, "normal") or span._.uncertain:
            continue
        if span._.denied and not (denies_finding and axis in ("modality", "plane")):  # "no lesion on this axial CT"
            continue
        between = sentence.doc[last[axis].end : span.start] if axis in last else ()
        if any(token.lower_ == "or" for token in between):
            open_axes.add(axis)
        last[axis] = span
        found[axis].update(phrase.names)
        for name in phrase.names:
            if name in lexicon().implied:
                found["modality"].add(lexicon().implied[name])
    return {axis: names for axis, names in found.items() if axis not in open_axes}


def _counts(spans: Sequence[tuple[Any, Phrase]]) -> Iterator[str]:
    """Yields the numbers that stand before affirmed findings ("two small cysts")."""
    for span, phrase in spans:
        if phrase.kind not in (FINDING, DEVICE) or span._.denied or span._.uncertain:
            continue
        before = span.doc[max(span.sent.start, span.start - 4) : span.start]
        for token in reversed(before):
            if token.lower_ in _UNITS or token.text in ",;:()":
                break
            if number := _number(token.lower_):
                yield number
                break


def _number(word: str) -> str | None:
    if word in _MANY:
        return MANY
    if word in _ONE:
        return "1"
    if word in _NUMBERS[1:]:
        return str(_NUMBERS.index(word))
    return word if re.fullmatch(r"[1-9]|1\d", word) else None


def _bare_number(text: str, question: str) -> str | None:
    """Returns the number that an answer consists of, if the question asks for one."""
    return _number(normalize(text)) if _ASKS_NUMBER.search(question) else None


def _lengths(text: str) -> Iterator[str]:
    """Yields the longest diameter of each measurement, in millimetres."""
    for match in _LENGTH.finditer(text):
        numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", match[0])]
        yield f"{max(numbers) * (10 if match[3].lower() == 'cm' else 1):g}"


@cache
def _asked(question: str) -> frozenset[str]:
    """Returns the findings and devices that a question names."""
    return frozenset(
        name for _, phrase in _of_question(question) if phrase.kind in (FINDING, DEVICE) for name in phrase.names
    )


@cache
def presupposed(question: str) -> frozenset[str]:
    """Returns the findings, devices and regions that a question takes for granted: "Where is the mass?".

    Those that it asks for ("Is there a mass?") are not among them.
    """
    open_question = bool(_WH.match(question) or _ASKS_NUMBER.search(question))
    return frozenset(
        name
        for span, phrase in _of_question(question)
        if phrase.kind in (FINDING, DEVICE, REGION) and (open_question or phrase.kind == REGION or _is_definite(span))
        for name in phrase.names
    )


def _is_definite(span: Any) -> bool:
    return any(
        token.lower_ in ("the", "this", "that", "these") for token in span.doc[max(0, span.start - 3) : span.start]
    )


def _of_question(question: str) -> list[tuple[Any, Phrase]]:
    return [found for _, spans in sentences(question) for found in spans]
