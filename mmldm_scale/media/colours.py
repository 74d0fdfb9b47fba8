"""Colours of decoded frames: from any matrix, range and transfer to 8-bit RGB as a screen of standard range shows it.

:func:`to_rgb` scales a frame and converts it. The tags of the stream are followed. A stream without a matrix tag has
BT.709 from 720 lines up and BT.601 below, as players assume. High dynamic range (PQ or HLG) is tone-mapped:

1. From signal to display light in cd/m²: PQ by its EOTF, HLG by its inverse OETF and its OOTF for a display of
   1,000 cd/m² (Recommendation ITU-R BT.2100, tables 4 and 5).
2. From BT.2020 (or Display P3) to BT.709 primaries, by matrices that follow from the chromaticities.
3. Reference white, 203 cd/m² (Report ITU-R BT.2408), becomes 1. Up to ``KNEE`` nothing changes, so that what a camera
   without HDR would have recorded keeps its colours. Beyond, the largest component m is compressed to
   K + (1 - K)·u / (1 + u), u = (m - K) / (1 - K), and the other two keep their ratio to it, hence their hue.
4. From light to signal by the inverse of BT.1886, E = L^(1/2.4), the display that BT.709 video is graded for.
"""

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorTrc

from mmldm_scale.media.clip import MediaError

HD_LINES = 720  # lines from which pictures without a matrix tag have BT.709
BT709, BT601 = 1, 6  # matrices, as in ITU-T H.273
UNTAGGED = (2, 3)  # unspecified, reserved
MATRICES = (0, BT709, 4, 5, BT601, 7, 9)  # that libswscale converts; it lacks YCgCo, ICtCp and constant luminance

REFERENCE_WHITE = 203.0  # cd/m², in HDR
KNEE = 0.95  # of reference white, from which highlights are compressed
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2  # cd/m² of the display, and the exponent of its OOTF
LUMINANCE = np.array([0.2627, 0.6780, 0.0593])  # of BT.2020's primaries

_WHITE = (0.3127, 0.3290)  # x, y of D65
_PRIMARIES = {  # x, y of red, green, blue
    ColorPrimaries.BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    ColorPrimaries.BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    ColorPrimaries.SMPTE432: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}


def to_rgb(frame: VideoFrame, width: int, height: int, interpolation: int) -> np.ndarray:
    """Return ``frame`` scaled to (height, width, 3) uint8 RGB.

    Args:
        frame: the decoded frame; its tags are followed.
        width, height: pixels of the result.
        interpolation: flags of libswscale.

    Raises:
        MediaError: unsupported_colours: the matrix is none of ``MATRICES``.
    """
    transfer = frame.color_trc
    high_range = transfer in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
    kind = "rgb48le" if high_range else "rgb24"
    scaled = frame.reformat(
        width, height, kind, src_colorspace=_matrix(frame), interpolation=interpolation, threads=1
    ).to_ndarray()
    if not high_range:
        return scaled.astype(np.uint8, copy=False)
    signal = scaled / np.float32(65535)
    light = pq_light(signal) if transfer == ColorTrc.SMPTE2084 else hlg_light(signal)
    return tone_mapped(light, frame.color_primaries)


def pq_light(signal: np.ndarray) -> np.ndarray:
    """Return the light in cd/m², up to 10,000, of a PQ signal in [0, 1] (EOTF of SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def hlg_light(signal: np.ndarray) -> np.ndarray:
    """Return the light in cd/m², up to HLG_PEAK, of an HLG signal (…, 3) in [0, 1] with BT.2020's primaries."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luminance = (scene @ LUMINANCE.astype(scene.dtype))[..., None]
    return HLG_PEAK * np.maximum(luminance, 1e-9) ** (HLG_GAMMA - 1) * scene


def tone_mapped(light: np.ndarray, primaries: int) -> np.ndarray:
    """Return ``light`` (…, 3) in cd/m² as uint8 RGB of BT.709; see the module's text.

    ``primaries`` are those of ``light``, as in ITU-T H.273; any that have no matrix here count as BT.2020.
    """
    known = ColorPrimaries(primaries) if primaries in _PRIMARIES else ColorPrimaries.BT2020
    convert = np.linalg.inv(_to_xyz(ColorPrimaries.BT709)) @ _to_xyz(known)
    linear = np.maximum(light @ convert.T.astype(light.dtype) / REFERENCE_WHITE, 0)
    largest = linear.max(-1, keepdims=True)
    excess = np.maximum(largest - KNEE, 0) / (1 - KNEE)
    compressed = np.where(excess > 0, KNEE + (1 - KNEE) * excess / (1 + excess), largest)
    linear *= compressed / np.maximum(largest, 1e-9)
    return np.rint(255 * linear ** (1 / 2.4)).astype(np.uint8)


def _matrix(frame: VideoFrame) -> int | None:
    """Return the matrix to convert ``frame`` with; None: that of its tag."""
    tag = frame.colorspace
    if frame.format.is_rgb or (tag in MATRICES):
        return None
    if tag in UNTAGGED:
        return BT709 if frame.height >= HD_LINES else None
    raise MediaError("unsupported_colours", f"matrix {tag} (ITU-T H.273) cannot be converted to RGB")


def _to_xyz(primaries: ColorPrimaries) -> np.ndarray:
    """Return the (3, 3) matrix from linear RGB with ``primaries`` and white D65 to CIE XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in _PRIMARIES[primaries]]).T
    x, y = _WHITE
    return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])
