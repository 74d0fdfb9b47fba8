"""The folder that ``mmldm sample`` fills as a set: the samples of one task, with the JSON beside each as its info."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmldm_scale.evaluation.clip_sets.media_folder import ClipFiles, MediaFolder
from mmldm_scale.media.clip import MediaError
from mmldm_scale.sampling.sample_files import SAMPLE

MOST_BYTES = 1 << 20  # of a sample's JSON


class SampledFolder(MediaFolder):
    """The finished samples of ``task`` in ``folder``; a sample's file appears when it is complete.

    The clips that they started from, spectrograms and lossless tars, which are in subfolders, are not among them.
    """

    def __init__(self, path: str, folder: Path, task: str) -> None:
        super().__init__(path, folder, {file.stem: ClipFiles(file) for file in samples_by_task(folder)[task]})

    def info(self, index: int) -> Mapping[str, Any]:
        """Return what is in the sample's JSON; nothing if it has none, as those of older versions.

        Raises:
            MediaError: it is damaged.
        """
        file = self._folder / f"{self.names[index]}.json"
        try:
            with file.open("rb") as stream:
                value = json.loads(stream.read(MOST_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise MediaError("corrupt", f"{file}: not the JSON of a sample: {str(error)[:200]}") from None
        if not isinstance(value, dict):
            raise MediaError("corrupt", f"{file}: not the JSON of a sample: no object")
        return with_label(value)


def samples_by_task(folder: Path) -> dict[str, list[Path]]:
    """Return the files of samples in ``folder`` by their task."""
    samples: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        match = SAMPLE.fullmatch(file.name)
        if match and file.is_file():
            samples.setdefault(match[1], []).append(file)
    return samples


def with_label(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of a sample with its class under "label", too, as clips of shards have it."""
    return {**record, "label": record.get("class")}
