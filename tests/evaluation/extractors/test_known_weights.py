"""The table of published weights files."""

import hashlib
import re
from pathlib import Path

import pytest

from mmldm_scale.evaluation.extractors import EXTRACTORS
from mmldm_scale.evaluation.extractors.known_weights import KnownWeights, git_blob, known_weights

CONTENT = b"weights" * 300_000  # more than is read at a time


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "weights.pt"
    path.write_bytes(CONTENT)
    return path


def test_rows_are_complete() -> None:
    rows = known_weights()

    assert len({(row.extractor, row.file) for row in rows}) == len(rows)
    for row in rows:
        assert row.extractor in EXTRACTORS
        assert row.url.startswith(("https://", "package "))
        assert row.licence
        assert row.sha256 is None or re.fullmatch("[0-9a-f]{64}", row.sha256)
        assert row.git_blob is None or re.fullmatch("[0-9a-f]{40}", row.git_blob)


def test_git_blob_is_gits(tmp_path, file) -> None:
    empty = tmp_path / "empty"
    empty.touch()

    assert git_blob(empty) == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # git's name of the empty file
    assert git_blob(file) == hashlib.sha1(b"blob 2100000\0" + CONTENT).hexdigest()


def test_a_file_is_told_from_its_bytes(file) -> None:
    sha256, blob = hashlib.sha256(CONTENT).hexdigest(), git_blob(file)
    row = ("i3d", "weights.pt", "https://example.org")

    assert KnownWeights(*row, sha256=sha256).describes(file) is True
    assert KnownWeights(*row, sha256="0" * 64).describes(file) is False
    assert KnownWeights(*row, git_blob=blob).describes(file) is True
    assert KnownWeights(*row, git_blob="0" * 40).describes(file) is False
    assert KnownWeights(*row).describes(file) is None
