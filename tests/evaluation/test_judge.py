"""A judge behind an endpoint, against a stand-in that fails as real ones do: slow, limited, broken, or unreadable."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import cohen_kappa_score

from tests.endpoint import StandIn, endpoint
from vlm_core import judge as command
from vlm_core.evaluation.judge import VERDICTS, Judge, judge_answers, score, summary
from vlm_core.evaluation.judged import judged_section
from vlm_core.files import read_json, write_json


def reply(body: dict[str, Any]) -> tuple[str, str]:
    """A judge that says whether answer and reference are equal. Some answers make it fail, as their names say."""
    texts = json.loads(body["messages"][1]["content"])
    found = {"hedged": "correct or wrong", "by order": "partly" if list(texts).index("answer") == 1 else "unsafe"}
    answer = texts["answer"]
    return answer, "correct" if answer == texts["reference"] else found.get(answer, "It is **wrong**.")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    with endpoint(reply) as server:
        monkeypatch.setenv("MEDPIX_JUDGES", f"https://elsewhere/v1, {server.url}/")
        monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
        yield server


def asked(server: StandIn) -> list[dict[str, str]]:
    """Returns what the judge was asked."""
    return [json.loads(body["messages"][1]["content"]) for body in server.asked]


def record(number: int, reference: str, answer: str, base: str = "x") -> dict[str, Any]:
    return {"example_id": f"e{number}", "case_id": f"c{number}", "question": "What is seen?", "reference": reference,
            "prediction": answer, "prediction_base": base}  # fmt: skip


def test_both_orders_are_judged_once_and_faults_are_survived(server: StandIn) -> None:
    answers = ("cyst", "mass", "slow", "limited", "garbage", "hedged", "by order")
    records = [record(number, "cyst", answer) for number, answer in enumerate(answers)]
    judge = Judge("m", server.url, timeout=0.3, retries=2)
    expected = ["correct", "wrong", "wrong", "wrong", None, None, "unsafe"]
    assert judge_answers(judge, records, ["model"]) == {"model": expected}
    assert {tuple(texts) for texts in asked(server)} == {("question", "reference", "answer"),
                                                        ("question", "answer", "reference")}  # fmt: skip
    before = len(server.asked)
    assert judge_answers(judge, records, ["model"]) == {"model": expected}
    assert len(server.asked) == before


def test_a_judge_that_fails_for_good_is_named_and_replies_are_kept(server: StandIn) -> None:
    judge = Judge("m", server.url, retries=1)
    records = [record(0, "cyst", "cyst"), record(1, "cyst", "down")]
    with pytest.raises(
        ValueError, match=rf"the judge m at {server.url} failed \(InternalServerError: .*asks for the rest"
    ):
        judge_answers(judge, records, ["model"])
    before = Counter(texts["answer"] for texts in asked(server))
    assert judge_answers(judge, records[:1], ["model"]) == {"model": ["correct"]}
    assert Counter(texts["answer"] for texts in asked(server)) == before


def test_shares_differences_and_the_agreement_with_people(server: StandIn) -> None:
    records = [record(n, "cyst", "cyst" if n % 4 else "mass", base="mass") for n in range(40)]
    labels = {f"e{n}": "correct" if n % 3 else "wrong" for n in range(24)}
    result = score(Judge("m", server.url), records, ["model", "base"], labels)
    assert result["scores"]["model"]["correct"]["value"] == 0.75
    assert result["scores"]["base"]["wrong"]["value"] == 1.0
    assert result["differences"]["base"]["value"] == 0.75
    of_judge = [0 if n % 4 else 2 for n in range(24)]
    of_people = [0 if n % 3 else 2 for n in range(24)]
    expected = cohen_kappa_score(of_judge, of_people, labels=range(len(VERDICTS)), weights="quadratic")
    assert result["agreement"]["kappa"]["value"] == pytest.approx(expected, abs=1e-4)
    assert result["tokens"] == {"sent": 10 * len(server.asked), "received": len(server.asked)}
    lines = list(summary(result))
    assert re.search(r"24 answers: kappa [+-]0\.\d\d \[", lines[0])
    assert "model: correct 75% [" in lines[1]
    unchecked = summary(result | {"agreement": {"answers": 0, "kappa": None}})
    assert "no person has checked this judge" in next(unchecked)


def test_the_command_checks_its_input_and_writes_the_verdicts(server: StandIn, tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_pylist([record(n, "cyst", "cyst") for n in range(10)]), tmp_path / "predictions.parquet"
    )
    evaluated = {"compared": {"base": "base"}, "model_fingerprint": "m", "seed": 0}
    write_json(tmp_path / "result.json", evaluated)
    (tmp_path / "report.html").write_text(f"<p>before</p>{judged_section(evaluated, tmp_path)}<p>after</p>")
    labels = tmp_path / "labels.csv"
    given = {
        "evaluation": tmp_path,
        "model": "m",
        "url": server.url,
        "also": ["base"],
        "questions": 4,
        "labels": labels,
    }

    def run(**changes: Any) -> None:
        command.main(SimpleNamespace(**given | changes))  # type: ignore[arg-type]

    labels.write_text("example_id,verdict\ne9,Correct\n")
    with pytest.raises(SystemExit, match=r"nowhere has no finished evaluation \(result.json\): run .* first"):
        run(evaluation=tmp_path / "nowhere")
    run()
    found = read_json(tmp_path / "judge.json")
    assert set(found["verdicts"]["base"]) == {"e9", "e0", "e3", "e6"}
    assert found["verdicts"]["model"]["e9"] == "correct"
    # The report has the verdicts, with people's agreement beside them, once however often they are given.
    run()
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<p>before</p>")
    assert page.endswith("<p>after</p>")
    assert page.count("<h2>Verdicts of a judge</h2>") == 1
    assert "<th>this model</th><td>100%</td>" in page
    assert "<th>base model</th><td>0%</td>" in page
    assert "agreement with people on 1 answers: unknown, since both gave one verdict only" in page
    # An evaluation of another model does not show them.
    assert "Verdicts" in judged_section(evaluated, tmp_path)
    assert "Verdicts" not in judged_section(evaluated | {"model_fingerprint": "n"}, tmp_path)
    for changes, message in (
        ({"url": "http://127.0.0.1:1/v1"}, "answers may not be sent to http://127.0.0.1:1/v1: the machine's operator"),
        ({"also": ["other"]}, "--also other: this evaluation has the answers of base"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(**changes)
    labels.write_text("example_id,verdict\ne1,good\n")
    with pytest.raises(SystemExit, match="the verdict 'good' of e1 is none of correct, partly, wrong, unsafe"):
        run()
    labels.write_text("example,label\ne1,good\n")
    with pytest.raises(SystemExit, match="needs the columns example_id and verdict"):
        run()
