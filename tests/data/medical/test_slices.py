"""How the slices of a volume are chosen: by rule, or by the names in a column."""

import pytest

from tests.dicom_files import series
from vlm_core.config import ImagesConfig
from vlm_core.data.medical.errors import MedicalImageError
from vlm_core.data.medical.reader import MedicalReader
from vlm_core.data.medical.slices import choose


@pytest.mark.parametrize(
    ("rule", "count", "chosen"),
    [
        ("auto", 4, [0, 1, 2, 3]),
        ("all", 3, [0, 1, 2]),
        ("every 2", 5, [0, 2, 4]),
        ("2 evenly", 8, [2, 6]),
        ("1 evenly", 9, [4]),
        ("9 evenly", 3, [0, 1, 2]),
        ("2:4", 9, [2, 3]),
        ("2:99", 4, [2, 3]),
    ],
)
def test_rules(rule: str, count: int, chosen: list[int]) -> None:
    assert choose(count, rule) == chosen


def test_no_volume_is_cut_silently() -> None:
    assert len(choose(300, "auto")) == 85
    assert len(choose(300, "every 4")) == 75
    for rule in ("all", "every 3", "90 evenly", "0:100"):
        with pytest.raises(MedicalImageError, match="more than 85 slices"):
            choose(300, rule)
    with pytest.raises(MedicalImageError, match="no slice"):
        choose(4, "7:9")


@pytest.mark.parametrize("rule", ["some", "every 0", "0 evenly", "4:4", "5:2", "every", "-1:3", ""])
def test_other_rules_are_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="is not a rule for slices"):
        ImagesConfig(slices=rule)


def test_a_column_names_slices_by_instance_number() -> None:
    files, reader = series([5, -5, 0], [50, 0, 25]), MedicalReader(ImagesConfig(window="25/60"))
    assert reader.open(files, slices=["1"]).pictures == reader.open([files[0]]).pictures
    assert len(reader.open(files, slices=["3", "2"]).pictures) == 2
    with pytest.raises(MedicalImageError, match="no slice has the name"):
        reader.open(files, slices=["4"])
    doubled = [files[0], *series([9], [1])]
    with pytest.raises(MedicalImageError, match="several slices have one name"):
        reader.open(doubled, slices=["1"])


def test_facts_say_how_many_slices_are_shown() -> None:
    facts = MedicalReader(ImagesConfig(slices="every 2")).open(series([0, 1, 2], [0, 1, 2])).facts
    assert (facts["slices"], facts["shown"], facts["modality"]) == (3, 2, "CT")
