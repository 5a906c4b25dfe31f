"""The shuffled control shows every question an image of another case."""

from vlm_core.generation.controls import shuffle_between_cases


def example(case: str, image: int) -> dict:
    return {"case_id": case, "conversation": [{"role": "user", "content": [{"type": "image", "image": image}]}]}


def test_every_image_is_replaced_by_one_of_another_case() -> None:
    case_of = {0: "a", 1: "a", 2: "b", 3: "c", 4: "c", 5: "c"}
    mapping = shuffle_between_cases([example(case, image) for image, case in case_of.items()], seed=3)
    assert mapping is not None
    assert mapping.keys() == case_of.keys()
    assert all(case_of[image] != case_of[shown] for image, shown in mapping.items())


def test_one_case_alone_has_no_control() -> None:
    assert shuffle_between_cases([example("a", 0), example("a", 1)], seed=3) is None
