"""A chat template that loops or grows without end is one error, in any thread; a good one costs nothing."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vlm_core.data import chat_template, limits
from vlm_core.data.chat_template import render
from vlm_core.data.limits import OutOfTimeError, time_limit

STRUCTURE = (("user", ("text",)),)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = """{% set kept = namespace(text='xx') %}
{% for _ in range(60) %}{% set kept.text = kept.text + kept.text %}{% endfor %}"""
GROWING = "{% for a in range(99999) %}{{ 'x' * 100 }}{% endfor %}"


class Processor:
    """A processor that renders a template as transformers does, in a sandbox."""

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def apply_chat_template(self, conversation: Any, **options: Any) -> str:
        # Compiling evaluates constant expressions.
        return ImmutableSandboxedEnvironment().from_string(self.chat_template).render(messages=conversation, **options)


def rendered(template: str) -> str:
    return render(Processor(template), STRUCTURE, iter(["a question"]), for_generation=True)


def test_a_good_template_is_rendered() -> None:
    assert rendered("{{ messages[0]['content'][0]['text'] }}!") == "a question!"


def test_a_template_that_grows_is_refused() -> None:
    with pytest.raises(ValueError, match="makes 9,999,900 characters of one conversation; at most 1,000,000"):
        rendered(GROWING)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'x' * 10000000000 }}", "takes more than 1 GB of memory"),
        ("{{ 'x'.ljust(10000000000) }}", "takes more than 1 GB of memory"),
        ("{{ '{:10000000000d}'.format(1) }}", "takes more than 1 GB of memory"),
        ("{{ 'x'|center(10000000000) }}", "takes more than 1 GB of memory"),
        ("{{ [1]|batch(10000000000, 'x')|list }}", "takes more than 1 GB of memory|OverflowError"),
        (DOUBLING, "takes more than 1 GB of memory"),
        ("{{ 10 ** 10 ** 10 }}", "has the power operator"),
        ("{% set a = 9**9 %}", "has the power operator"),
        ("{{ 1 + 'a' }}", r"fails on a conversation \(TypeError: "),
        ("{{ 1 / 0 }}", r"fails on a conversation \(ZeroDivisionError: "),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"fails on a conversation \(RecursionError: "),
    ],
)
def test_what_fills_the_memory_or_fails_is_one_error(template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"the model's chat template ({reason})"):
        rendered(template)
    assert rendered("as before") == "as before"


def test_stars_in_texts_and_calls_are_no_powers() -> None:
    assert rendered("**bold** {{ dict(a=1, **{'b': 2})['b'] }} {{ dict(**{'b': 2})['b'] }} 2**3") == "**bold** 2 2 2**3"


def in_a_thread(call: Callable[[], Any]) -> Any:
    found: list[Any] = []

    def keep() -> None:
        try:
            found.append(call())
        except ValueError as error:
            found.append(error)

    thread = threading.Thread(target=keep)
    thread.start()
    thread.join()
    return found[0]


def test_a_template_that_loops_is_stopped_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"ran for more than 0\.2 s"):
        rendered(ENDLESS)
    assert "ran for more than" in str(in_a_thread(lambda: rendered(ENDLESS)))


def swallow_one() -> None:
    """Loops without end, as Python does after it swallowed an error that arrived while it collected garbage."""
    for swallowed in (True, False):
        try:
            while True:
                pass
        except OutOfTimeError:
            if not swallowed:
                raise


def test_a_limit_that_is_swallowed_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AGAIN", 0.01)
    with pytest.raises(OutOfTimeError), time_limit(0.01):
        swallow_one()


def test_nothing_is_raised_after_the_block() -> None:
    for _ in range(200):
        try:
            with time_limit(0.0005):
                time.sleep(0.0005)
        except OutOfTimeError:
            continue
    time.sleep(0.01)  # nothing arrives here
