"""Which questions count as closed."""

from vlm_core.data.closed_questions import MAX_ANSWERS, MIN_ASKED, ClosedQuestionCounter, closed_kind, normalize


def count(*rows: tuple[str, str]) -> dict[str, list[str]]:
    counter = ClosedQuestionCounter()
    for question, answer in rows:
        counter.add(question, answer)
    return counter.closed_questions()


def test_normalize() -> None:
    assert normalize(" The left,  lower-lobe! ") == "left lowerlobe"


def test_few_short_answers_asked_often_are_closed() -> None:
    rows = [("Which side?", ("Left", "right.")[i % 2]) for i in range(MIN_ASKED)]
    assert count(*rows) == {"Which side?": ["left", "right"]}


def test_rare_constant_long_or_varied_answers_are_open() -> None:
    rare = [("Rare?", ("Left", "Right")[i % 2]) for i in range(MIN_ASKED - 1)]
    constant = [("Constant?", "Brain")] * MIN_ASKED
    long = [("Long?", ("a mass", "a very large mass here")[i % 2]) for i in range(MIN_ASKED)]
    varied = [("Varied?", f"number {i % (MAX_ANSWERS + 1)}") for i in range(MIN_ASKED)]
    assert count(*rare, *constant, *long, *varied) == {}


def test_kinds() -> None:
    assert closed_kind("Which side?", "Left", {"Which side?": ["left", "right"]}) == "Which side?"
    assert closed_kind("Any mass?", "Yes.", {}) == "yes/no"
    assert closed_kind("What is shown?", "A mass.", {}) is None
