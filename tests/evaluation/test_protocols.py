"""Protocols score as the published scripts do. Their numbers for these pairs came from running those scripts."""

from typing import get_args

import pytest

from vlm_core.config.evaluation import ProtocolName
from vlm_core.data.conversation import answer_turn, last_question, question_turn, turn_text
from vlm_core.evaluation.metrics import ScoredAnswer
from vlm_core.evaluation.protocols import PROTOCOLS, score_protocol, with_request
from vlm_core.evaluation.scores import Question, question_of

PAIRS = [  # (reference, answer)
    ("Yes", "Yes."), ("Yes", "No"), ("No", "There is no abnormality."), ("no", "No, the lungs are clear"),
    ("yes", "It is abnormal"), ("Yes", "Unclear"), ("No", "yes and no"), ("no", "**Answer:** no"), ("Yes", " yes\n"),
    ("yes", "The answer is yes."), ("Left lung", "left lung"), ("Left lung", "The left lung."),
    ("Two", "There are 2 lesions"), ("T2-weighted", "T2 weighted"), ("T2-weighted MRI, axial", "axial MRI"),
    ("3.5 cm", "3.5 cm mass"), ("liver, spleen", "Liver"), ("CT", "ct"), ("Right upper lobe", "right right lower lobe"),
    ("None", "0"), ("1,200 mm", "1,200 mm"), ("Pneumonia", "final answer: pneumonia"),
    ("glioma (grade IV)", "glioma grade iv"), ("an infarct", "infarct"), ("mass", ""),
    ("Diffuse large B-cell lymphoma", "B cell lymphoma of the spleen"), ("chest x-ray", "Chest X-ray."),
    ("brain/skull", "skull"), ("five", "5"), ("The answer is unknown", "answer is unknown"),
]  # fmt: skip
PUBLISHED = {
    "vqa_rad_llava_med": {"closed_accuracy": 0.7, "open_recall": 0.8425, "open_f1": 0.8025},
    "vqa_med_2020": {"accuracy": 0.4333},
    "vqa_rad_medevalkit": {
        "accuracy": 0.3, "closed_accuracy": 0.6, "open_exact_match": 0.15, "open_recall": 0.4167, "open_f1": 0.4183,
    },
}  # fmt: skip


def question(number: int, reference: str) -> Question:
    conversation = [question_turn("What is it?", [0]), answer_turn(reference)]
    row = {"example_id": f"e{number}", "case_id": f"c{number}", "mode": "all", "conversation": conversation}
    return question_of(row, ["0"], {}, set(), set())


def scores(name: str) -> dict[str, float]:
    questions = [question(number, reference) for number, (reference, _) in enumerate(PAIRS)]
    found = score_protocol(name, questions, {"model": [ScoredAnswer(answer) for _, answer in PAIRS]}, 0)
    return {metric: score["value"] for metric, score in found["scores"]["model"].items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_scores_as_the_published_script(name: str) -> None:
    assert scores(name) == PUBLISHED[name]


def test_slake_compares_capital_yes_and_no_as_texts() -> None:
    """The script looks into sentences only for "yes" and "no" in small letters. Ten of the pairs are closed."""
    assert scores("slake_medevalkit")["closed_accuracy"] == pytest.approx(0.4)
    assert scores("vqa_rad_medevalkit")["closed_accuracy"] == pytest.approx(0.6)


def test_pathvqa_and_medpix_have_the_scores_of_the_report() -> None:
    path, own = scores("pathvqa"), scores("medpix")
    share_open = 20 / 30
    assert path["accuracy"] == pytest.approx(own["exact_match"], abs=1e-3)
    overall = path["open_exact_match"] * share_open + path["closed_accuracy"] * (1 - share_open)
    assert overall == pytest.approx(path["accuracy"], abs=1e-3)
    assert 0 < path["open_bleu_3"] < path["open_bleu_1"] < 1


def test_a_request_follows_the_question_of_its_kind() -> None:
    def asked(name: str, reference: str) -> str:
        turns = [question_turn("What is it?", [0]), answer_turn(reference)]
        changed = with_request(name, turns, {"Side?": ["left", "right"]})
        assert last_question(changed)[1] == reference
        assert changed[0]["content"][0] == turns[0]["content"][0]  # the image
        return turn_text(changed[0])

    assert asked("medpix", "CT") == "What is it?"
    assert asked("slake_medevalkit", "CT") == "What is it?\nPlease answer the question concisely."
    assert asked("slake_medevalkit", "No") == "What is it?\nAnswer the question using a single word or phrase."
    assert asked("vqa_rad_medevalkit", "No") == "What is it?\nPlease output 'yes' or 'no'(no extra output)."


def test_the_config_names_the_protocols() -> None:
    assert list(get_args(ProtocolName)) == list(PROTOCOLS)
    for protocol in PROTOCOLS.values():
        assert protocol.source
        assert protocol.leaves_out
        assert not protocol.leaves_out.endswith(".")
