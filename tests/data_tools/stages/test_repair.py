import os
import shutil

import pytest

from data_tools.shard import main


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(good_videos, tmp_path_factory):
    """The good videos as a clip set of 15 samples in 4 shards."""
    output = tmp_path_factory.mktemp("repair") / "clips"
    small = ["media.frames=4", "media.size=16", "media.audio.sample_rate=8000", "media.audio.f_max=4000", "stride=2"]
    arguments = ["--input", str(good_videos), "--output", str(output), "--workers", "0", *small, "samples_per_shard=4"]
    assert main(["clips", *arguments]) == 0
    return output


def repair(folder):
    return main(["repair", "--input", str(folder), "--workers", "0"])


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_only_the_faulty_shards_are_made_again(whole, tmp_path, capsys):
    folder = tmp_path / "set"
    shutil.copytree(whole, folder)
    flip(folder / "shard-000000.tar", 5000)
    (folder / "shard-000002.json").write_text("{}")
    for number in (1, 3):
        os.utime(folder / f"shard-00000{number}.tar", (1, 1))
    assert main(["verify", "--input", str(folder), "--workers", "0"]) == 1
    assert repair(folder) == 0
    out = capsys.readouterr().out
    assert "was shard-000000: the tar's sha256 differs from the one in its index" in out
    assert contents(folder) == contents(whole)
    assert [(folder / f"shard-00000{number}.tar").stat().st_mtime for number in (1, 3)] == [1, 1]


def test_a_whole_set_stays_as_it_is(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "set")
    assert repair(tmp_path / "set") == 0
    assert "0 shards made again" in capsys.readouterr().out
    assert contents(tmp_path / "set") == contents(whole)


@pytest.mark.parametrize("name", ["manifest.json", "dropped.jsonl"])
def test_what_sums_a_set_up_is_written_again(whole, tmp_path, name):
    shutil.copytree(whole, tmp_path / "set")
    (tmp_path / "set" / name).write_text("{}")
    assert repair(tmp_path / "set") == 0
    assert contents(tmp_path / "set") == contents(whole)


def test_a_fault_that_is_of_no_shard_stays_named(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "set")
    (tmp_path / "set" / "notes.txt").touch()
    assert repair(tmp_path / "set") == 1
    assert "notes.txt: does not belong to the set" in capsys.readouterr().out


def test_videos_that_are_gone_are_a_clear_refusal(whole, good_videos, tmp_path, capsys):
    shutil.copytree(good_videos, tmp_path / "videos")
    small = ["media.frames=4", "media.size=16", "media.audio.sample_rate=8000", "media.audio.f_max=4000"]
    arguments = ["--input", str(tmp_path / "videos"), "--output", str(tmp_path / "set"), "--workers", "0", *small]
    assert main(["clips", *arguments]) == 0
    shutil.rmtree(tmp_path / "videos")
    assert repair(tmp_path / "set") == 2
    assert "videos: no such folder" in capsys.readouterr().err


def test_a_folder_without_a_plan_is_a_clear_refusal(tmp_path, capsys):
    assert repair(tmp_path) == 2
    assert "no shard set was begun here" in capsys.readouterr().err
