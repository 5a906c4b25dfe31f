"""What an image column holds is read in every form, or refused by name; nothing in it ends or hangs a build."""

import base64
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.image_files import encode
from vlm_core.data import image_cells
from vlm_core.data.image_cells import ImageError, cells_of
from vlm_core.data.image_folder import ImageFolder
from vlm_core.data.images import decode_image

PNG = encode(Image.effect_noise((12, 12), 90))
TEXT = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "cell",
    [
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        [*PNG],
        tuple(PNG),
        np.frombuffer(PNG, np.uint8),
        np.frombuffer(PNG, np.uint8).astype(np.int64),
        {"bytes": PNG, "path": "elsewhere.png"},
        {"bytes": [*PNG], "path": None},
        {"bytes": np.frombuffer(PNG, np.uint8)},
        {"bytes": TEXT},
        {"bytes": None, "path": "7.png"},
        {"bytes": b"", "path": "7.png"},
        {"bytes": float("nan"), "path": "7.png"},
        TEXT,
        f" {TEXT[:70]}\n{TEXT[70:]}\n",
        base64.urlsafe_b64encode(PNG).decode().rstrip("="),
        f"data:image/png;base64,{TEXT}",
        f"data:image/png;charset=x;base64,{TEXT}",
        "7.png",
        "7",
        7,
        7.0,
        np.int64(7),
    ],
)
def test_an_image_is_read_however_it_is_given(tmp_path: Path, cell: Any) -> None:
    (tmp_path / "7.png").write_bytes(PNG)
    assert [ImageFolder(tmp_path, anywhere=False).encoded(one) for one in cells_of(cell)] == [PNG]


def test_a_file_may_be_named_by_its_address_in_a_dataset_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(PNG)
    address = (tmp_path / "a b.png").as_uri()
    assert ImageFolder(tmp_path, anywhere=True).encoded(address) == PNG
    with pytest.raises(ImageError, match="by URL"):
        ImageFolder(tmp_path, anywhere=False).encoded(address)


@pytest.mark.parametrize("mode", ["L", "RGBA", "F", "I", "CMYK"])
def test_a_pillow_image_keeps_its_values(mode: str) -> None:
    image = Image.effect_noise((6, 6), 90).convert(mode)
    encoded = ImageFolder(None, anywhere=True).encoded(image)
    assert np.array_equal(np.asarray(decode_image(encoded)), np.asarray(decode_image(encode(image, "TIFF"))))


def test_pixels_are_an_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(decode_image(ImageFolder(None, anywhere=True).encoded(pixels))), pixels)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        *((nothing, "no image") for nothing in (None, "", "  ", b"", {}, float("nan"), np.array([]))),
        *(({"bytes": nothing, "path": nothing}, "no image") for nothing in (None, "", b"", float("nan"))),
        (True, "neither bytes nor a path"),
        (Path, "neither bytes nor a path"),
        (1.5, "is a number"),
        (float("inf"), "is a number"),
        ([300, -1, 2], "does not hold bytes"),
        (["a", "b"], "does not hold bytes"),  # of {"bytes": [...]}; the images of a list come one at a time
        (np.zeros((2, 2, 7)), "not one of pixels"),
        (TEXT[:90] + "!!" + TEXT[90:], "base64 text that is damaged"),
        (f"data:image/png;base64,{TEXT}%", "base64 text that is damaged"),
        ("data:image/svg+xml,%3Csvg/%3E", "not base64"),
        ("a" * 5000, "neither a path nor base64"),
        ("word " * 300, "neither a path nor base64"),
        ("\0", "NUL"),
        ("\ud800.png", "is missing"),
        ("https://host/image.png", "by URL"),
        ("s3://bucket/image.png", "by URL"),
        ("gone.png", "is missing"),
        ("folder", "is missing"),
        ("pipe", "is not a file"),
        ("/dev/zero", "is missing"),
        ("zero", "is not a file"),
        ("loop", "cannot be read"),
        ("hollow", "is empty"),
        ("/proc/self/environ", "is empty"),
        ("/proc/kmsg", "is empty|cannot be read|is missing"),
        ("large", "of more than"),
        ("file://[x/a.png", "image by URL"),
    ],
)
def test_cells_that_are_refused_by_name(tmp_path: Path, cell: Any, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "hollow").touch()
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(image_cells.MOST_BYTES + 1)
    folder = ImageFolder(tmp_path, anywhere=True)
    with pytest.raises(ImageError, match=reason) as caught:
        folder.encoded(cell)
    said = f"{caught.value} {caught.value.detail}"
    assert len(said) < 400
    assert TEXT[:40] not in said
    assert said.isprintable()


def test_a_list_of_numbers_is_one_image_or_names_of_images() -> None:
    assert cells_of([*PNG]) == [[*PNG]]
    assert cells_of([66, 77, 80]) == [66, 77, 80]
    assert cells_of([*range(40)]) == [*range(40)]
    assert cells_of(np.array(["a.png", "b.png"], object)) == ["a.png", "b.png"]
    assert cells_of(None) == cells_of([]) == []


@pytest.mark.parametrize("path", ["../image.png", "/etc/hostname", "link.png", "linked/image.png", "image"])
def test_somebody_elses_dataset_reads_nothing_outside_of_itself(tmp_path: Path, path: str) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    (tmp_path / "image.png").write_bytes(PNG)
    (inside / "link.png").symlink_to(tmp_path / "image.png")
    (inside / "linked").symlink_to(tmp_path)
    (inside / "image.png").symlink_to("../image.png")
    with pytest.raises(ImageError, match="leads out"):
        ImageFolder(inside, anywhere=False).encoded(path)
    assert ImageFolder(inside, anywhere=True).encoded("link.png") == PNG  # whoever owns the table may link


def test_the_hubs_own_links_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").write_bytes(PNG)
    (tmp_path / "secret").write_bytes(PNG)
    (snapshot / "image.png").symlink_to("../../blobs/abc")
    (snapshot / "other.png").symlink_to("../../secret")
    folder = ImageFolder(snapshot, anywhere=False)
    assert folder.encoded("image.png") == PNG
    with pytest.raises(ImageError, match="leads out"):
        folder.encoded("other.png")
