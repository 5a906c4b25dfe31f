"""How published scripts score one answer; `protocols.py` names them.

Each function follows its script in what it counts, also where the script is odd: their numbers are to be comparable.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping

from vlm_core.data.closed_questions import YES_NO_ANSWERS, normalize
from vlm_core.evaluation.metrics import ColumnsOf, Expected, ScoredAnswer
from vlm_core.evaluation.text_scores import bleu_counts, word_scores

Values = Mapping[str, float]
Score = Callable[[str, str], Values]  # (answer, reference) -> values that can be added up


def is_yes_no(expected: Expected) -> bool:
    """Returns whether the reference is yes or no."""
    return normalize(expected.reference) in YES_NO_ANSWERS


def divided(is_closed: Callable[[Expected], bool], closed: Score, open_: Score) -> ColumnsOf:
    """Returns the columns of closed and open questions: their names end with `_closed` or `_open`.

    Those of the other kind are 0. The columns "closed" and "open" count the questions.
    """

    def columns(answer: ScoredAnswer, expected: Expected) -> Values:
        is_one = is_closed(expected)
        found = {"closed": float(is_one), "open": float(not is_one)}
        for kind, score in (("closed", closed), ("open", open_)):
            values = score(answer.text, expected.reference)
            found |= {f"{name}_{kind}": value * found[kind] for name, value in values.items()}
        return found

    return columns


# LLaVA-Med and VQA-Med compare words as VQA v2 does.
_PUNCTUATION = ';/[]"{}()=+\\_->@<`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}


def vqa_words(text: str) -> list[str]:
    """Returns a text's words as VQA v2's evaluation compares them: numbers as digits, no punctuation, no articles."""
    plain = text = text.lower()
    has_thousands = re.search(r"\d,\d", text)
    for mark in _PUNCTUATION:
        is_beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if is_beside_space or has_thousands else " ")
    words = re.sub(r"\.(?!\d)", "", plain).split()
    return [_DIGITS.get(word, word) for word in words if word not in ("a", "an", "the")]


def llava_closed(answer: str, reference: str) -> Values:
    said, expected = (" ".join(vqa_words(text)) for text in (answer, reference))
    return {"right": float(("yes" in said or "no" in said) and expected in said)}


def llava_open(answer: str, reference: str) -> Values:
    """Returns recall and F1 of words, in which a common word counts as often as the answer has it."""
    said, expected = Counter(vqa_words(answer)), Counter(vqa_words(reference))
    common = sum(count for word, count in said.items() if word in expected)
    missed = sum(count for word, count in expected.items() if word not in said)
    if not common:
        return {"recall": 0.0, "f1": 0.0}
    recall, precision = common / (common + missed), common / said.total()
    return {"recall": recall, "f1": 2 * precision * recall / (precision + recall)}


def med_columns(answer: ScoredAnswer, expected: Expected) -> Values:
    """Returns whether an answer has the words of the reference, or of one of several that `#` separates."""
    said = vqa_words(answer.text)
    return {"right_med": float(any(vqa_words(one) == said for one in expected.reference.split("#")))}


# MedEvalKit compares whole texts.
_ANSWER_MARKS = ("**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:", "final answer")


def _after_mark(answer: str) -> str:
    text = answer.lower()
    for mark in _ANSWER_MARKS:
        text = text.rsplit(mark, 1)[-1]
    return text


def kit_closed(answer: str, reference: str) -> Values:
    """Compares texts; yes and no count within a sentence if it has only one of them."""
    said, expected = _after_mark(answer).replace("\n", "").replace(".", ""), reference.lower()
    if reference not in YES_NO_ANSWERS:
        return {"right": float(said == expected)}
    return {"right": float((("yes" in said) != ("no" in said)) and expected in said)}


def kit_yes_no(answer: str, reference: str) -> Values:
    return kit_closed(answer, reference.lower().strip())


def kit_open(answer: str, reference: str) -> Values:
    text, expected = _after_mark(answer), reference.lower()
    said, words = set(text.split()), set(expected.split())
    common = len(said & words)
    recall, precision = (common / max(1, len(side)) for side in (words, said))
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    return {"right": float(text == expected), "recall": recall, "f1": f1}


def path_closed(answer: str, reference: str) -> Values:
    return {"right": float(normalize(answer) == normalize(reference))}


def path_open(answer: str, reference: str) -> Values:
    return {
        **path_closed(answer, reference),
        "f1": word_scores(answer, reference).f1,
        **bleu_counts(answer, reference),
    }
