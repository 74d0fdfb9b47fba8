"""F17: damaged media neither hang nor harm what reads them; whatever they give is accounted for."""

import json
from collections import Counter
from pathlib import Path

from data_tools import shard
from data_tools.launching.process_pool import default_workers
from mmldm_scale.media.clip import MediaError
from tests.support.faults import fault_trials
from tests.support.faults.fuzz_media import damaged, fuzz, originals

SMALL = ["media.frames=4", "media.size=16", "media.audio.sample_rate=8000", "media.audio.f_max=4000", "stride=2"]


@fault_trials.counts(full=10_000, short=180)
def test_no_damaged_file_hangs_or_kills_its_reader(count, tmp_path):
    outcomes: Counter[str] = Counter()
    failures = []
    for number, outcome in enumerate(fuzz(tmp_path, count, seed=1, workers=default_workers())):
        if isinstance(outcome, MediaError):
            failures.append(f"file {number}: {outcome}")
        else:
            outcomes[outcome.kind] += 1
    fault_trials.report("damaged media are read or refused within 30 s, by a process that lives on", outcomes, failures)
    assert outcomes.total() == count
    assert outcomes["clips"] > count / 5  # the damage is not always fatal
    assert outcomes["corrupt"] > count / 50  # nor without effect
    assert not list(tmp_path.iterdir())


@fault_trials.counts(full=2_000, short=45)
def test_a_folder_of_damaged_files_is_cut_and_accounted_for(count, tmp_path):
    videos, output = tmp_path / "videos", tmp_path / "set"
    videos.mkdir()
    files = originals(videos)
    for number in range(count):
        (videos / f"{number}.mp4").write_bytes(damaged(files, number, seed=2))
    before = _contents(tmp_path)
    assert shard.main(["clips", "--input", str(videos), "--output", str(output), "--workers", "2", *SMALL]) == 0
    manifest = json.loads((output / "manifest.json").read_text())
    dropped = [json.loads(line) for line in (output / "dropped.jsonl").read_text().splitlines()]
    assert manifest["videos"] == count + len(files)
    assert manifest["samples"] + len(dropped) == manifest["candidates"] + manifest["failed_files"]
    assert manifest["dropped"] == len(dropped)
    outside = {path: data for path, data in _contents(tmp_path).items() if output not in path.parents}
    assert outside == before
    assert shard.main(["verify", "--input", str(output)]) == 0


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
