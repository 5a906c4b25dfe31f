"""Opens DICOM files, and rejects those that cannot be shown. No message contains a value from the file."""

import io
import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlm_core.data.medical.errors import MedicalImageError, MissingPackageError, package
from vlm_core.data.medical.volumes import MOST_BYTES, require_size

PREAMBLE = 128
PREFIX = b"DICM"
DEFLATED = b"1.2.840.10008.1.2.1.99"
HEADERLESS = (b"\x08\x00", b"\x02\x00")  # without a prefix, a file begins with an element of group 8 or 2
ENVELOPED = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03"  # the object identifier of CMS's encrypted data
PIXEL_ATTRIBUTES = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
REPORTS = ("1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.104.")  # structured and encapsulated
SEGMENTATION = ("1.2.840.10008.5.1.4.1.1.66.",)
DIRECTORY = "1.2.840.10008.1.3.10"
COLOURS = (
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_ICT",
    "YBR_RCT",
    "YBR_PARTIAL_420",
    "YBR_PARTIAL_422",
    "PALETTE COLOR",
)
GREYS = ("MONOCHROME1", "MONOCHROME2")


def is_dicom(head: bytes) -> bool:
    """Returns whether a file that begins with these bytes (132 at least) is a DICOM file with its usual prefix."""
    return head[PREAMBLE : PREAMBLE + 4] == PREFIX


def is_headerless(head: bytes) -> bool:
    """Returns whether bytes begin as a DICOM file without a prefix may: with a low element of group 8 or 2."""
    return head[:2] in HEADERLESS and head[2:4] < b"\x30\x00"


def is_encrypted(head: bytes) -> bool:
    """Returns whether a file that begins with these bytes is a DICOM file inside an encrypted envelope (CMS)."""
    return head[:1] == b"\x30" and ENVELOPED in head[:64]


def read_dicom(content: bytes) -> Any:
    """Returns the pydicom dataset of a DICOM file, pixels not yet decoded.

    Raises MedicalImageError for bytes that are not a DICOM file, or damaged.
    """
    pydicom = package("pydicom")
    if is_encrypted(content[:64]):
        raise MedicalImageError("encrypted DICOM file")
    if not is_dicom(content[: PREAMBLE + 4]) and not is_headerless(content[:4]):
        raise MedicalImageError("file that is not DICOM")
    _require_bounded(content)
    with decoder_errors("DICOM file is damaged"):
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        if not is_dicom(content[: PREAMBLE + 4]) and "SOPClassUID" not in dataset:
            raise MedicalImageError("file that is not DICOM")
        dataset.get("SOPClassUID"), dataset.get("SeriesInstanceUID")  # parsed now, so that damage is found here
        return dataset


def require_image(dataset: Any, *, secondary_captures: bool) -> None:
    """Raises MedicalImageError for an object that is not an image, or that is a secondary capture unless allowed."""
    kind = str(dataset.get("SOPClassUID") or "")
    meta = str(getattr(getattr(dataset, "file_meta", None), "MediaStorageSOPClassUID", ""))
    if DIRECTORY in (kind, meta):
        raise MedicalImageError("DICOMDIR: an index, not an image", "name the folder of a series")
    if "EncryptedAttributesSequence" in dataset and not has_pixels(dataset):
        raise MedicalImageError("encrypted DICOM object")
    if kind.startswith(REPORTS):
        raise MedicalImageError("DICOM report, not an image", _name(kind))
    if not has_pixels(dataset):
        raise MedicalImageError("DICOM object without an image", _name(kind))
    if kind.startswith(SEGMENTATION):
        raise MedicalImageError("DICOM segmentation, not an image", _name(kind))
    if is_secondary_capture(dataset) and not secondary_captures:
        raise MedicalImageError(
            "DICOM secondary capture",
            "a screenshot often shows a name; dataset.images.secondary_captures=true allows it",
        )
    _require_pixel_description(dataset)


def is_secondary_capture(dataset: Any) -> bool:
    """Returns whether a DICOM object is a screenshot or a scan of paper."""
    return str(dataset.get("SOPClassUID") or "").startswith(SECONDARY_CAPTURE)


@contextmanager
def decoder_errors(reason: str) -> Iterator[None]:
    """Turns any error that a decoder raises for damaged bytes into a MedicalImageError with `reason`.

    Hides the decoder's warnings, because they may contain values from the file.
    """
    logger, level = logging.getLogger("pydicom"), logging.getLogger("pydicom").level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MedicalImageError, MissingPackageError):
        raise
    except Exception as error:
        raise MedicalImageError(reason, type(error).__name__) from None
    finally:
        logger.setLevel(level)


def _require_bounded(content: bytes) -> None:
    """Raises MedicalImageError for a deflated file that would inflate to more than `MOST_BYTES`."""
    head = content[:4096]
    if DEFLATED not in head or not is_dicom(head):
        return
    start = PREAMBLE + 4
    length = (
        int.from_bytes(content[start + 8 : start + 12], "little") if content[start : start + 4] == b"\2\0\0\0" else 0
    )
    packer = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        packer.decompress(content[start + 12 + length :], MOST_BYTES)
    except zlib.error:
        raise MedicalImageError("DICOM file is damaged", "deflated data") from None
    if packer.unconsumed_tail:
        raise MedicalImageError(f"medical image file of more than {MOST_BYTES} bytes")


def _require_pixel_description(dataset: Any) -> None:
    with decoder_errors("DICOM file is damaged"):
        rows, columns, frames = (int(dataset.get(name) or least) for name, least in
                                 (("Rows", 0), ("Columns", 0), ("NumberOfFrames", 1)))  # fmt: skip
        samples, bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("BitsAllocated") or 0)
        colours = str(dataset.get("PhotometricInterpretation") or "")
    require_size(rows, columns, frames)
    if colours not in (*GREYS, *COLOURS):
        raise MedicalImageError("DICOM image in colours that are not read", colours if colours.isascii() else "")
    if samples not in (1, 3) or bits not in (1, 8, 16, 32, 64):
        raise MedicalImageError("DICOM file is damaged", f"{samples} samples of {bits} bits")


def has_pixels(dataset: Any) -> bool:
    """Returns whether a DICOM object holds pixels."""
    return any(name in dataset for name in PIXEL_ATTRIBUTES)


def _name(kind: str) -> str:
    """Returns DICOM's own name of a kind of object, such as `RT Plan Storage`."""
    name = package("pydicom.uid").UID(kind).name
    return name if name != kind else "of an unknown kind"
