"""The frames of a DICOM object: the pixels and the header of each."""

import math
from typing import Any

import numpy as np

from vlm_core.data.medical.dicom_file import COLOURS, decoder_errors
from vlm_core.data.medical.errors import MedicalImageError, package
from vlm_core.data.medical.orientation import Display, display_of
from vlm_core.data.medical.volumes import MOST_PIXELS, Slice, require_size

DAMAGED = "pixels of the DICOM file are damaged"
# An enhanced object has these in sequences for each frame, older objects at the top level.
PER_FRAME = (
    "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
)  # fmt: skip
COPIED = (
    "PhotometricInterpretation", "BitsStored", "PixelRepresentation", "ModalityLUTSequence", "VOILUTSequence",
    "Modality", "PatientOrientation", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio",
)  # fmt: skip
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
MOST_STRETCHED = 20  # times; a header with a larger ratio is wrong
# Modalities of radiographs, whose headers have the directions of rows and columns but no position.
PROJECTIONS = ("CR", "DX", "XA", "RF", "RG")


def is_colour(dataset: Any) -> bool:
    """Returns whether pixels are colours."""
    return str(dataset.PhotometricInterpretation) in COLOURS


def frame_header(dataset: Any, frame: int) -> Any:
    """Returns the header of a frame without sequences, as an object with one frame has it."""
    header = package("pydicom").Dataset()
    groups = [dataset]
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        items = dataset.get(name) or []
        if items:
            item = items[0] if name.startswith("Shared") or len(items) == 1 else items[frame]
            groups += [e.value[0] for e in item if e.VR == "SQ" and e.value and not e.tag.is_private]
    for group in groups:
        for name in (*COPIED, *PER_FRAME) if group is dataset else PER_FRAME:
            if name in group:
                header[name] = group[name]
    if hasattr(dataset, "file_meta"):
        header.file_meta = dataset.file_meta  # its byte order is that of lookup tables
    return header


def slice_of(dataset: Any, frame: int, frames: int, names: tuple[str, ...], *, burn_in: bool) -> Slice:
    """Returns a frame as a slice, whose pixels are decoded on demand."""
    with decoder_errors("DICOM file is damaged"):
        header = frame_header(dataset, frame)
        return Slice(
            read=lambda: _read(dataset, frame, frames, header),
            names=names,
            display=_display(header),
            spacing=_spacing(header),
            header=header,
            overlay=(lambda: _overlay(dataset, frame)) if burn_in else lambda: None,
        )


def position_of(header: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (position, normal) of a slice along R, A and S, in mm; None if the header does not have them."""
    directions = _directions(header)
    position = _finite(header.get("ImagePositionPatient"), 3)
    return None if directions is None or position is None else (position * (-1, -1, 1), directions[:, 2])


def stored_range(dataset: Any) -> tuple[float, float] | None:
    """Returns the lowest and highest value that the stored bits can represent, rescaled; None for floats."""
    if "PixelData" not in dataset:
        return None
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    ends = np.array([[-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1]])
    values = package("pydicom.pixels").apply_modality_lut(ends, frame_header(dataset, 0))
    return float(values.min()), float(values.max())


def _read(dataset: Any, frame: int, frames: int, header: Any) -> np.ndarray:
    pixels = package("pydicom.pixels")
    with decoder_errors(DAMAGED):
        _require_decoder(dataset)
        _require_small_frame(dataset, frame, frames)
        stored = pixels.pixel_array(dataset, index=frame)
        if stored.shape[:2] != (dataset.Rows, dataset.Columns):
            raise MedicalImageError(DAMAGED, "another size than the header says")
        if is_colour(dataset):
            return _eight_bit_colour(stored, dataset)
        values = pixels.apply_modality_lut(stored, header).astype(np.float64)
        values[_padded(stored, dataset)] = np.nan
        return values


def _padded(stored: np.ndarray, dataset: Any) -> np.ndarray:
    """Returns a mask of the stored values that the header calls padding: one value, or a range of them."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    if limit is None:
        return np.asarray(stored == value)
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def _eight_bit_colour(stored: np.ndarray, dataset: Any) -> np.ndarray:
    if stored.ndim == 2:
        stored = package("pydicom.pixels").apply_color_lut(stored, dataset)[..., :3]
        bits = 8 * stored.dtype.itemsize
    else:
        bits = int(dataset.BitsStored)
    return (stored >> max(bits - 8, 0)).astype(np.uint8)


def _require_decoder(dataset: Any) -> None:
    """Raises MedicalImageError for a compression that is not supported, such as video.

    Raises MissingPackageError if a package that decodes it is not installed.
    """
    syntax = dataset.file_meta.TransferSyntaxUID if hasattr(dataset, "file_meta") else None
    if syntax is None or not syntax.is_compressed:
        return
    try:
        decoder = package("pydicom.pixels").get_decoder(syntax)
    except NotImplementedError:
        raise MedicalImageError("DICOM compression that is not read", syntax.name) from None
    if not decoder.is_available:
        package("pylibjpeg"), package("openjpeg"), package("libjpeg")


def _require_small_frame(dataset: Any, frame: int, frames: int) -> None:
    """Raises MedicalImageError for a compressed frame that is larger than the header says."""
    syntax = dataset.file_meta.TransferSyntaxUID if hasattr(dataset, "file_meta") else None
    if syntax is None or not syntax.is_compressed or "PixelData" not in dataset or syntax.endswith(".1.2.5"):
        return  # pydicom itself limits run-length frames to the header's size
    encoded = package("pydicom.encaps").get_frame(dataset.PixelData, frame, number_of_frames=frames)
    size = _jpeg2000_size(encoded) or _jpeg_size(encoded)
    if size is not None and size[0] * size[1] > MOST_PIXELS:
        require_size(*size)


def _jpeg2000_size(encoded: bytes) -> tuple[int, int] | None:
    start = encoded.find(b"\xff\x4f\xff\x51", 0, 4096)  # start of codestream and of its size
    if start < 0 or len(encoded) < start + 24:
        return None
    columns, rows = (int.from_bytes(encoded[start + at : start + at + 4], "big") for at in (8, 12))
    return rows, columns


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Returns (rows, columns) of a JPEG or JPEG-LS frame, from its first frame header."""
    at = 2
    while encoded[:2] == b"\xff\xd8" and at + 9 < len(encoded) and encoded[at] == 0xFF:
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4], "big")
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return int.from_bytes(encoded[at + 5 : at + 7], "big"), int.from_bytes(encoded[at + 7 : at + 9], "big")
        at += 2 + length
    return None


def _overlay(dataset: Any, frame: int) -> np.ndarray | None:
    """Returns the overlays of a frame as one mask (rows, columns); None if none has the size of the image."""
    masks = []
    with decoder_errors("overlay of the DICOM file is damaged"):
        for group in range(0x6000, 0x6020, 2):
            if (group, 0x3000) in dataset:
                mask = dataset.overlay_array(group)
                mask = mask[frame] if mask.ndim == 3 and len(mask) > frame else mask
                if mask.shape == (dataset.Rows, dataset.Columns):
                    masks.append(mask != 0)
    return np.logical_or.reduce(masks) if masks else None


def _display(header: Any) -> Display | None:
    directions = _directions(header)
    return display_of(directions) if directions is not None else _projection(header)


def _directions(header: Any) -> np.ndarray | None:
    """Returns the directions of rows, columns and stack as the columns of a matrix over R, A and S."""
    cosines = _finite(header.get("ImageOrientationPatient"), 6)
    if cosines is None:
        return None
    along_row, along_column = cosines[:3], cosines[3:]  # DICOM's axes lead to L, P and S
    normal = np.cross(along_row, along_column)
    if np.linalg.norm(normal) < 0.5:
        return None
    return np.stack([along_column, along_row, normal], axis=1) * np.array([[-1], [-1], [1]])


def _projection(header: Any) -> Display | None:
    """Returns how to turn a radiograph whose header has the directions of rows and columns, such as L and F."""
    stated = [str(word)[:1] for word in header.get("PatientOrientation") or []]
    if str(header.get("Modality") or "") not in PROJECTIONS or len(stated) != 2:
        return None
    axes = {"L": (-1, 0, 0), "R": (1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
    if not set(stated) <= axes.keys():
        return None
    along_row, along_column = (np.array(axes[word], dtype=float) for word in stated)
    normal = np.cross(along_row, along_column)
    return display_of(np.stack([along_column, along_row, normal], axis=1)) if normal.any() else None


def _spacing(header: Any) -> tuple[float, float]:
    for name in SPACINGS:
        found = _finite(header.get(name), 2)
        if found is not None and (found > 0).all() and max(found) / min(found) <= MOST_STRETCHED:
            return float(found[0]), float(found[1])
    return 1.0, 1.0


def _finite(value: Any, count: int) -> np.ndarray | None:
    """Returns `count` finite numbers; None for anything else."""
    try:
        numbers = np.array([float(number) for number in value or ()])
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None
