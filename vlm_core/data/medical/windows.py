"""Windows: which values of a grey image become black and which white.

All arithmetic on windows is pydicom's. Nothing here scales an image from its own minimum to its own maximum: one pixel
of metal would then decide how much of a bleed can be seen.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_core.data.medical.errors import MedicalImageError, package

PERCENTILES = (0.5, 99.5)  # of the values other than background; those of MedSAM for MR and X-ray
LINEAR = "LINEAR"
FUNCTIONS = (LINEAR, "LINEAR_EXACT", "SIGMOID")
WHITE = 255


@dataclass(frozen=True)
class Window:
    """A level (the centre) and a width, in the image's own values: HU for CT."""

    level: float
    width: float
    function: str = LINEAR  # how DICOM names the curve: LINEAR, LINEAR_EXACT or SIGMOID

    def __str__(self) -> str:
        return f"{self.level:g}/{self.width:g}"

    @property
    def ends(self) -> tuple[float, float]:
        """The value that becomes black and the one that becomes white."""
        return self.level - self.width / 2, self.level + self.width / 2


# Radiopaedia, "Windowing (CT)", https://radiopaedia.org/articles/windowing-ct: brain, stroke, lungs, mediastinum,
# liver, bone (of the spine) and soft tissues (of the abdomen) as given there; subdural is the middle of its ranges.
# Angio is the preset "CT Angio" of DICOM viewers (for example pages/viewer/contrast.md of yerimmir/iAID-Documentation).
PRESETS = {
    "brain": Window(40, 80),
    "subdural": Window(75, 215),
    "stroke": Window(40, 40),
    "lung": Window(-600, 1500),
    "mediastinum": Window(50, 350),
    "bone": Window(400, 1800),
    "soft_tissue": Window(50, 400),
    "liver": Window(30, 150),
    "angio": Window(300, 600),
}
# Red, green and blue of a CT slice: wide, soft tissue and brain, as the authors of MedGemma 1.5 prepare it:
# window_clips = [(-1024, 1024), (-135, 215), (0, 80)] in notebooks/high_dimensional_ct_hugging_face.ipynb of
# google-health/medgemma, confirmed in its issue 65. The report on MedGemma 1 has -100/2250 as red (issue 27).
CT_RGB = (Window(0, 2048), Window(40, 350), Window(40, 80))


def apply_window(values: np.ndarray, window: Window) -> np.ndarray:
    """Returns grey values under a window as uint8, from black (0) to white (255). NaN is black."""
    pydicom, pixels = package("pydicom"), package("pydicom.pixels")
    header = pydicom.Dataset()
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsStored, header.PixelRepresentation = 8, 0  # pydicom maps a window to the range that these say
    header.WindowCenter, header.WindowWidth, header.VOILUTFunction = window.level, window.width, window.function
    known = np.nan_to_num(values, nan=-np.inf) if values.dtype.kind == "f" else values
    with np.errstate(over="ignore", invalid="ignore"):
        shown = pixels.apply_windowing(known, header)
    return np.nan_to_num(shown, nan=0.0).round().clip(0, WHITE).astype(np.uint8)


def header_window(header: Any) -> Window | None:
    """Returns the first window that a DICOM header gives; None without a valid one."""
    levels, widths = (_numbers(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if not levels or not widths:
        return None
    function = str(header.get("VOILUTFunction") or LINEAR).upper()
    least = 1.0 if function == LINEAR else np.nextafter(0, 1)
    if function not in FUNCTIONS or not np.isfinite(levels[0]) or not least <= widths[0] < np.inf:
        return None
    return Window(levels[0], widths[0], function)


def apply_header(values: np.ndarray, header: Any) -> np.ndarray | None:
    """Returns grey values under the VOI LUT or the window of a DICOM header, as uint8; None if it has neither."""
    if header.get("VOILUTSequence"):
        whole = np.nan_to_num(values, nan=float(np.nanmin(values, initial=0.0))).round().astype(np.int64)
        shown = package("pydicom.pixels").apply_voi(whole, header)
        most = 2 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1
        return (shown * (WHITE / most)).round().clip(0, WHITE).astype(np.uint8)
    window = header_window(header)
    return None if window is None else apply_window(values, window)


def apply_range(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns grey values scaled linearly so that `low` is black and `high` white, as uint8. NaN is black."""
    scaled = (values.astype(np.float64) - low) * (WHITE / (high - low) if high > low else 0.0)
    return np.nan_to_num(scaled, nan=0.0, posinf=WHITE, neginf=0.0).round().clip(0, WHITE).astype(np.uint8)


def robust_range(values: np.ndarray) -> tuple[float, float]:
    """Returns the 0.5th and the 99.5th percentile of the finite values that are not background (zero).

    If these are equal, the range of all finite values. Raises MedicalImageError if no value is finite.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise MedicalImageError("image without a finite value")
    shown = finite[finite != 0]
    low, high = np.percentile(shown if shown.size else finite, PERCENTILES)
    if low == high:
        low, high = finite.min(), finite.max()
    return float(low), float(high)


def _numbers(value: Any) -> list[float]:
    values = [] if value is None or value == "" else list(value) if hasattr(value, "__iter__") else [value]
    try:
        return [float(number) for number in values]
    except (TypeError, ValueError):
        return []
