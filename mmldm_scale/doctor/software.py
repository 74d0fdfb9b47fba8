"""Versions against what the package requires, and the codecs that videos are read and written with."""

import functools
import hashlib
import importlib
import platform
from collections.abc import Iterator
from importlib import metadata

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mmldm_scale.cluster.code_snapshot import PACKAGE
from mmldm_scale.doctor.findings import Finding

NAMED = ("torch", "deepspeed", "webdataset", "xformers", "av")  # in the line that says that all is well
DECODERS, ENCODERS = ("h264", "vp9", "aac", "opus", "mp3"), ("libx264", "aac")
MEND = "make install"


def versions() -> Iterator[Finding]:
    """Hold Python and the installed packages against the package's requirements."""
    try:
        required = [Requirement(text) for text in metadata.requires(PACKAGE.name) or ()]
        python = SpecifierSet(metadata.metadata(PACKAGE.name)["Requires-Python"] or "")
    except metadata.PackageNotFoundError:
        yield Finding("warning", "versions", f"{PACKAGE.name} is not installed: unknown what it requires", MEND)
        return
    wrong = [problem for one in required if not one.marker and (problem := _problem(one))]
    if platform.python_version() not in python:
        wrong.insert(0, f"Python {platform.python_version()}, {python} is required")
    for problem in wrong:
        yield Finding("trouble", "versions", problem, MEND)
    if not wrong:
        named = ", ".join(f"{name} {metadata.version(name)}" for name in NAMED)
        yield Finding("ok", "versions", f"Python {platform.python_version()}, {named}, CUDA {torch.version.cuda}")


def _problem(required: Requirement) -> str | None:
    try:
        found = metadata.version(required.name)
    except metadata.PackageNotFoundError:
        return f"{required.name} is not installed, {required.specifier} is required"
    if not required.specifier.contains(found, prereleases=True):
        return f"{required.name} {found} is installed, {required.specifier} is required"
    return None


def codecs() -> Iterator[Finding]:
    """Look for the decoders and encoders of video and sound, and whether torchaudio can be imported."""
    import av

    missing = [name for name in DECODERS if not _has(av, name, "r")] + [n for n in ENCODERS if not _has(av, n, "w")]
    if missing:
        yield Finding("trouble", "codecs", f"av {av.__version__} lacks {', '.join(missing)}", MEND)
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError) as error:
        yield Finding("trouble", "codecs", f"torchaudio cannot be imported: {str(error).splitlines()[0]}", MEND)
        return
    if not missing:
        yield Finding("ok", "codecs", f"{', '.join(DECODERS)} in; {', '.join(ENCODERS)} out; torchaudio")


def _has(av: object, name: str, mode: str) -> bool:
    try:
        av.codec.Codec(name, mode)
    except ValueError:  # av's error for an unknown codec is one
        return False
    return True


@functools.cache
def code() -> str:
    """Return a short fingerprint of the package's source, the same wherever the same code runs."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
