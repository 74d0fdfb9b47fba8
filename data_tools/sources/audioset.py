"""AudioSet: segment lists that name stretches of YouTube videos, and files named by video id that hold them.

The lists are ``source.list``, by default every *_segments.csv in the folder; a list's split is its name ("eval" for
eval_segments.csv). Files lie flat or in any sub-folders; ``segments.parse_name`` knows how they are called. Each row of
the lists becomes one video, in their order: with the file that holds it or a reason. Behind them come the files that no
row has a use for, so nothing is left out. Without any list the files are taken whole, without labels.

A label that is included or excluded stands for its whole branch of the ontology. Labels are names where the ontology or
the label index is at hand (``source.ontology``, ``source.label_names``, or beside the first list).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmldm_scale.common.addresses import path_key
from mmldm_scale.common.errors import UserError

from ..launching.progress import Progress
from .files import file_size, find_videos
from .ontology import Ontology
from .segment_files import SegmentFiles, segment_video
from .segments import Segment, list_split, parse_name, read_segments
from .source import SourceOptions
from .video import Video


@dataclass
class AudioSetOptions(SourceOptions):
    """Settings of ``--source audioset``."""

    kind: str = "audioset"
    include: list[str] = field(default_factory=list)  # only segments with one of these labels or one below them
    exclude: list[str] = field(default_factory=list)  # no segment with one of these labels or one below them
    ontology: str = path_key("")  # ontology.json; "": the one beside the first list or in the folder, if any
    label_names: str = ""  # class_labels_indices.csv; "": as above
    list: str = path_key("")  # segment lists, several with "," between; "": every *_segments.csv in the folder


class AudioSetSource:
    """The segments of AudioSet's lists in a folder of downloaded files; see the module's text."""

    def __init__(self, options: AudioSetOptions, folder: Path) -> None:
        """Raise UserError if a list or a label file is missing or has another format, or a label is unknown."""
        self.folder = folder
        self.sound_folder: Path | None = None
        self._split = options.split
        self._lists = _find_lists(options.list, folder)
        ontology, label_names = (
            _beside(name, setting, [*(file.parent for file in self._lists[:1]), folder])
            for setting, name in (
                (options.ontology, "ontology.json"),
                (options.label_names, "class_labels_indices.csv"),
            )
        )
        if (options.include or options.exclude) and not (self._lists and ontology):
            raise UserError("source.include, source.exclude: need segment lists and source.ontology=…/ontology.json")
        self._labels = _Labels(Ontology.read(ontology, label_names), options)

    def videos(self) -> list[Video]:
        """Return one video for each row of the lists, one for each video that none of them uses, then all other files.

        Raises UserError if there are no files, or a list has no rows.
        """
        found = find_videos(self.folder)
        paths = found.videos
        if not self._lists:
            return [self._unlisted(path) for path in paths] + found.others
        files = SegmentFiles(paths)
        return files.without_wrong_guesses(list(self._rows(files))) + files.unused(paths) + found.others

    def _rows(self, files: SegmentFiles) -> Iterator[Video]:
        with Progress(None, "reading lists", "rows") as bar:
            for file in self._lists:
                before, name, split = bar.n, file.name, self._split or list_split(file)
                for number, row in read_segments(file):
                    bar.update()
                    yield self._row(row, f"{name}:{number}", split, files)
                if bar.n == before:
                    raise UserError(f"{file}: lists no segments")

    def _row(self, row: Segment | str, where: str, split: str, files: SegmentFiles) -> Video:
        if isinstance(row, str):
            return Video(where, origin=where, split=split, reason="bad_row", detail=row)
        labels, reason, detail = self._labels.judge(row.mids)
        if reason == "bad_row":
            return Video(where, origin=row.youtube_id, split=split, reason=reason, detail=detail)
        if not files.add(row):
            text = f"{row.youtube_id} from {row.start:g} s on is listed twice"
            return Video(where, origin=row.youtube_id, split=split, reason="duplicate_row", detail=text)
        return segment_video(self.folder, row, files, labels, split, reason, detail)

    def _unlisted(self, path: str) -> Video:
        file = parse_name(path)
        return Video(
            path, file_size(self.folder, path), origin=file.youtube_id if file is not None else path, split=self._split
        )


class _Labels:
    """Which sets of labels are included, and the labels' names."""

    def __init__(self, ontology: Ontology, options: AudioSetOptions) -> None:
        self._names = ontology.names
        self._include = ontology.branches(options.include)
        self._exclude = ontology.branches(options.exclude)
        self._judged: dict[tuple[str, ...], tuple[tuple[str, ...], str, str]] = {}  # millions of rows share few sets

    def judge(self, mids: tuple[str, ...]) -> tuple[tuple[str, ...], str, str]:
        """Return the names of ``mids``, and the reason and detail for which they are not included (or two times "").

        Labels that were asked for come first, the others in the list's order.
        """
        if mids not in self._judged:
            chosen_first = sorted(mids, key=lambda mid: mid not in self._include)
            self._judged[mids] = (tuple(self._names.get(mid, mid) for mid in chosen_first), *self._refusal(mids))
        return self._judged[mids]

    def _refusal(self, mids: tuple[str, ...]) -> tuple[str, str]:
        unknown = [mid for mid in mids if mid not in self._names] if self._names else []
        if unknown or not mids:
            return "bad_row", f"{unknown[0][:100]!r} is no label of AudioSet" if unknown else "it has no label"
        excluded = [self._names.get(mid, mid) for mid in mids if mid in self._exclude]
        if excluded:
            return "label_excluded", excluded[0]
        if self._include and self._include.isdisjoint(mids):
            return "label_not_included", ", ".join(self._names.get(mid, mid) for mid in mids)
        return "", ""


def _find_lists(setting: str, folder: Path) -> list[Path]:
    """Return the segment lists that ``setting`` names (several with "," between), or those in ``folder``."""
    if not setting:
        return sorted(folder.glob("*_segments.csv"))
    files = [Path(setting)] if Path(setting).is_file() else [Path(name.strip()) for name in setting.split(",")]
    for file in files:
        if file.suffix.lower() in (".parquet", ".jsonl"):
            raise UserError(
                f"source.list={file}: not a segment list of AudioSet; a list of clips needs --source folder"
            )
        if not file.is_file():
            raise UserError(f"source.list={file}: no such file; give a segment list such as eval_segments.csv")
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        raise UserError(
            f"source.list={setting}: two lists have the same name, so that their rows could not be distinguished"
        )
    return files


def _beside(name: str, setting: str, folders: list[Path]) -> Path | None:
    """Return the file ``setting``, else the one called ``name`` in the first of ``folders`` that has it."""
    if setting:
        return Path(setting)
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
