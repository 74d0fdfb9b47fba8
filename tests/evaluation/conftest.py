"""The toy extractors, by the names ``toy_frames`` and ``toy_sound``."""

import sys

import pytest

from mmldm_scale.evaluation.extractors import EXTRACTORS
from tests.support import toy_evaluation
from tests.support.toy_evaluation import ToyFrames


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS, "toy_frames", "toy_frames:ToyFrames")
    monkeypatch.setitem(EXTRACTORS, "toy_sound", "toy_sound:ToySound")
    for name in ("toy_frames", "toy_sound"):
        monkeypatch.setitem(sys.modules, f"mmldm_scale.evaluation.extractors.{name}", toy_evaluation)
    monkeypatch.setattr(ToyFrames, "fail_after", None)
    monkeypatch.setattr(ToyFrames, "batches", 0)
