"""What a study is about: its sets of clips and its settings, as ``study.json`` in the study's folder has them.

``create`` makes a study, ``load`` reads it, ``check`` compares it with what a later command asks for. Clips are
identified by their content, so that votes never belong to other clips than those that were seen; their folders may
move.

A study's folder holds ``study.json``, ``votes.sqlite``, ``token`` (the secret part of the raters' link) and, with
attention checks, ``noise.mp4``.
"""

import itertools
import json
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import av

from mmldm_scale.common.atomic_files import sha256, write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.clip_sets.sampled_folder import samples_by_task
from mmldm_scale.evaluation.rating.noise_clip import write_noise_clip

FILE, TOKEN, NOISE = "study.json", "token", "noise.mp4"
FORMAT = 1  # of study.json, and of the plan that follows from it
QUESTIONS, CHECKS, SEED = 40, 3, 0  # defaults; questions: at most, for one rater
MOST_CHECKS = 100
VIDEO_CODECS, AUDIO_CODECS = ("h264",), ("aac", "mp3")  # which every browser plays
NAME = re.compile(r"\w[\w .+()-]{0,59}")

Mode = Literal["pairs", "single"]


@dataclass(frozen=True)
class ClipFile:
    """A clip of a set: the name of its file in the set's folder, and the sha256 (hex) of its content."""

    file: str
    sha256: str


@dataclass(frozen=True)
class RatedSet:
    """A set under rating: its folder, and its clips by their key, which corresponding clips of other sets share."""

    folder: Path
    clips: Mapping[str, ClipFile]


@dataclass(frozen=True)
class Stratum:
    """What questions are about: one set ("single") or two ("pairs"), and the keys of the clips that can be shown."""

    sets: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        folder: where its files are.
        mode: "pairs" or "single".
        questions: number for each rater, without attention checks.
        checks: number of attention checks for each rater.
        seed: of the raters' questions.
        sets: by name, in the order of the command line.
    """

    folder: Path
    mode: Mode
    questions: int
    checks: int
    seed: int
    sets: Mapping[str, RatedSet]

    @property
    def strata(self) -> list[Stratum]:
        """The sets, or pairs of sets, over which the questions are balanced."""
        if self.mode == "single":
            return [Stratum((name,), tuple(rated.clips)) for name, rated in self.sets.items()]
        clips = {name: rated.clips for name, rated in self.sets.items()}
        pairs = itertools.combinations(clips, 2)
        return [Stratum((a, b), tuple(key for key in clips[a] if key in clips[b])) for a, b in pairs]

    @property
    def most_questions(self) -> int:
        """The largest number of questions for one rater that shows nothing twice and every stratum equally often."""
        return len(self.strata) * min(len(stratum.keys) for stratum in self.strata)

    def file(self, name: str, key: str) -> Path:
        """Return the file of clip ``key`` of set ``name``."""
        rated = self.sets[name]
        return rated.folder / rated.clips[key].file


@dataclass(frozen=True)
class Wish:
    """What a command line asks for; None, or no sets: not given."""

    mode: Mode | None
    questions: int | None
    checks: int | None
    seed: int | None
    sets: Mapping[str, Path]


def parse_sets(options: Sequence[str]) -> dict[str, Path]:
    """Return the folders by set of ``--set`` options.

    Raises:
        UserError: one has another form, or a name occurs twice.
    """
    sets: dict[str, Path] = {}
    for option in options:
        name, equals, folder = option.partition("=")
        if not equals or not folder or not NAME.fullmatch(name):
            text = "must be NAME=FOLDER, the name at most 60 letters, digits, spaces or _ . + - ( )"
            raise UserError(f"--set {option}: {text}")
        if name in sets:
            raise UserError(f"--set {option}: there is another set {name}")
        sets[name] = Path(folder)
    return sets


def exists(folder: Path) -> bool:
    """Return whether ``folder`` holds a study."""
    return (folder / FILE).exists()


def create(folder: Path, wish: Wish) -> Study:
    """Make the study that ``wish`` describes in ``folder``; ``study.json`` is written last.

    Raises:
        UserError: a set or a setting is missing or wrong, or a clip cannot be played in browsers.
    """
    if not wish.sets:
        raise UserError(f"--set: none given, and {folder} holds no study yet; give --set NAME=FOLDER for each set")
    mode = wish.mode or ("pairs" if len(wish.sets) > 1 else "single")
    if mode == "pairs" and len(wish.sets) < 2:
        raise UserError("--pairs: needs two or more sets, each with --set NAME=FOLDER")
    files = {name: _mp4_files(name, path) for name, path in wish.sets.items()}
    for name, other in itertools.combinations(files, 2):
        if {file.resolve() for file in files[name]} & {file.resolve() for file in files[other]}:
            raise UserError(f"--set {other}={wish.sets[other]}: has clips of set {name}; give each set its own")
    keys = _keys(files, mode)
    sets = {
        name: RatedSet(
            _folder(wish.sets[name]).resolve(), {keys[name][file]: ClipFile(file.name, sha256(file)) for file in paths}
        )
        for name, paths in files.items()
    }
    study = Study(folder, mode, 0, CHECKS if wish.checks is None else wish.checks, wish.seed or SEED, sets)
    study = replace(study, questions=_questions(study, wish.questions))
    for file in itertools.chain(*files.values()):
        _require_playable(file)
    if not 0 <= study.checks <= MOST_CHECKS:
        raise UserError(f"--attention {study.checks}: must be from 0 to {MOST_CHECKS}")
    folder.mkdir(parents=True, exist_ok=True)
    if study.checks:
        write_noise_clip(folder / NOISE, next(iter(files.values()))[0])
    write_whole(folder / FILE, json.dumps(_to_json(study), indent=1).encode() + b"\n")
    return study


def load(folder: Path) -> Study:
    """Return the study in ``folder``.

    Raises:
        UserError: there is none, it is damaged, or it has another format.
    """
    file = folder / FILE
    try:
        record = json.loads(file.read_bytes())
        if record["format"] != FORMAT:
            raise UserError(f"{file}: has format {record['format']}, this version reads {FORMAT}")
        study = _from_json(folder, record)
        if study.mode not in get_args(Mode) or not study.sets:
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"{folder}: no study: no {FILE}; mmldm rate serve makes one") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{file}: is damaged, or not written by mmldm rate serve") from None
    return study


def check(study: Study, wish: Wish) -> Study:
    """Return ``study`` with the folders that ``wish`` gives, after a comparison of everything else.

    Raises:
        UserError: ``wish`` asks for another study, or a clip is missing or has changed.
    """
    for option, asked, has in (
        ("--pairs or --single", wish.mode, study.mode),
        ("--questions", wish.questions, study.questions),
        ("--attention", wish.checks, study.checks),
        ("--seed", wish.seed, study.seed),
        ("--set", sorted(wish.sets) or None, sorted(study.sets)),
    ):
        if asked is not None and asked != has:
            shown = [", ".join(value) if isinstance(value, list) else value for value in (asked, has)]
            raise UserError(f"{option}: {shown[0]}, but the study {study.folder} was made with {shown[1]}")
    folders = {name: _folder(path) for name, path in wish.sets.items()}
    sets = {name: replace(rated, folder=folders.get(name, rated.folder)) for name, rated in study.sets.items()}
    study = replace(study, sets=sets)
    for name, rated in study.sets.items():
        for key, clip in rated.clips.items():
            file = study.file(name, key)
            if not file.is_file():
                raise UserError(f"{file}: missing; if set {name} was moved, give --set {name}=FOLDER")
            if sha256(file) != clip.sha256:
                raise UserError(f"{file}: is another clip than when the study was made; make a new study for new clips")
    return study


def token(study: Study) -> str:
    """Return the secret part of the raters' link, from a file that only this user can read; without one, a new one."""
    file = study.folder / TOKEN
    if not file.exists():
        file.touch(mode=0o600)
    if not file.read_text():
        file.write_text(secrets.token_urlsafe(16) + "\n")
    return file.read_text().strip()


def unpaired(study: Study) -> dict[str, int]:
    """Return how many clips of each set have no partner, so that no question shows them; only sets with such."""
    shown = {(name, key) for stratum in study.strata for name in stratum.sets for key in stratum.keys}
    counts = Counter(name for name, rated in study.sets.items() for key in rated.clips if (name, key) not in shown)
    return dict(counts)


def _mp4_files(name: str, path: Path) -> list[Path]:
    """Return the clips in the folder ``path``, or those of the task whose record ``path`` is.

    Samples of several tasks are no set: those of a2v and v2a have real sound or pictures.
    """
    folder = _folder(path)
    if not folder.is_dir():
        raise UserError(f"--set {name}={path}: no such folder")
    samples = samples_by_task(folder)
    if folder == path and len(samples) > 1:
        records = " or ".join(str(folder / f"{task}.json") for task in samples)
        raise UserError(f"--set {name}={path}: contains samples of the tasks {', '.join(samples)}; give {records}")
    found = sorted(folder.glob("*.mp4")) if folder == path else samples.get(path.stem, [])
    files = [file for file in found if file.suffix == ".mp4" and file.is_file()]
    if not files:
        raise UserError(f"--set {name}={path}: holds no .mp4 file")
    return files


def _folder(path: Path) -> Path:
    """Return the folder of a set that is given as a folder, or as the record of a task's samples in it."""
    return path.parent if path.suffix == ".json" else path


def _keys(files: Mapping[str, Sequence[Path]], mode: Mode) -> dict[str, dict[Path, str]]:
    """Return each file's key: the stem of its name or, if no two sets share one, the number at its end."""
    stems = {name: {file: file.stem for file in paths} for name, paths in files.items()}
    if mode == "single" or _all_share(stems):
        return stems
    numbers = {
        name: {file: str(int(match[0])) for file in paths if (match := re.search(r"\d+$", file.stem))}
        for name, paths in files.items()
    }
    complete = all(len(set(numbers[name].values())) == len(paths) for name, paths in files.items())
    if complete and _all_share(numbers):
        return numbers
    names = ", ".join(f"{name} ({paths[0].name}, …)" for name, paths in files.items())
    raise UserError(f"--pairs: some of these sets share no file name and no number at its end: {names}")


def _all_share(keys: Mapping[str, Mapping[Path, str]]) -> bool:
    return all(set(keys[a].values()) & set(keys[b].values()) for a, b in itertools.combinations(keys, 2))


def _questions(study: Study, asked: int | None) -> int:
    most = study.most_questions
    if asked is not None and asked > most:
        of = "pairs" if study.mode == "pairs" else "clips"
        raise UserError(f"--questions {asked}: must be at most {most}: the sets have no more {of} in equal numbers")
    return min(QUESTIONS, most) if asked is None else asked


def _require_playable(file: Path) -> None:
    """Raise UserError unless every browser plays ``file``, with sound."""
    try:
        with av.open(str(file)) as container:
            video = [stream.codec_context for stream in container.streams.video]
            audio = [stream.codec_context.name for stream in container.streams.audio]
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    if not video or not audio:
        raise UserError(f"{file}: has no {'sound' if video else 'picture'}; clips to rate need both")
    wrong = [name for name in audio if name not in AUDIO_CODECS]
    wrong += [codec.name for codec in video if codec.name not in VIDEO_CODECS]
    wrong += [str(codec.pix_fmt) for codec in video if codec.name in VIDEO_CODECS and codec.pix_fmt != "yuv420p"]
    if wrong:
        remedy = "ffmpeg -i IN -c:v libx264 -crf 12 -pix_fmt yuv420p -c:a aac -b:a 256k OUT"
        raise UserError(f"{file}: {', '.join(wrong)}: not every browser plays this; convert all sets: {remedy}")


def _to_json(study: Study) -> dict[str, Any]:
    sets = [
        {
            "name": name,
            "folder": str(rated.folder),
            "clips": {key: {"file": clip.file, "sha256": clip.sha256} for key, clip in rated.clips.items()},
        }
        for name, rated in study.sets.items()
    ]
    settings = {"mode": study.mode, "questions": study.questions, "checks": study.checks, "seed": study.seed}
    return {"format": FORMAT, **settings, "sets": sets}


def _from_json(folder: Path, record: Mapping[str, Any]) -> Study:
    sets = {
        part["name"]: RatedSet(
            Path(part["folder"]),
            {key: ClipFile(Path(clip["file"]).name, clip["sha256"]) for key, clip in part["clips"].items()},
        )
        for part in record["sets"]
    }
    questions, checks, seed = (int(record[key]) for key in ("questions", "checks", "seed"))
    return Study(folder, record["mode"], questions, checks, seed, sets)
