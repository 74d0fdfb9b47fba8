"""Clips in which a square jumps and a tone sounds at known times."""

import numpy as np

RATE = 16000  # Hz
SECONDS = 4
TIMES = np.array([0.7, 1.3, 2.2, 2.8])  # seconds; all apart by other times


def jumps(times: np.ndarray, frame_rate: float = 10.0, size: int = 32) -> np.ndarray:
    """Return 4 s of (F, size, size, 3) uint8 frames in which a square moves by 3 pixels at each of ``times``."""
    texture = np.random.default_rng(0).integers(60, 255, (size // 2, size // 2, 3))
    frames = np.full((round(SECONDS * frame_rate), size, size, 3), 40, np.uint8)
    for number, frame in enumerate(frames):
        left = 1 + 3 * int((times < (number + 0.5) / frame_rate).sum())
        frame[size // 4 : size // 4 + size // 2, left : left + size // 2] = texture
    return frames


def beeps(times: np.ndarray, rate: int = RATE) -> np.ndarray:
    """Return 4 s of faint noise, (N,) float32, with a fading tone from each of ``times`` on."""
    signal = 0.0005 * np.random.default_rng(1).normal(size=SECONDS * rate)
    time = np.arange(round(0.5 * rate)) / rate
    tone = 0.5 * np.sin(2 * np.pi * 700 * time) * np.exp(-time / 0.05)
    for begin in times:
        first = round(begin * rate)
        signal[first : first + len(tone)] += tone[: len(signal) - first]
    return signal.astype(np.float32)
