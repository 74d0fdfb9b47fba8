"""Sound of any number of channels as one channel.

:class:`Downmix` mixes the frames of a stream. The weights are those of libswresample for the frames' layout, scaled so
that the mix is never louder than the loudest channel. Where it has none (nine channels, an order that only the file
knows), all channels weigh the same. Of Ambisonics it is the channel that hears all directions, which is the first.

Two faults of PyAV are avoided here. It frees a layout of custom order twice, once for each ``AudioLayout`` made of it,
which corrupts the heap; :func:`custom_channels` finds those before a frame is decoded. And ``AudioFrame.planes`` reads
beyond the end of the list of planes of a frame with eight planes or more, so those are packed before they are read.
"""

import ctypes

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler

MAX_CHANNELS = 64  # that libswresample reads
_NATIVE = [channel.name for channel in AudioLayout("0x3ffff").channels]  # libav's own order


def custom_channels(context: AudioCodecContext) -> int:
    """Return the number of channels of a stream, not decoded yet, whose order is not libav's own; 0: it is libav's.

    Such a stream may be decoded, or asked for its layout again, only after ``context`` got the option ``ch_layout``
    with another one.
    """
    layout = context.layout
    if layout.nb_channels == 0 or "(" not in layout.name:  # a standard layout, or only a number of channels
        return 0
    names = [channel.name for channel in layout.channels]
    if set(names) <= set(_NATIVE) and names == sorted(names, key=_NATIVE.index):
        return 0
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))  # it must never free what the context frees, too
    return layout.nb_channels


class Downmix:
    """Mixes the frames of one stream, all of the same sample rate, to one channel."""

    def __init__(self, custom_order: bool) -> None:
        """``custom_order``: whether :func:`custom_channels` says so."""
        self._custom_order = custom_order
        self._kind: tuple[str, str] | None = None  # sample format and layout of the previous frame

    def mix(self, frame: AudioFrame) -> np.ndarray:
        """Return ``frame``, of at most MAX_CHANNELS, as (N,) float32; raise av.FFmpegError if it is damaged."""
        self._prepare(frame)
        if self._mixer is None:
            channels = self.split(frame)
            return channels[0] if frame.layout.name.startswith("ambisonic") else channels.mean(0)
        return np.concatenate([part.to_ndarray()[0] for part in self._mixer.resample(frame)])

    def split(self, frame: AudioFrame) -> np.ndarray:
        """Return the channels of ``frame`` as (C, N) float32; raise av.FFmpegError if it is damaged."""
        count = frame.layout.nb_channels
        if frame.format.name == "fltp" and count < 8:  # these two are quick, and most codecs give one of them
            return frame.to_ndarray()
        if frame.format.name == "s16":
            return frame.to_ndarray().reshape(-1, count).T / np.float32(1 << 15)
        self._prepare(frame)
        samples = np.concatenate([part.to_ndarray()[0] for part in self._packer.resample(frame)])  # (N·C,)
        return samples.reshape(-1, count).T

    def _prepare(self, frame: AudioFrame) -> None:
        kind = (frame.format.name, frame.layout.name)
        if self._kind == kind:
            return
        self._kind = kind
        self._packer = AudioResampler(format="flt")
        self._mixer = None if self._custom_order or not _has_weights(frame) else _mixer(frame)


def _mixer(frame: AudioFrame) -> AudioResampler:
    return AudioResampler(format="fltp", layout="mono", rate=frame.sample_rate, options={"rematrix_maxval": "1"})


def _has_weights(frame: AudioFrame) -> bool:
    """Return whether libswresample can mix frames like ``frame``."""
    try:
        _mixer(frame).resample(frame)
    except av.ArgumentError:  # from configuring the filter
        return False
    return True
