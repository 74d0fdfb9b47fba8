"""Looks made of arrays, and small tables of measures."""

from collections.abc import Callable

import numpy as np
import pytest

from data_tools.filters.low_res_view import DETAIL_EVERY, LowResView


def make_view(
    pictures: np.ndarray | None = None, sound: np.ndarray | None = None, rate: int = 16000, seams: tuple[int, ...] = ()
) -> LowResView:
    """Return a LowResView of (T, 128, 128) pictures and (N,) sound; what is not given is grey, or silent."""
    if pictures is None:
        pictures = np.full((10, 128, 128), 128)
    if sound is None:
        sound = np.zeros(len(pictures) * rate // 10)
    pictures = pictures.astype(np.uint8)
    details = pictures[::DETAIL_EVERY].repeat(2, 1).repeat(2, 2)
    return LowResView(pictures, details, seams, sound.astype(np.float32), rate)


@pytest.fixture
def view() -> Callable[..., LowResView]:
    return make_view
