"""A folder of videos with every oddity and every fault that collections have."""

import os
import socket
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.datasets.recordings import HITS, record

STEADY = np.arange(56) / 20  # seconds: a picture each
NTSC, PAL = np.arange(84) * 1001 / 30000, np.arange(70) / 25
UNEVEN = sorted({0.0, *np.cumsum(np.tile([0.02, 0.11, 0.05, 0.033], 12)).round(3), *HITS, *(hit + 0.1 for hit in HITS)})
FFV1 = {"video_codec": "ffv1", "audio_codec": "pcm_s16le"}
MPEG4 = {"video_codec": "mpeg4", "audio_codec": "pcm_s16le"}

# Videos that give clips in step, by name: how they are recorded. Picture and sound share the clock of the hits.
SOUND: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "UPPER.MP4": {},
    "a name, 'single' \"double\" ünïcödé 视频.mp4": {},
    "new\nline.mp4": {},
    "not unicode \udcff.mp4": {},
    "matroska.mkv": {},
    "fragments.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}},
    "opus.webm": {"video_codec": "libvpx-vp9", "audio_codec": "libopus", "rate": 48000},
    "really_avi.mp4": MPEG4,
    "uneven.mp4": {"pictures": UNEVEN},
    "ntsc.mp4": {"pictures": NTSC},
    "pal.mkv": {"pictures": PAL},
    "odd_sides.mp4": {"size": (37, 51), "pixels": "yuv444p"},
    "ten_bits.mp4": {"pixels": "yuv420p10le"},
    "interlaced.mp4": {"size": (64, 64), "codec_options": {"x264-params": "tff=1"}},
    "wide_pixels.mp4": {"pixel_aspect": Fraction(2)},
    "mono.mp4": {"layout": "mono"},
    "surround.mp4": {"layout": "5.1", "rate": 48000},
    "telephone.mov": {"layout": "mono", "rate": 8000, "audio_codec": "pcm_s16le"},
    "rate_48k.mp4": {"rate": 48000},
    "sound_later.mp4": {"sound": (0.25, 2.8)},
    "picture_later.mp4": {"pictures": 0.25 + STEADY[:50]},
    "sound_later.ts": {"sound": (0.25, 2.8)},
    "negative.mp4": {"pictures": STEADY - 0.2},
    "wide.avi": {**MPEG4, "size": (48, 128)},
    "gap.mkv": {**FFV1, "gap": (0.8, 1.0)},
}


def make(folder: Path) -> dict[str, dict[str, Any]]:
    """Fill ``folder`` with the videos of SOUND and some more that give clips; return how all those were recorded."""
    made = {}
    for name, recipe in SOUND.items():
        made[name] = {"pictures": STEADY, "sound": (0.0, 2.8), **recipe}
        aside = record(folder / ("made" + (".avi" if recipe is MPEG4 else Path(name).suffix.lower())), **made[name])
        aside.rename(folder / name)
    made["turned.mp4"] = made["cut.mp4"] = made["plain.mp4"]
    plain = (folder / "plain.mp4").read_bytes()
    (folder / "turned.mp4").write_bytes(_turned(plain))
    (folder / "cut.mp4").write_bytes(_cut(plain, 0.25))
    made["cut.mp4"] = {**made["plain.mp4"], "skipped": 0.25}
    (folder / "linked").symlink_to(folder, target_is_directory=True)  # a loop: everything is there already
    return made


def make_faulty(folder: Path) -> dict[str, str]:
    """Fill ``folder`` with files that give no clip; return the reason for each."""
    whole = record(folder / "whole.mp4").read_bytes()
    (folder / "whole.mp4").unlink()
    record(folder / "picture_only.mp4", sound=None)
    record(folder / "sound_only.mp4", pictures=())
    record(folder / "short.mp4", pictures=STEADY[:8], sound=(0, 0.4))
    (folder / "text.mp4").write_text("this is no video\n" * 99)
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile picture_only.mp4\n")
    (folder / "empty.mp4").touch()
    (folder / "half.mp4").write_bytes(whole[: len(whole) // 2])  # its index was at the end
    (folder / "dangling.mp4").symlink_to("nowhere")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.mp4"))
    wide, high = b"\xb0\x82\x01\x40", b"\xba\x82\x01\x10"
    huge = record(folder / "huge.mkv", size=(272, 320), **FFV1)
    huge.write_bytes(huge.read_bytes().replace(wide + high, b"\xb0\x82\x30\x00\xba\x82\x30\x00"))
    (folder / "long.mp4").write_bytes(_claiming(whole, 40_000))
    for name in ("crash.mp4", "hang.mp4"):  # which decoder does so is up to the test
        (folder / name).write_bytes(whole)
    return {
        "picture_only.mp4": "no_audio_stream",
        "sound_only.mp4": "no_video_stream",
        "short.mp4": "too_short",
        "text.mp4": "not_media",
        "list.mp4": "not_media",
        "empty.mp4": "empty_file",
        "half.mp4": "not_media",
        "dangling.mp4": "missing_file",
        "loop.mp4": "missing_file",
        "device.mp4": "unreadable",
        "pipe.mp4": "unreadable",
        "socket.mp4": "unreadable",
        "huge.mkv": "too_large",
        "long.mp4": "too_long",
        "crash.mp4": "decoder_crashed",
        "hang.mp4": "decoder_hung",
    }


def _turned(data: bytes) -> bytes:
    """Return the MP4 ``data`` with its picture turned by 90°."""
    changed = bytearray(data)
    struct.pack_into(">9i", changed, data.index(b"tkhd") + 44, 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    return bytes(changed)


def _cut(data: bytes, seconds: float) -> bytes:
    """Return the MP4 ``data`` with edit lists that leave out the first ``seconds`` of both streams."""
    changed = bytearray(data)
    track = 0
    while (track := data.find(b"tkhd", track + 4)) >= 0:
        edit = data.index(b"elst", track)
        (scale,) = struct.unpack_from(">I", data, data.index(b"mdhd", track) + 16)
        length, start = struct.unpack_from(">Ii", data, edit + 12)
        (movie_scale,) = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)
        struct.pack_into(
            ">Ii", changed, edit + 12, length - round(seconds * movie_scale), start + round(seconds * scale)
        )
    return bytes(changed)


def _claiming(data: bytes, seconds: int) -> bytes:
    """Return the MP4 ``data`` with frames that last ``seconds`` in all and more."""
    changed = bytearray(data.replace(b"edts", b"free"))
    header = 0
    while (header := data.find(b"mdhd", header + 4)) >= 0:
        (scale,) = struct.unpack_from(">I", data, header + 16)
        struct.pack_into(">I", changed, header + 20, seconds * scale)
        struct.pack_into(">I", changed, data.index(b"stts", header) + 16, seconds // 40 * scale)
    return bytes(changed)
