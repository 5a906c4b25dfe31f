"""The baseline without a model: the commonest answer to questions of the same words, kind, or to all."""

from vlm_core.data.commonest import CommonestAnswers

TRAINING = [
    ("Which side?", "Left"),
    ("Which side?", "Right."),
    ("which  side", "right"),
    ("Any mass?", "Yes."),
    ("Any gas?", "Yes, some"),
    ("Any lesion?", "yes"),
    ("Any air?", "No"),
    ("What is shown?", "A mass."),
]


def answer(question: str, reference: str) -> str:
    commonest = CommonestAnswers()
    for row in TRAINING:
        commonest.add(*row)
    return commonest.answer(question, reference)


def test_the_nearest_like_answers() -> None:
    assert answer("WHICH side!", "Left") == "Right."  # the same words, in the first spelling
    assert answer("Any mass?", "No") == "Yes."  # its own answer comes before those of other yes/no questions
    assert answer("Any fracture?", "No.") == "Yes."  # never asked: the commonest of yes/no questions
    assert answer("What else?", "Nothing") == "Right."  # the commonest of open questions


def test_equally_common_answers_come_by_alphabet_and_nothing_gives_nothing() -> None:
    commonest = CommonestAnswers()
    assert commonest.answer("Which side?", "Left") == ""
    commonest.add("Which side?", "Right")
    assert commonest.answer("Which side?", "Left") == "Right"
    commonest.add("Which side?", "Left")
    assert commonest.answer("Which side?", "Left") == "Left"
    assert commonest.answer("Any mass?", "Yes") == "Left"  # no yes/no question was counted: all questions
