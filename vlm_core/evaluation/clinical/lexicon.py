"""The phrases of clinical agreement, from the YAML files in lexicon/."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FINDING, DEVICE, REGION = "finding", "device", "region"
CATEGORIES = (FINDING, DEVICE, "side", "position", "count", "size", "modality", "plane", "region", "character")
ABNORMALITY = "abnormality"  # the most general finding
IGNORED = "ignored"


@dataclass(frozen=True)
class Phrase:
    """A phrase that asserts something.

    `kind` is "finding", "device", "region", "normal", "ignored" or the axis of an attribute. `names` are the values
    that the phrase asserts.
    """

    text: str
    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Lexicon:
    """All phrases, and how the values relate."""

    phrases: tuple[Phrase, ...]
    category: Mapping[str, str]  # of an axis
    ancestors: Mapping[str, frozenset[str]]  # of a finding, device or region: what is more general
    implied: Mapping[str, str]  # value of an axis -> value that it implies
    scope: Mapping[str, Any]


@cache
def lexicon() -> Lexicon:
    """Returns the lexicon."""
    findings, regions, attributes = _file("findings"), _file("regions"), _file("attributes")
    implied, ignored = attributes.pop("implies"), attributes.pop("ignored")
    trees = {FINDING: findings["findings"], DEVICE: findings["devices"], REGION: regions}
    phrases = [phrase for kind, tree in trees.items() for phrase in _of_tree(kind, tree)]
    phrases += [Phrase(text, "normal", (ABNORMALITY,)) for text in findings["normal"]]
    phrases += [Phrase(text, IGNORED, ()) for text in ignored]
    phrases += list(_of_attributes(attributes))
    parents = {name: row[0] for tree in trees.values() for name, row in tree.items()}
    return Lexicon(
        phrases=tuple(phrases),
        category={axis: category for category, axes in attributes.items() for axis in axes} | {REGION: REGION},
        ancestors={name: frozenset(_ancestors(name, parents)) for name in parents},
        implied=implied,
        scope=_file("scope"),
    )


def _file(name: str) -> Any:
    return yaml.safe_load((Path(__file__).parent / "lexicon" / f"{name}.yaml").read_text(encoding="utf-8"))


def _of_tree(kind: str, tree: Mapping[str, list[str | None]]) -> Iterator[Phrase]:
    for name, (_, *others) in tree.items():
        for text in {form for phrase in (name, *others) if phrase for form in (phrase, plural(phrase))}:
            yield Phrase(text, kind, (name,))


def _of_attributes(attributes: Mapping[str, Mapping[str, Mapping[str, list[str]]]]) -> Iterator[Phrase]:
    for axes in attributes.values():
        for axis, values in axes.items():
            for value, texts in values.items():
                for text in texts:
                    yield Phrase(text, axis, tuple(value.split("+")))


def plural(phrase: str) -> str:
    """Returns the regular plural of a phrase's last word.

    >>> plural("renal biopsy"), plural("mass"), plural("metastasis"), plural("cyst")
    ('renal biopsies', 'masses', 'metastases', 'cysts')
    """
    if phrase.endswith("sis"):
        return f"{phrase[:-2]}es"
    if phrase.endswith(("s", "x", "ch", "sh")):
        return f"{phrase}es"
    if phrase.endswith("y") and phrase[-2] not in "aeiou":
        return f"{phrase[:-1]}ies"
    return f"{phrase}s"


def _ancestors(name: str, parents: Mapping[str, str | None]) -> Iterator[str]:
    while (name := parents[name] or "") != "":
        yield name
