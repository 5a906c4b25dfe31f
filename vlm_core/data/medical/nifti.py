"""NIfTI: a volume in a `.nii` or `.nii.gz` file, read slice by slice."""

import math
import zlib
from typing import Any

import numpy as np

from vlm_core.config import ImagesConfig
from vlm_core.data.medical.dicom_file import decoder_errors
from vlm_core.data.medical.errors import MedicalImageError, package
from vlm_core.data.medical.orientation import display_of, order_sign
from vlm_core.data.medical.volumes import MOST_BYTES, Slice, Volume, require_size

GZIP = b"\x1f\x8b"
DAMAGED = "NIfTI file is damaged"
# (bytes of the header, place of its magic word, the magic words) of both versions.
HEADERS = ((348, 344, (b"n+1\0",)), (540, 4, (b"n+2\0",)))
PAIRS = ((344, b"ni1\0"), (4, b"ni2\0"))
ANISOTROPIC = 1.25  # times: if voxels are this much longer along one axis, slices are stacked along it
COLOURS = ("R", "G", "B")


def is_nifti(head: bytes) -> bool:
    """Returns whether `head`, the first 4 KB of a file, is that of a NIfTI file, compressed or not."""
    if head[:2] == GZIP:
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 1024)
        except zlib.error:
            return False
    return any(head[at : at + 4] in words for _, at, words in HEADERS) or any(head[at : at + 4] == w for at, w in PAIRS)


def nifti_volume(content: bytes, settings: ImagesConfig) -> Volume:
    """Returns the slices of a NIfTI file in its plane of acquisition: across its longest voxels, or axial.

    Raises MedicalImageError for damaged bytes, and for several volumes unless `dataset.images.time_point` chooses one.
    """
    plain = _plain(content)
    with decoder_errors(DAMAGED):
        image = _image(plain)
        shape, colour = _shape(image, settings.time_point, len(plain))
        axis = _stack_axis(image)
        zooms = [float(z) for z in image.header.get_zooms()[:3]]
        stack = np.moveaxis(_voxels(image, plain, settings.time_point), axis, 0)
    stored = image.get_data_dtype()
    rows, columns = (a for a in range(3) if a != axis)
    matrix = _directions(image)
    display = display_of(matrix[:, [rows, columns, axis]])
    spacing = _spacing(zooms[rows], zooms[columns])

    def at(index: int) -> Slice:
        return Slice(lambda: _read(image, stack[index]), (str(index),), display, spacing)

    slices = [at(index) for index in range(shape[axis])]
    if order_sign(matrix[:, axis]) < 0:
        slices.reverse()
    whole = stored.kind in "iu"
    facts = {"format": "NIfTI", "bits": 8 if colour else 8 * stored.itemsize, "slice_thickness": zooms[axis],
             "spacing": list(spacing), "orientation_unknown": not _says_orientation(image)}  # fmt: skip
    return Volume(tuple(slices), None, facts["bits"], colour, _full_range(image) if whole else None, facts)


def _plain(content: bytes) -> bytes:
    if content[:2] != GZIP:
        return content
    packer = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        plain = packer.decompress(content, MOST_BYTES)
    except zlib.error:
        raise MedicalImageError(DAMAGED, "compressed data") from None
    if packer.unconsumed_tail:
        raise MedicalImageError(f"medical image file of more than {MOST_BYTES} bytes")
    if not packer.eof:
        raise MedicalImageError("NIfTI file is truncated")
    return plain


def _image(plain: bytes) -> Any:
    nibabel = package("nibabel")
    if any(plain[at : at + 4] == word for at, word in PAIRS):
        raise MedicalImageError("NIfTI header without its pixels (.hdr and .img)", "save it as .nii or .nii.gz")
    second = plain[4:8] == b"n+2\0"
    return (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(plain)


def _shape(image: Any, time_point: int | None, size: int) -> tuple[tuple[int, ...], bool]:
    """Returns (the three sizes of a volume, whether its voxels are colours), after checking them."""
    stored, shape = image.get_data_dtype(), image.shape
    if stored.kind not in "iuf" and stored.names not in (COLOURS, (*COLOURS, "A")):
        raise MedicalImageError("NIfTI file of numbers that are not shown", f"{stored}")
    if any(length < 1 for length in shape) or len(shape) < 2:
        raise MedicalImageError("medical image without pixels", f"shape {shape}")
    if image.dataobj.offset + math.prod(shape) * stored.itemsize > size:
        raise MedicalImageError("NIfTI file is truncated", f"shape {shape}")
    volumes = math.prod(shape[3:])
    if volumes > 1 and (time_point is None or len(shape) > 4 or time_point >= shape[3]):
        raise MedicalImageError(
            "NIfTI file of several volumes", f"shape {shape}: set dataset.images.time_point to the one to show (from 0)"
        )
    if len(shape) == 2:
        raise MedicalImageError("NIfTI file of two dimensions", "save it with three")
    largest = sorted(shape[:3])
    require_size(largest[1], largest[2], largest[0])
    return shape[:3], stored.names is not None


def _stack_axis(image: Any) -> int:
    """Returns the axis along which slices are stacked: that of the longest voxels, or the one nearest to feet-head."""
    zooms = np.abs(np.array(image.header.get_zooms()[:3], dtype=float))
    order = np.argsort(zooms)
    if np.isfinite(zooms).all() and zooms[order[1]] > 0 and zooms[order[2]] > ANISOTROPIC * zooms[order[1]]:
        return int(order[2])
    codes = package("nibabel.orientations").io_orientation(image.affine)[:, 0]
    return int(np.argmax(codes == 2)) if (codes == 2).any() else 2


def _directions(image: Any) -> np.ndarray:
    """Returns the directions of the axes as the columns of a matrix over R, A and S; a guess if unstated."""
    return np.asarray(image.affine[:3, :3], dtype=float)


def _says_orientation(image: Any) -> bool:
    return int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0


def _voxels(image: Any, plain: bytes, time_point: int | None) -> np.ndarray:
    """Returns the stored values of one volume, as a view of the file's bytes.

    nibabel's own slicing reads a file in pieces. In memory, that takes 40 times longer for slices along the first axis.
    """
    stored = image.dataobj
    voxels = np.ndarray(stored.shape, stored.dtype, buffer=plain, offset=stored.offset, order=stored.order)
    more = [0] * (voxels.ndim - 3)
    if more and time_point is not None:
        more[0] = min(time_point, voxels.shape[3] - 1)
    return voxels[(..., *more)]


def _read(image: Any, stored: np.ndarray) -> np.ndarray:
    """Returns a slice of stored values as a `Slice` has it: scaled as the header says, or as colours."""
    if stored.dtype.names:
        return np.stack([stored[name] for name in COLOURS], axis=-1).astype(np.uint8)
    scaled = package("nibabel.volumeutils").apply_read_scaling(stored, image.dataobj.slope, image.dataobj.inter)
    return scaled.astype(np.float64)


def _full_range(image: Any) -> tuple[float, float]:
    ends, stored = np.iinfo(image.get_data_dtype()), image.dataobj
    values = sorted((ends.min * stored.slope + stored.inter, ends.max * stored.slope + stored.inter))
    return float(values[0]), float(values[1])


def _spacing(rows: float, columns: float) -> tuple[float, float]:
    good = all(math.isfinite(x) and x > 0 for x in (rows, columns)) and max(rows, columns) / min(rows, columns) <= 20
    return (rows, columns) if good else (1.0, 1.0)
