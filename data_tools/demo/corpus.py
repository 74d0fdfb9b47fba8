"""A procedural corpus of sounding videos: objects move, hit things, and sound exactly when they do.

    python data_tools/demo/corpus.py --output DIR --videos 48 --seconds 4 --seed 0

writes DIR/<class>/<class>_<number>.mp4 (H.264 + AAC) and beside each a .json with the exact truth: class, seed, rates,
and time, place and pitch of every hit. The same arguments give the same bytes; videos that exist already are kept. From
Python: ``make_corpus(folder, videos=8, seconds=2)``.
"""

import argparse
import dataclasses
import importlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

if not __package__:  # `python data_tools/demo/corpus.py`: relative imports need the file's package (PEP 366)
    _PACKAGE = Path(__file__).resolve().parents[1]
    if str(_PACKAGE.parent) not in sys.path:
        sys.path.insert(0, str(_PACKAGE.parent))
    __package__ = f"{_PACKAGE.name}.demo"
    importlib.import_module(__package__)

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.rng import generator
from mmldm_scale.media.encode import write_video

from .scenes import SAMPLE_RATE, SCENES, Scene

PEAK = 0.7  # of the loudest sample of a video


@dataclass(frozen=True)
class Recipe:
    """What determines one video, byte for byte."""

    kind: str  # a key of SCENES
    number: int
    seed: int
    seconds: float
    fps: float
    size: int  # pixels

    def path(self, folder: Path) -> Path:
        """Return where the video lies."""
        return folder / self.kind / f"{self.kind}_{self.number:04d}.mp4"

    def header(self) -> dict[str, object]:
        """Return the part of the truth that is known beforehand."""
        fields = dataclasses.asdict(self)
        return {"class": fields.pop("kind"), **fields, "sample_rate": SAMPLE_RATE}


def make_corpus(
    folder: Path,
    videos: int = 48,
    seconds: float = 4.0,
    seed: int = 0,
    size: int = 128,
    fps: float = 20.0,
    processes: int = 1,
    progress: bool = False,
) -> list[Path]:
    """Write ``videos`` videos under ``folder``, the classes taking turns, and return their paths.

    Raises:
        UserError: a number that cannot work, or ``folder`` holds videos made with other settings.
    """
    if videos < 1 or seconds < 1 / fps or size < 16 or fps <= 0 or processes < 1:
        raise UserError("corpus: needs at least 1 video of 1 frame, 16 pixels, a positive fps and 1 process")
    kinds = list(SCENES)
    recipes = [
        Recipe(kinds[i % len(kinds)], i // len(kinds), seed, float(seconds), float(fps), size) for i in range(videos)
    ]
    folder = Path(folder)
    missing = [recipe for recipe in recipes if not _exists(folder, recipe)]
    with tqdm(total=videos, initial=videos - len(missing), desc="corpus", unit="video", disable=not progress) as bar:
        for _ in _make_all(folder, missing, processes):
            bar.update()
    return [recipe.path(folder) for recipe in recipes]


def _make_all(folder: Path, recipes: list[Recipe], processes: int) -> Iterator[None]:
    if processes == 1 or len(recipes) < 2:
        for recipe in recipes:
            _make(folder, recipe)
            yield
        return
    context = multiprocessing.get_context("spawn")  # safe whatever threads the caller has
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(_make, [folder] * len(recipes), recipes)


def _exists(folder: Path, recipe: Recipe) -> bool:
    truth = recipe.path(folder).with_suffix(".json")
    if not truth.exists():
        return False
    stored = json.loads(truth.read_text())
    differing = [key for key, value in recipe.header().items() if stored.get(key) != value]
    if differing:
        key = differing[0]
        raise UserError(
            f"{truth}: made with {key}={stored.get(key)}, not {recipe.header()[key]}; give the same settings or "
            "another --output"
        )
    return True


def _make(folder: Path, recipe: Recipe) -> None:
    path = recipe.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    scene: Scene = SCENES[recipe.kind](generator(recipe.seed, f"corpus {recipe.kind}", recipe.number), recipe.seconds)
    count = round(recipe.seconds * recipe.fps)
    frames = np.stack([scene.draw(i / recipe.fps, recipe.size) for i in range(count)])
    write_video(path, frames, recipe.fps, render_sound(scene, recipe.seconds), SAMPLE_RATE)
    hits = [_rounded(dataclasses.asdict(hit)) for hit in sorted((hit for hit, _ in scene.events), key=lambda h: h.time)]
    aside = path.with_name(f".{path.stem}.json.tmp")
    aside.write_text(json.dumps({**recipe.header(), "hits": hits}, indent=1) + "\n")
    os.replace(aside, path.with_suffix(".json"))  # last: a video counts as made when its truth exists


def render_sound(scene: Scene, seconds: float) -> np.ndarray:
    """Return the (N,) float32 waveform of all events of ``scene``, its loudest sample at PEAK."""
    line = np.zeros(round(seconds * SAMPLE_RATE))
    for hit, sound in scene.events:
        first = round(hit.time * SAMPLE_RATE)
        part = sound[: max(0, len(line) - first)]
        line[first : first + len(part)] += part
    loudest = np.abs(line).max()
    return (line * (PEAK / loudest if loudest else 1.0)).astype(np.float32)


def _rounded(hit: dict[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, str) else round(float(value), 6) for key, value in hit.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write a procedural corpus of sounding videos with its exact truth.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--videos", type=int, default=48, help="how many, all classes together (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other videos (default %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default %(default)s)")
    parser.add_argument("--fps", type=float, default=20.0, help="frames per second (default %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="processes to use (default %(default)s)")
    args = parser.parse_args()
    try:
        paths = make_corpus(
            args.output, args.videos, args.seconds, args.seed, args.size, args.fps, args.processes, progress=True
        )
    except UserError as error:
        print(f"corpus: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{len(paths)} videos in {args.output}")


if __name__ == "__main__":
    main()
