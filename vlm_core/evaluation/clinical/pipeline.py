"""Finds the lexicon's phrases in a text, and whether each is denied or uncertain.

negspacy (NegEx, Chapman et al. 2001) finds what a negation covers, on a blank English pipeline of spaCy: no model is
downloaded.
"""

import re
from collections import defaultdict
from functools import cache
from typing import Any

from vlm_core.evaluation.clinical.lexicon import IGNORED, Phrase, lexicon

SPANS = "clinical"  # spaCy's name for the phrases that were found
# A line starts a sentence if it is a list item, begins with a capital, or follows an empty line. Others continue one.
_NEW_SENTENCE = re.compile(r"\n(?=\s*(?:\n|[-*•+]|\d+[.)]|[A-Z]))")


def sentences(text: str) -> list[tuple[Any, list[tuple[Any, Phrase]]]]:
    """Returns each sentence of a text with its phrases, as spans of spaCy; the longest ones if they overlap.

    `span._.denied` and `span._.uncertain` say whether a phrase is denied or weakened.
    """
    parts = [" ".join(part.split()) for part in _NEW_SENTENCE.split(text)]
    return [(sentence, _spans(sentence)) for part in parts if part for sentence in _pipeline()(part).sents]


def _spans(sentence: Any) -> list[tuple[Any, Phrase]]:
    """Returns the phrases in a sentence; the longest ones if they overlap."""
    from spacy.util import filter_spans

    return [(span, phrase) for span in filter_spans(_inside(sentence)) for phrase in _phrases()[span.text.lower()]
            if phrase.kind != IGNORED]  # fmt: skip


def _inside(sentence: Any) -> list[Any]:
    return [span for span in sentence.doc.spans[SPANS] if sentence.start <= span.start and span.end <= sentence.end]


@cache
def _phrases() -> dict[str, list[Phrase]]:
    found: dict[str, list[Phrase]] = defaultdict(list)
    for phrase in lexicon().phrases:
        found[phrase.text].append(phrase)
    return found


@cache
def _pipeline() -> Any:
    """Returns a spaCy pipeline whose documents have the lexicon's phrases as spans, marked as denied or uncertain."""
    import spacy  # takes two seconds
    from negspacy.negation import Negex  # noqa: F401 - registers the pipeline component "negex"

    _register()
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.add_pipe("clinical_phrases")
    for name, terms in _terms().items():
        options = {"neg_termset": terms, "extension_name": name, "span_keys": [SPANS]}
        nlp.add_pipe("negex", name=name, config=options)
    return nlp


def _terms() -> dict[str, dict[str, list[str]]]:
    """Returns the words of negspacy's two components, in the form that it reads."""
    from negspacy.termsets import termset

    scope, known = lexicon().scope, termset("en_clinical").get_patterns()
    ends = [word for word in {*known["termination"], *scope["ends"]} if word != "involving"]
    denied, uncertain = scope["denied"], scope["uncertain"]
    doubts = {*uncertain["before"], *uncertain["after"]}
    return {
        "denied": {
            "pseudo_negations": [*known["pseudo_negations"], *denied["not_denied"]],
            "preceding_negations": [*{*known["preceding_negations"], *denied["before"]} - doubts],
            "following_negations": [*{*known["following_negations"], *denied["after"]} - doubts],
            "termination": ends,
        },
        "uncertain": {
            "pseudo_negations": [],
            "preceding_negations": uncertain["before"],
            "following_negations": uncertain["after"],
            "termination": ends,
        },
    }


def _register() -> None:
    from spacy.language import Language
    from spacy.matcher import PhraseMatcher

    @Language.factory("clinical_phrases")
    def create(nlp: Language, name: str) -> Any:
        matcher = PhraseMatcher(nlp.vocab, attr="LOWER")
        matcher.add(SPANS, [nlp.make_doc(text) for text in _phrases()])

        def find(doc: Any) -> Any:
            doc.spans[SPANS] = matcher(doc, as_spans=True)
            return doc

        return find
