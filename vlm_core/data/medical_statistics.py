"""Counts what the headers of a dataset's medical images say, and warns of what may affect training."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

COMMON = 12  # most frequent values of each kind to list
COUNTED = {
    "window": "Windows",
    "modality": "Modalities",
    "manufacturer": "Manufacturers",
    "slice_thickness": "Slice thickness, mm",
    "spacing": "Spacing of rows and columns, mm",
    "bits": "Bits of a stored value",
    "format": "File formats",
}
FLAGS = ("uneven", "orientation_unknown")
DEEP_MODES = ("I", "F")


def medical_statistics(encoded_facts: Iterable[str | None]) -> dict[str, Any]:
    """Returns counts: of medical images, of the values in their headers, and of tags with personal data, by name."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    flags, tags, images, left_out = Counter[str](), Counter[str](), 0, 0
    for facts in (json.loads(one) for one in encoded_facts if one):
        images += 1
        for name, counter in counts.items():
            if facts.get(name) is not None:
                counter[_text(facts[name])] += 1
        flags.update(flag for flag in FLAGS if facts.get(flag))
        tags.update(facts.get("personal_tags", ()))
        left_out += facts.get("shown", 1) < facts.get("slices", 1)
    return {
        "images": images,
        "counts": {name: dict(counter.most_common(COMMON)) for name, counter in counts.items()},
        "flags": {flag: flags[flag] for flag in FLAGS},
        "personal_tags": dict(tags.most_common()),
        "of_shortened_volumes": left_out,
    }


def burnt_in_text(images: Iterable[tuple[str | None, bool]]) -> dict[str, int]:
    """Returns how many images have text burnt in by their header, by their pixels, and by either.

    `images` has the facts of each header and whether the pixels seem to show text.
    """
    signs = [(bool(facts and json.loads(facts).get("burnt_in")), pixels) for facts, pixels in images]
    return {
        "by_header": sum(header for header, _ in signs),
        "by_pixels": sum(pixels for _, pixels in signs),
        "images": sum(map(any, signs)),
    }


def medical_findings(found: Mapping[str, Any]) -> list[tuple[Any, str]]:
    """Returns (whether it applies, the warning) for each possible warning about medical images."""
    medical, texts = found["medical"], found["personal_texts"]
    windows, flags, tags = medical["counts"]["window"], medical["flags"], medical["personal_tags"]
    burnt_in = found["burnt_in_text"]
    like_ct = sum(count for words, count in windows.items() if "like HU" in words)
    unwindowed = sum(count for words, count in windows.items() if "without a window" in words)
    deep = sum(n for mode, n in found["images"]["modes"].items() if mode in DEEP_MODES or mode.startswith("I;16"))
    return [
        (
            like_ct,
            f"{like_ct} images have values like HU but no modality, and are shown by percentiles, which can hide a "
            "finding: set dataset.images.window, or dataset.images.modality_column.",
        ),
        (
            unwindowed,
            f"{unwindowed} images of more than 8 bits are shown without a window, which can hide a finding: set "
            "dataset.images.window.",
        ),
        (
            deep,
            f"{deep} images of more than 8 bits have no header that says a window: they are shown by percentiles 0.5 "
            "to 99.5. dataset.images.window=LEVEL/WIDTH sets one in their own values.",
        ),
        (
            tags,
            f"DICOM headers name persons, places or dates (they are not stored): "
            f"{', '.join(f'{name} in {count}' for name, count in tags.items())}.",
        ),
        (
            texts,
            "Questions or answers may hold personal data, which is trained on: "
            f"{', '.join(f'{kind} in {count}' for kind, count in texts.items())}. Check them.",
        ),
        (
            burnt_in["images"],
            f"{burnt_in['images']} images may have text burnt in, such as a name ({burnt_in['by_header']} by their "
            f"header, {burnt_in['by_pixels']} by their pixels). Look at them; the data report shows some.",
        ),
        (
            medical["of_shortened_volumes"],
            f"{medical['of_shortened_volumes']} images are slices of volumes that are not shown in full: see "
            "dataset.images.slices.",
        ),
        (flags["uneven"], f"{flags['uneven']} images are of series with uneven distances: slices may be missing."),
        (
            flags["orientation_unknown"],
            f"{flags['orientation_unknown']} NIfTI images do not say their orientation: left and right may be "
            "mirrored.",
        ),
    ]


def signs_of_personal_data(found: Mapping[str, Any]) -> int:
    """Returns how many images and texts that a model trains on have a sign of personal data."""
    return found["burnt_in_text"]["images"] + sum(found["personal_texts"].values())


def _text(value: Any) -> str:
    return " x ".join(f"{number:.3g}" for number in value) if isinstance(value, list) else str(value)
