"""A set to look at and listen to: one self-contained ``index.html`` and ``contact.jpg``, some samples of the whole set.

``write(shards, output, count, summary, charts)`` makes both. A clip shows its frames in a row and below them, on the
same axis of time, its sound as mel spectrogram; on the page it can be played. A latent sample shows the channels of its
means, the set's mean in the middle of the colour scale and three standard deviations at its ends.
"""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.pages import render
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.latents import PARTS, LatentSample, decode_latents
from mmldm_scale.shards.manifest import MANIFEST, PLAN, Manifest
from mmldm_scale.shards.reader import DamagedSample, Sample, ShardSet

from ..launching.progress import Progress

FRAMES = 8  # of a clip in its row
THUMB = 96  # pixels of a frame
SOUND = 64  # pixels of a spectrogram's height
WIDTH = FRAMES * THUMB  # pixels of a sample's picture
CAPTION, GAP = 20, 10  # pixels in contact.jpg
COLUMNS = 2  # of contact.jpg
RANGE = 3.0  # standard deviations from the middle of the latents' colours to their ends

# Anchors of the colour scales, from least to most: sound from dark to bright, latents from negative to positive.
SOUND_COLOURS = ((13, 12, 34), (78, 22, 106), (176, 50, 90), (240, 120, 50), (252, 240, 170))
LATENT_COLOURS = ((33, 80, 160), (140, 180, 215), (245, 245, 242), (230, 150, 110), (165, 35, 45))

Decoded = TypeVar("Decoded")


@dataclass(frozen=True)
class Card:
    """One sample of the sheet: its picture, RGB, and its sound as a WAV file (none for latents)."""

    key: str
    caption: str
    picture: Image.Image
    sound: bytes


def check_output(output: Path) -> None:
    """Raise UserError if the sheet cannot go into ``output``: a file, or a shard set, which holds nothing else."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; give a folder as output")
    if any((output / name).exists() for name in (MANIFEST, PLAN)):
        raise UserError(f"{output}: is a shard set, which must hold nothing else; give another folder as output")


def write(shards: ShardSet, output: Path, count: int, summary: str, charts: Mapping[str, Mapping[str, int]]) -> None:
    """Write ``index.html`` and ``contact.jpg`` into the folder ``output``, each whole or not at all.

    Args:
        count: samples shown, spread evenly over the set.
        summary: lines of text over them.
        charts: counts by name, by title.

    Raises:
        UserError: the disk is full; a sample is damaged (DamagedSet).
    """
    last = max(0, len(shards) - 1)
    chosen = np.unique(np.linspace(0, last, min(count, len(shards))).round().astype(int)).tolist()
    draw = _Clips(shards.manifest) if shards.manifest.kind == "clips" else _Latents(shards.manifest)
    cards = []
    with Progress(len(chosen), "contact sheet", "samples") as bar:
        for number in chosen:
            cards.append(decoded(shards, number, draw))
            bar.update()
    name = shards.folder.resolve().name
    page = _page(name, summary, charts, cards)
    write_whole(output / "index.html", page.encode("utf-8", "backslashreplace"))  # names of files need not be text
    write_whole(output / "contact.jpg", _jpeg(_contact(cards)))


def decoded(shards: ShardSet, number: int, decode: Callable[[Any], Decoded]) -> Decoded:
    """Return what ``decode`` makes of sample ``number``; raise DamagedSet, naming it, if it is damaged."""
    try:
        return decode(shards[number])
    except (DamagedSample, ValueError) as error:
        raise DamagedSet(f"{shards.folder}: sample {shards.key(number)}: {error}") from None


# --- samples as pictures ---------------------------------------------------------------------------------------------


class _Clips:
    """Turns a clip's sample into its card."""

    def __init__(self, manifest: Manifest) -> None:
        self._media: MediaConfig = manifest.media
        self._audio_image = AudioImage(manifest.media)

    def __call__(self, sample: Sample) -> Card:
        clip = decode_clip(sample.members)
        last = len(clip.frames) - 1
        picture = Image.new("RGB", (WIDTH, THUMB + SOUND))
        for place, number in enumerate(np.linspace(0, last, FRAMES).round().astype(int)):
            picture.paste(Image.fromarray(clip.frames[number]).resize((THUMB, THUMB)), (place * THUMB, 0))
        picture.paste(self._spectrogram(clip.waveform), (0, THUMB))
        return Card(sample.key, _caption(sample.meta), picture, bytes(sample.members["wav"]))

    def _spectrogram(self, waveform: np.ndarray) -> Image.Image:
        audio = self._media.audio
        level = self._audio_image.decibels(torch.from_numpy(waveform.copy())[None])[0].numpy()  # (n_mels, T)
        share = (level - audio.floor_db) / (audio.ceiling_db - audio.floor_db)
        return Image.fromarray(_coloured(share[::-1], SOUND_COLOURS)).resize((WIDTH, SOUND))


class _Latents:
    """Turns a latent sample into its card: rows of channels for sound, picture and mirrored picture."""

    def __init__(self, manifest: Manifest) -> None:
        self._moments = {
            name: tuple(np.array(part[key])[:, None, None] for key in ("mean", "std"))  # (C, 1, 1)
            for name, part in manifest.statistics.items()
        }

    def __call__(self, sample: Sample) -> Card:
        latent: LatentSample = decode_latents(sample.members)
        rows = [self._row(mean, PARTS[part]) for part, (mean, _) in latent.parts.items()]
        picture = Image.new("RGB", (WIDTH, sum(row.height for row in rows) + 2 * (len(rows) - 1)))
        top = 0
        for row in rows:
            picture.paste(row, (0, top))
            top += row.height + 2
        return Card(sample.key, _caption(sample.meta), picture, b"")

    def _row(self, mean: np.ndarray, modality: str) -> Image.Image:
        """Return the channels of ``mean`` (C, H, W) side by side, a line between them."""
        middle, std = self._moments[modality]
        share = 0.5 + (mean.astype(np.float64) - middle) / np.maximum(std, 1e-12) / (2 * RANGE)  # (C, H, W)
        colours = _coloured(share, LATENT_COLOURS)  # (C, H, W, 3)
        side = WIDTH // len(colours)
        row = Image.new("RGB", (WIDTH, max(1, side - 1)))
        for place, channel in enumerate(colours):
            tile = Image.fromarray(channel).resize((max(1, side - 1), row.height), Image.Resampling.NEAREST)
            row.paste(tile, (place * side, 0))
        return row


def _coloured(share: np.ndarray, anchors: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """Return ``share`` (…), 0 for the first anchor to 1 for the last, as colours (…, 3) uint8."""
    places = np.linspace(0, 1, len(anchors))
    bounded = np.clip(share, 0, 1)
    return np.stack([np.interp(bounded, places, channel) for channel in np.array(anchors).T], -1).astype(np.uint8)


def _caption(meta: dict[str, Any]) -> str:
    labels = ", ".join(map(str, meta.get("labels") or [meta.get("label") or "no label"]))
    level = meta.get("rms_db")
    facts = [labels, str(meta.get("path", "")), f"{meta.get('start', 0):.2f} s"]
    return " · ".join([*facts, *([f"{level:.0f} dB"] if isinstance(level, int | float) else [])])


# --- page and picture ------------------------------------------------------------------------------------------------


def _page(name: str, summary: str, charts: Mapping[str, Mapping[str, int]], cards: list[Card]) -> str:
    return render(
        Path(__file__).with_name("contact_sheet.html"),
        title=name,
        summary=summary,
        charts=charts,
        figures=[
            {
                "key": card.key,
                "caption": card.caption,
                "picture": _data_url("image/jpeg", _jpeg(card.picture)),
                "sound": _data_url("audio/wav", card.sound) if card.sound else "",
            }
            for card in cards
        ],
    )


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _contact(cards: list[Card]) -> Image.Image:
    """Return all pictures on one, each over its key."""
    height = max((card.picture.height for card in cards), default=0) + CAPTION + GAP
    rows = -(-len(cards) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (WIDTH + GAP) + GAP, rows * height + GAP), (24, 24, 26))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for place, card in enumerate(cards):
        left, top = GAP + place % COLUMNS * (WIDTH + GAP), GAP + place // COLUMNS * height
        sheet.paste(card.picture, (left, top))
        pen.text((left, top + card.picture.height + 2), card.key, (220, 220, 220), font)
    return sheet


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()
