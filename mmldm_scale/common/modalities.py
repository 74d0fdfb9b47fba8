"""The two modalities of a clip, and values by modality.

Models and shard sets have both, or one alone. Their functions take and return the values of both as a pair (audio,
video), with None for a modality that is missing. :func:`by_modality` turns the pair into a dictionary to loop over,
:func:`as_pair` turns it back.
"""

from collections.abc import Mapping
from typing import Literal, TypeVar

Modality = Literal["audio", "video"]
Value = TypeVar("Value")

MODALITIES: tuple[Modality, Modality] = ("audio", "video")
OTHER: dict[Modality, Modality] = {"audio": "video", "video": "audio"}


def by_modality(audio: Value | None, video: Value | None) -> dict[Modality, Value]:
    """Return the values that are not None by modality, audio first."""
    pairs: tuple[tuple[Modality, Value | None], ...] = (("audio", audio), ("video", video))
    return {name: value for name, value in pairs if value is not None}


def as_pair(values: Mapping[Modality, Value]) -> tuple[Value | None, Value | None]:
    """Return the values of audio and video; None for a modality that ``values`` does not have."""
    return values.get("audio"), values.get("video")
