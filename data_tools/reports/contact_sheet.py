"""A set to look at and listen to: one self-contained ``index.html`` and ``contact.jpg``, some samples of the whole set.

``write(shards, output, chosen, summary, charts)`` makes both of the samples that :func:`spread` chose. A clip shows its
frames in a row and below them, on the same axis of time, its sound as mel spectrogram; on the page it can be played. A
latent sample shows the channels of its means, the set's mean in the middle of the colour scale and three standard
deviations at its ends.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.pages import render
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.spectrogram import coloured
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.latents import PARTS, LatentSample, decode_latents
from mmldm_scale.shards.manifest import MANIFEST, PLAN, Manifest
from mmldm_scale.shards.reader import DamagedSample, Sample, ShardSet

from ..launching.progress import Progress
from .clip_picture import THUMB, clip_picture

FRAMES = 8  # of a clip in its row
WIDTH = FRAMES * THUMB  # pixels of a sample's picture
CAPTION, GAP = 20, 10  # pixels in contact.jpg
COLUMNS = 2  # of contact.jpg
RANGE = 3.0  # standard deviations from the middle of the latents' colours to their ends

LATENT_COLOURS = ((33, 80, 160), (140, 180, 215), (245, 245, 242), (230, 150, 110), (165, 35, 45))  # least to most

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


def spread(origins: Sequence[str], count: int) -> list[int]:
    """Return the numbers of ``count`` samples, ascending, spread evenly over the recordings, and over each of them.

    No recording has two more than another that has as many samples.

    Args:
        origins: the recording of each sample.
    """
    recordings: dict[str, list[int]] = {}
    for number, origin in enumerate(origins):
        recordings.setdefault(origin, []).append(number)
    groups = list(recordings.values())
    shares = [0] * len(groups)
    left = min(count, len(origins))
    while left:
        open_groups = [place for place, group in enumerate(groups) if shares[place] < len(group)]
        taken = min(left, len(open_groups))
        for place in np.linspace(0, len(open_groups) - 1, taken).round().astype(int):
            shares[open_groups[place]] += 1
        left -= taken
    return sorted(
        group[int((i + 0.5) / share * len(group))]
        for group, share in zip(groups, shares, strict=True)
        for i in range(share)
    )


def write(
    shards: ShardSet, output: Path, chosen: Sequence[int], summary: str, charts: Mapping[str, Mapping[str, int]]
) -> None:
    """Write ``index.html`` and ``contact.jpg`` into the folder ``output``, each whole or not at all.

    Args:
        chosen: numbers of the samples that are shown.
        summary: lines of text over them.
        charts: counts by name, by title.

    Raises:
        UserError: the disk is full; a sample is damaged (DamagedSet).
    """
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
        self._audio_image = AudioImage(manifest.media)

    def __call__(self, sample: Sample) -> Card:
        picture = clip_picture(decode_clip(sample.members), self._audio_image, FRAMES)
        return Card(sample.key, _caption(sample.meta), picture, bytes(sample.members["wav"]))


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
        colours = coloured(share, LATENT_COLOURS)  # (C, H, W, 3)
        side = WIDTH // len(colours)
        row = Image.new("RGB", (WIDTH, max(1, side - 1)))
        for place, channel in enumerate(colours):
            tile = Image.fromarray(channel).resize((max(1, side - 1), row.height), Image.Resampling.NEAREST)
            row.paste(tile, (place * side, 0))
        return row


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
