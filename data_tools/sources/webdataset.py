"""Other people's WebDatasets: tars of samples whose members share a key, such as video2dataset writes them.

    00012.tar: 000120007.mp4, 000120007.txt (the caption), 000120007.json; also .webm, .mkv, …; and .wav, .flac, .m4a, …

Members are grouped as the ``webdataset`` package groups them. Each video of a sample becomes one entry, in the order of
tars and members; a sound member replaces the video's own sound. A sample without a video, such as a failed download, is
dropped, and so is everything that belongs to no sample. Tars are read in place and have to be uncompressed. Nothing
in them is decoded but media, text and JSON.
"""

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmldm_scale.common.addresses import path_key
from mmldm_scale.common.errors import UserError
from mmldm_scale.media.decode import SUFFIXES
from mmldm_scale.media.find_files import find_files

from ..launching.progress import Progress
from .files import folder_split, kind_of, named_other
from .listing import relative_path
from .source import SourceOptions
from .tar_members import NOTE_LIMIT, Member, index_tar, notes, read_member
from .video import Video

_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_META = re.compile(r"__[^/]*__($|/)")  # names that WebDataset keeps for other things than samples
Sample = dict[str, Any]  # by suffix its members; "__key__" its key


@dataclass
class WebDatasetOptions(SourceOptions):
    """Settings of ``--source webdataset``."""

    kind: str = "webdataset"
    # tars, relative to the input: {00000..00099}.tar, train/*.tar, …; "": every tar below the input
    list: str = path_key("")
    label: str = ""  # key of the json member whose value is the class; "": what a member .cls says
    origin: str = ""  # key of the json member that names the recording, such as url; "": each sample is its own


class WebDatasetSource:
    """The samples of tars below a folder; see the module's text."""

    def __init__(self, options: WebDatasetOptions, folder: Path) -> None:
        self.folder = self.sound_folder = folder
        self._options = options

    def videos(self) -> list[Video]:
        """Return the videos of all samples, then the dropped entries of other files.

        Raises UserError if there is no tar, or a pattern cannot be expanded.
        """
        paths = find_files(self.folder)
        tars = [path for path in paths if path.lower().endswith(".tar")]
        chosen = self._chosen(tars) if self._options.list else tars
        if not chosen:
            raise UserError(
                f"{self.folder}: holds no tars{f' like {self._options.list}' if self._options.list else ''}"
            )
        videos: list[Video] = []
        with Progress(len(chosen), "reading tars", "tars") as bar:
            for tar in chosen:
                videos += self._in_tar(tar) if (self.folder / tar).is_file() else [_missing(tar)]
                bar.update()
        taken = set(chosen)
        return videos + [_other(path) for path in paths if path not in taken]

    def _chosen(self, tars: list[str]) -> list[str]:
        """Return the tars that the patterns of ``source.list`` name, each once, in their order."""
        from webdataset.shardlists import expand_urls  # imports torch: only for this kind of source

        try:
            patterns = [relative_path(pattern) for pattern in expand_urls(self._options.list)]
        except (ValueError, AssertionError) as error:
            raise UserError(f"source.list={self._options.list}: {error}") from None
        named = [[pattern] if not set("*?[") & set(pattern) else fnmatch.filter(tars, pattern) for pattern in patterns]
        return list(dict.fromkeys(path for paths in named for path in paths))

    def _in_tar(self, tar: str) -> Iterator[Video]:
        """Yield every video of the tar, and a dropped entry for what is none."""
        from webdataset.tariterators import group_by_keys  # imports torch: only for this kind of source

        index = index_tar(self.folder / tar)
        given: list[Member] = []
        repeated: list[Member] = []

        def files() -> Iterator[dict[str, Any]]:
            for member in index.members:
                if not member.fault and not _META.match(member.name):
                    given.append(member)
                    yield {"fname": member.name, "data": member, "__url__": tar}

        def repeats(error: Exception) -> bool:
            repeated.append(given[-1])
            return True

        accounted = set[int]()
        for sample in group_by_keys(files(), handler=repeats):
            members = [member for member in sample.values() if isinstance(member, Member)]
            accounted.update(member.offset for member in members)
            yield from self._of_sample(tar, sample, members)
        accounted.update(member.offset for member in repeated)
        for member in repeated:
            yield _dropped(tar, member, "duplicate_member", "its sample has a member with this suffix already")
        for member in index.members:
            if member.fault:
                again = member.fault == "duplicate_member"
                yield _dropped(tar, member, member.fault, "the name comes again" if again else "it cannot be read")
            elif member.offset not in accounted:
                yield _dropped(tar, member, "not_in_a_sample", "its name has no key and suffix")
        if index.damage:
            yield Video(tar, reason="damaged_tar", detail=index.damage)

    def _of_sample(self, tar: str, sample: Sample, members: list[Member]) -> Iterator[Video]:
        videos = [member for member in members if Path(member.name).suffix.lower() in SUFFIXES]
        sounds = [member for member in members if kind_of(member.name) == "sound"]
        key = f"{tar}/{sample['__key__']}"
        if not videos:
            yield Video(key, origin=key, reason="no_video_member", detail=self._about(tar, members))
            return
        label, origin = self._facts(tar, sample, videos[0])
        for member in videos:
            yield Video(
                f"{tar}/{member.name}",
                member.size,
                (label,) if label else (),
                origin=origin or key,
                split=self._options.split or folder_split(self.folder, tar),
                audio=f"{tar}/{sounds[0].name}" if sounds else "",
            )

    def _facts(self, tar: str, sample: Sample, video: Member) -> tuple[str, str]:
        """Return the class and the recording of a sample, "" where nothing tells."""
        label = origin = ""
        if self._options.label or self._options.origin:
            facts = notes(self.folder, f"{tar}/{video.name}").get("json") or {}
            label, origin = (_word(facts.get(key)) for key in (self._options.label, self._options.origin))
        if not self._options.label and "cls" in sample and sample["cls"].size <= NOTE_LIMIT:
            label = read_member(self.folder / tar, sample["cls"]).decode("utf-8", "replace").strip()
        return label, origin

    def _about(self, tar: str, members: list[Member]) -> str:
        """Return what a sample without a video holds, and what its JSON says about that."""
        facts = notes(self.folder, f"{tar}/{members[0].name}").get("json") or {}
        said = [_word(facts.get(key)) for key in ("status", "error_message")]
        held = ", ".join(Path(member.name).suffix for member in members)
        return ": ".join([f"it holds {held}", *filter(None, said)])[:300]


def _word(value: object) -> str:
    """Return a JSON value that is a name or a number as text, "" for others."""
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _dropped(tar: str, member: Member, reason: str, detail: str) -> Video:
    """Return the dropped entry of a member; names may repeat in a tar, so the entry's has the place in it, too."""
    return Video(f"{tar}/{member.name}//{member.offset}", reason=reason, detail=detail)


def _missing(tar: str) -> Video:
    return Video(tar, origin=tar, reason="no_file", detail="the list names it, but there is no such tar")


def _other(path: str) -> Video:
    """Return the dropped entry of a file that is none of the tars that were read."""
    if path.lower().endswith(_COMPRESSED):
        return Video(path, reason="compressed_tar", detail="tars are read in place: uncompress it")
    if path.lower().endswith(".tar"):
        return Video(path, reason="not_listed", detail="source.list does not name it")
    return named_other(path) or Video(path, reason="not_in_a_tar", detail="only tars are read")
