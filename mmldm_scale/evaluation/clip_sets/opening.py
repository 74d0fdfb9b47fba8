"""Opens a set of clips of any kind, which is recognised by what its folder contains."""

from collections import Counter
from pathlib import Path

from mmldm_scale.common.addresses import is_url
from mmldm_scale.common.errors import UserError
from mmldm_scale.diffusion.tasks import TASKS
from mmldm_scale.evaluation.clip_sets.clip_set import ClipSet
from mmldm_scale.evaluation.clip_sets.media_folder import MediaFolder, media_files, pair_files
from mmldm_scale.evaluation.clip_sets.sampled_folder import SampledFolder, samples_by_task
from mmldm_scale.evaluation.clip_sets.shard_folder import ShardFolder
from mmldm_scale.shards.index import shard_name
from mmldm_scale.shards.manifest import MANIFEST, PLAN

ALLOWED = (
    "must be a folder of videos, of videos and sound files with equal names, of sound files or of samples "
    "(mmldm sample), or a shard set of clips or of lossless samples (mmldm sample --lossless)"
)
NAMED = 5  # endings or sets that a message names


def open_clip_set(path: str) -> ClipSet:
    """Open the set of clips at ``path``.

    Args:
        path: a folder of one of these kinds:

            - a shard set of clips, or of the lossless samples of one task;
            - what ``mmldm sample`` filled with samples of one task; of several, the path of ``TASK.json`` in it names
              the one;
            - videos, with sound or without; frames-only videos with a sound file of the same name each; sound files.

    Raises:
        UserError: it is none of these; the message says what it is.
        DamagedSet: a shard set's index or manifest is damaged.
    """
    if is_url(path):
        raise UserError(f"{path}: is a URL; {ALLOWED}, on this machine")
    folder = Path(path)
    if folder.is_file():
        return _open_task(path, folder)
    if not folder.is_dir():
        raise UserError(f"{path}: no such file or folder; {ALLOWED}")
    if any((folder / name).is_file() for name in (PLAN, f"{shard_name(0)}.json")):
        return ShardFolder(path)
    tasks = _tasks(folder)
    if len(tasks) > 1:
        names = " or ".join(str(folder / f"{task}.json") for task in tasks)
        raise UserError(f"{path}: contains samples of the tasks {', '.join(tasks)}; give one of them: {names}")
    if tasks:
        return SampledFolder(path, folder, tasks[0])
    videos, sounds = media_files(folder)
    if not videos and not sounds:
        raise UserError(f"{path}: contains {_contents(folder)}; {ALLOWED}")
    return MediaFolder(path, folder, pair_files(path, folder, videos, sounds))


def _open_task(path: str, file: Path) -> ClipSet:
    """Open the samples of the task whose record ``file`` is; raise UserError if it is no such record."""
    if file.suffix == ".json" and file.stem in _tasks(file.parent):
        return SampledFolder(path, file.parent, file.stem)
    raise UserError(f"{path}: is a file; {ALLOWED}")


def _tasks(folder: Path) -> list[str]:
    """Return the tasks whose samples, and the record of whose job, are in ``folder``."""
    samples = samples_by_task(folder)
    return [task for task in TASKS if task in samples and (folder / f"{task}.json").is_file()]


def _contents(folder: Path) -> str:
    """Return in words what is in ``folder``, which has no media files."""
    sets = sorted(file.parent.name for file in folder.glob(f"*/{MANIFEST}"))
    if sets:
        return f"no media files, but the shard sets {', '.join(sets[:NAMED])}"
    endings = Counter(file.suffix or "without ending" for file in folder.rglob("*") if file.is_file())
    if not endings:
        return "no files"
    counts = [f"{count:,} {ending}" for ending, count in endings.most_common(NAMED)]
    return f"no media files, but other files ({', '.join(counts)})"
