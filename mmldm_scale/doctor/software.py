"""Checks of the installed versions, and of the codecs that read and write videos."""

import functools
import hashlib
import importlib
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mmldm_scale.cluster.code_snapshot import PACKAGE
from mmldm_scale.doctor.findings import Finding

REPORTED = ("torch", "deepspeed", "webdataset", "xformers", "av")  # packages whose versions the "ok" line lists
DECODERS, ENCODERS = ("h264", "vp9", "aac", "opus", "mp3"), ("libx264", "aac")
REMEDY = "make install"


def versions() -> Iterator[Finding]:
    """Compare Python and the installed packages with the requirements of this package."""
    try:
        required = [Requirement(text) for text in metadata.requires(PACKAGE.name) or ()]
        python = SpecifierSet(metadata.metadata(PACKAGE.name)["Requires-Python"] or "")
    except metadata.PackageNotFoundError:
        yield Finding("warning", "versions", f"{PACKAGE.name} is not installed: its requirements are unknown", REMEDY)
        return
    problems = [problem for package in required if not package.marker and (problem := _problem(package))]
    if platform.python_version() not in python:
        problems.insert(0, f"Python {platform.python_version()}, {python} is required")
    for problem in problems:
        yield Finding("error", "versions", problem, REMEDY)
    if not problems:
        reported = ", ".join(f"{name} {metadata.version(name)}" for name in REPORTED)
        yield Finding("ok", "versions", f"Python {platform.python_version()}, {reported}, CUDA {torch.version.cuda}")


def _problem(required: Requirement) -> str | None:
    try:
        version = metadata.version(required.name)
    except metadata.PackageNotFoundError:
        return f"{required.name} is not installed, {required.specifier} is required"
    if not required.specifier.contains(version, prereleases=True):
        return f"{required.name} {version} is installed, {required.specifier} is required"
    return None


def codecs() -> Iterator[Finding]:
    """Check the decoders and encoders of video and sound, and that torchaudio can be imported."""
    import av

    missing = [name for name in DECODERS if not _has(name, "r")] + [n for n in ENCODERS if not _has(n, "w")]
    if missing:
        yield Finding("error", "codecs", f"av {av.__version__} lacks {', '.join(missing)}", REMEDY)
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError) as error:
        yield Finding("error", "codecs", f"torchaudio cannot be imported: {str(error).splitlines()[0]}", REMEDY)
        return
    if not missing:
        yield Finding("ok", "codecs", f"decoders {', '.join(DECODERS)}; encoders {', '.join(ENCODERS)}; torchaudio")


def _has(name: str, mode: Literal["r", "w"]) -> bool:
    import av

    try:
        av.codec.Codec(name, mode)
    except ValueError:  # the base class of av's error for an unknown codec
        return False
    return True


@functools.cache
def code() -> str:
    """Return a short hash of the package's source files."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
