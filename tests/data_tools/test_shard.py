"""The command, from videos to sets, through its own door."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.shard import main
from mmldm_scale.common import atomic_files
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.decode import read_clips
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.manifest import Manifest
from mmldm_scale.shards.reader import ShardSet

ROOT = Path(__file__).parents[2]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def clips(videos, output, overrides, workers=0):
    return ["clips", "--input", str(videos), "--output", str(output), "--workers", str(workers), *overrides]


@pytest.fixture(scope="module")
def undisturbed(good_videos, tmp_path_factory):
    """The good videos as a clip set of 15 samples in 4 shards, and the bytes of all its files."""
    output = tmp_path_factory.mktemp("sets") / "clips"
    media = ["media.frames=4", "media.size=16"]
    overrides = [*media, "media.audio.sample_rate=8000", "media.audio.n_mels=16", "media.audio.f_max=4000"]
    assert main(clips(good_videos, output, [*overrides, "stride=2", "samples_per_shard=4"])) == 0
    return output, contents(output)


def test_a_set_holds_the_windows_of_its_videos(undisturbed, good_videos):
    shards = ShardSet(undisturbed[0], "clips")
    manifest = shards.manifest
    assert (len(shards), manifest.candidates, manifest.dropped, len(manifest.shards)) == (15, 15, 0, 4)
    assert manifest.classes == ["cat", "dog"]
    assert manifest.preparation["stride"] == 2
    assert [shards.key(i) for i in (0, 1, 5, 14)] == ["cat_a-000000", "cat_a-000002", "cat_b-000000", "dog_a-000008"]
    meta = shards[11].meta
    assert meta["path"] == "dog/a.mp4"
    assert (meta["start"], meta["class"], meta["label"]) == (0.2, 1, "dog")
    clip = next(read_clips(good_videos / "dog/a.mp4", [0.2], manifest.media))
    stored = decode_clip(shards[11].members)
    np.testing.assert_allclose(stored.waveform, clip.waveform, atol=1 / 32768)
    assert np.abs(stored.frames.astype(int) - clip.frames).mean() < 4


@pytest.mark.parametrize(("hop", "warned"), [(200, False), (199, True)])
def test_a_spectrogram_longer_than_the_audio_image_is_a_warning(good_videos, overrides, tmp_path, capsys, hop, warned):
    """0.4 s at 8,000 Hz and hop 200 are 16 frames, as many as the image has columns."""
    assert main(clips(good_videos, tmp_path / "set", [*overrides, f"media.audio.hop_length={hop}"])) == 0
    line = "warning: media.audio.hop_length=199: 17 mel frames in the 16 columns of the audio image, which loses detail"
    assert (f"{line}; hop_length=200 or more fits\n" in capsys.readouterr().err) == warned


def test_the_44_khz_clips_have_an_audio_image_that_holds_their_spectrogram(make_video, tmp_path, capsys):
    """With a waveform of 1.6 s at 44,100 Hz; HiFi-GAN's settings have to be those of the file."""
    make_video(tmp_path / "videos/rain/a.mp4", seconds=2.0)
    preset = ["--config", str(ROOT / "configs/data/landscape_44k.yaml")]
    command = clips(tmp_path / "videos", tmp_path / "set", ["stride=16", "media.size=144"])
    assert main([*command, *preset]) == 0
    assert "warning" not in capsys.readouterr().err
    media = Manifest.read(tmp_path / "set").media
    waveform = decode_clip(ShardSet(tmp_path / "set")[0].members).waveform
    assert waveform.shape == (70_560,)
    images = AudioImage(media)
    decibels = images.decibels(torch.from_numpy(waveform)[None])
    assert decibels.shape == (1, 128, 138)
    assert (images.to_decibels(images.encode(torch.from_numpy(waveform)[None])) - decibels).abs().max() < 1e-3


def test_the_number_of_processes_changes_nothing(undisturbed, good_videos, overrides, tmp_path):
    assert main(clips(good_videos, tmp_path / "set", overrides, workers=2)) == 0
    assert contents(tmp_path / "set") == undisturbed[1]


def test_what_gives_no_clip_is_in_the_drop_log(mixed_videos, overrides, tmp_path, capsys):
    output = tmp_path / "set"
    assert main(clips(mixed_videos, output, overrides)) == 0
    rows = [json.loads(line) for line in (output / "dropped.jsonl").read_text().splitlines()]
    reasons = {row["path"]: row["reason"] for row in rows}
    assert reasons == {
        "bad/dangling.mp4": "missing_file",
        "bad/no_sound.mp4": "no_audio_stream",
        "bad/short.mp4": "too_short",
        "bad/silent.mp4": "silent",
        "bad/text.mp4": "not_media",
        "bad/truncated.mp4": reasons["bad/truncated.mp4"],
        "bad/zero.mp4": "empty_file",
        "readme.txt": "not_a_video",
    }
    assert reasons["bad/truncated.mp4"] in ("truncated", "corrupt")
    details = {row["reason"]: row["detail"] for row in rows}
    assert details["silent"].startswith("RMS level -")
    assert details["too_short"] == "0.200 s, a clip takes 0.4 s"
    assert str(mixed_videos) not in (output / "dropped.jsonl").read_text()
    manifest = Manifest.read(output)
    assert (manifest.videos, manifest.failed_files, manifest.samples) == (10, 6, 10)
    assert manifest.samples + manifest.dropped == manifest.candidates + manifest.failed_files == len(rows) + 10
    assert {ShardSet(output)[i].meta["path"] for i in range(10)} == {
        "good 'single' \"double\".mp4",
        "good/ünïcödé 视频.MP4",
    }
    summary = capsys.readouterr().out
    assert "10 entries found = 4 taken + 5 dropped (" in summary
    assert " + 1 other files (1 text)\n" in summary
    assert f"{manifest.candidates} candidates = 10 taken + " in summary
    assert "5 silent" in summary
    assert main(["verify", "--input", str(output)]) == 0


def test_the_drop_log_gives_the_level_of_silence(make_video, overrides, tmp_path):
    make_video(tmp_path / "videos" / "a.mp4", sound=0.0005)  # a sine of -69 dB RMS
    assert main(clips(tmp_path / "videos", tmp_path / "none", overrides)) == 2
    detail = json.loads((tmp_path / "none" / "dropped.jsonl").read_text().splitlines()[0])["detail"]
    level = float(re.fullmatch(r"RMS level (-[\d.]+) dB, below -60 dB", detail)[1])
    assert level == pytest.approx(-69, abs=1.5)
    assert main(clips(tmp_path / "videos", tmp_path / "all", [*overrides, "silence_db=-80"])) == 0


def test_names_that_are_no_text_are_cut_counted_and_shown(make_video, overrides, tmp_path, capfd):
    odd = os.fsdecode(b"caf\xe9")
    make_video(tmp_path / odd / odd / f"{odd}.mp4")
    (tmp_path / odd / f"{odd}.txt").touch()
    for silent in "abcd":
        make_video(tmp_path / odd / odd / f"{silent}.mp4", sound=0.0)
    output = tmp_path / odd / "sets" / odd
    assert main(clips(tmp_path / odd, output, overrides)) == 0
    assert "6 entries found = 5 taken + 0 dropped + 1 other files (1 text)" in capfd.readouterr().out
    assert main(["stats", "--input", str(output), "--output", str(tmp_path / odd / "looks")]) == 0
    assert "caf\\udce9" in capfd.readouterr().out
    assert "caf\\udce9" in (tmp_path / odd / "looks" / "index.html").read_text()
    assert main(["verify", "--input", str(output)]) == 0
    before = contents(output)
    tars = [path.name for path in output.glob("*.tar")]
    assert len(tars) == 2 < len(Manifest.read(output).shards)  # a part of which all is silent has no tar
    assert main(clips(tmp_path / odd, output, overrides)) == 0  # the set lies in the input, and is no part of it
    assert contents(output) == before


# --- running again ---------------------------------------------------------------------------------------------------


def test_running_again_changes_nothing(undisturbed, good_videos, overrides):
    output, before = undisturbed
    assert main(clips(good_videos, output, overrides)) == 0
    assert contents(output) == before


def killed_at(step, arguments):
    """Run the command in a child that is killed at its ``step``-th side effect; return whether it came that far."""
    child = os.fork()
    if child == 0:
        count = 0

        def deadly(real):
            def effect(*values):
                nonlocal count
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                real(*values)

            return effect

        for name in ("_write", "_sync", "_rename"):
            setattr(atomic_files, name, deadly(getattr(atomic_files, name)))
        os._exit(main(arguments))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_killed_at_every_write_sync_and_rename(good_videos, overrides, tmp_path):
    """One video, two shards: the run is killed at each of its side effects in turn, then carried on."""
    (tmp_path / "videos").mkdir()
    shutil.copy(good_videos / "cat" / "a.mp4", tmp_path / "videos")
    overrides = [*overrides, "max_clips_per_video=2", "samples_per_shard=1"]
    assert main(clips(tmp_path / "videos", tmp_path / "undisturbed", overrides)) == 0
    step = 1
    while killed_at(step, clips(tmp_path / "videos", tmp_path / f"set{step}", overrides)):
        assert main(clips(tmp_path / "videos", tmp_path / f"set{step}", overrides)) == 0
        assert contents(tmp_path / f"set{step}") == contents(tmp_path / "undisturbed")
        step += 1
    assert step > 30


def test_killed_at_random_moments(good_videos, overrides, tmp_path):
    """Again and again, a little after its next shards, with decoding processes and without, on what kills left."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_tools.stages.clips"])
    overrides = [*overrides, "stride=1", "samples_per_shard=1"]
    moments, kills, finished = random.Random(0), 0, False
    while not finished:
        process = context.Process(
            target=main, args=(clips(good_videos, tmp_path / "set", overrides, workers=kills % 3),)
        )
        more = shards_in(tmp_path / "set") + moments.randrange(1, 10)
        process.start()
        while process.is_alive() and shards_in(tmp_path / "set") < more:
            time.sleep(0.001)
        process.join(moments.uniform(0, 0.02))
        finished = not process.is_alive()
        kills += not finished
        process.kill()
        process.join()
    assert kills >= 3
    assert main(clips(good_videos, tmp_path / "undisturbed", overrides)) == 0
    assert contents(tmp_path / "set") == contents(tmp_path / "undisturbed")


def shards_in(folder):
    return sum(name.endswith(".tar") for _, _, names in os.walk(folder) for name in names)  # folders come and go


def test_a_killed_run_leaves_no_process_behind(good_videos, overrides, tmp_path):
    """Decoding processes notice that the one they work for is gone."""
    arguments = clips(good_videos, tmp_path / "set", [*overrides, "stride=1"], workers=2)
    command = [sys.executable, "data_tools/shard.py", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        deadline = time.monotonic() + 60
        while not (tmp_path / "set" / "plan.json").exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        run.kill()
    deadline = time.monotonic() + 20
    while group_alive(run.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not group_alive(run.pid)


def group_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("damage", ["tar cut", "tar gone", "index gone", "index cut", "left over"])
def test_a_damaged_shard_is_made_again(undisturbed, good_videos, overrides, tmp_path, damage):
    output = tmp_path / "set"
    shutil.copytree(undisturbed[0], output)
    tar, index = output / "shard-000001.tar", output / "shard-000001.json"
    if damage == "tar cut":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif damage == "left over":
        (output / "shard-000002.tar.tmp").write_text("half a tar")
    elif damage == "index cut":
        index.write_bytes(index.read_bytes()[:50])
    else:
        (tar if damage == "tar gone" else index).unlink()
    assert main(clips(good_videos, output, overrides)) == 0
    assert contents(output) == undisturbed[1]


def refused(capsys, arguments):
    capsys.readouterr()
    assert main(arguments) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("shard.py: ")]
    assert len(error) == 1
    return error[0]


def test_another_configuration_is_refused(undisturbed, good_videos, overrides, capsys):
    output, before = undisturbed
    text = refused(capsys, clips(good_videos, output, [*overrides, "stride=3", "media.fit=pad"]))
    assert "media.fit: begun with 'crop', now 'pad'; stride: begun with 2, now 3" in text
    assert contents(output) == before


def test_other_input_files_are_refused(undisturbed, good_videos, overrides, make_video, tmp_path, capsys):
    videos = tmp_path / "videos"
    shutil.copytree(good_videos, videos)
    make_video(videos / "cow" / "a.mp4")
    (videos / "dog" / "a.mp4").unlink()
    with (videos / "cat" / "a.mp4").open("ab") as file:
        file.write(b"x")
    text = refused(capsys, clips(videos, undisturbed[0], overrides))
    assert "1 new, such as 'cow/a.mp4'; 1 gone, such as 'dog/a.mp4'; 1 changed, such as 'cat/a.mp4'" in text
    assert "another output folder" in text


# --- the user's mistakes ---------------------------------------------------------------------------------------------


def test_mistakes_are_one_line(good_videos, overrides, undisturbed, tmp_path, capsys):
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "thesis.txt").touch()
    new = tmp_path / "set"
    assert "no such folder" in refused(capsys, clips(tmp_path / "nothing", new, overrides))
    assert "holds no videos" in refused(capsys, clips(tmp_path / "strange", new, overrides))
    assert "holds other files (thesis.txt" in refused(capsys, clips(good_videos, tmp_path / "strange", overrides))
    assert "is a file" in refused(capsys, clips(good_videos, tmp_path / "strange" / "thesis.txt", overrides))
    assert "unknown key; did you mean 'stride'" in refused(capsys, clips(good_videos, new, ["strid=1"]))
    assert "not a shard set" in refused(capsys, ["verify", "--input", str(good_videos)])
    assert "--workers -1" in refused(capsys, clips(good_videos, new, overrides, workers=-1))
    assert not new.exists()


def test_videos_of_which_nothing_is_left(tmp_path, overrides, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("no video")
    text = refused(capsys, clips(tmp_path / "videos", tmp_path / "set", overrides))
    assert "holds no clip of 1 entries" in text
    assert Manifest.read(tmp_path / "set").reasons == {"not_media": 1}


def test_verify_names_faults_and_fails(undisturbed, tmp_path, capsys):
    output = tmp_path / "set"
    shutil.copytree(undisturbed[0], output)
    tar = output / "shard-000003.tar"
    data = bytearray(tar.read_bytes())
    data[2000] ^= 4
    tar.write_bytes(data)
    assert main(["verify", "--input", str(output)]) == 1
    found = capsys.readouterr().out
    assert "shard-000003: the tar's sha256 differs from the one in its index" in found
    assert "shard-000003: sample dog_a-000004: its bytes do not match" in found
    assert "15 clips in 4 shards" in found


def test_help_and_configuration_explain_themselves(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"shard.py {command} " in text for command in ("clips", "latents", "all", "verify"))
    assert main([*clips("x", tmp_path / "set", ["stride=3"]), "--print-config"]) == 0
    assert "stride: 3" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["landscape", "aist", "audioset", "demo"])
def test_a_preset_is_the_shipped_file_of_its_name(name, tmp_path, capsys):
    file = ROOT / "configs" / "data" / f"{name}.yaml"
    printed = []
    for option in (["--preset", name], ["--config", str(file)]):
        assert main([*clips("x", tmp_path / "set", []), *option, "--print-config"]) == 0
        printed.append(capsys.readouterr().out)
    assert "samples_per_shard:" in printed[0]
    assert printed[0] == printed[1]


def test_any_tar_reader_opens_the_shards(undisturbed):
    with tarfile.open(undisturbed[0] / "shard-000000.tar") as tar:
        members = ("00.jpg", "01.jpg", "02.jpg", "03.jpg", "wav", "json")
        assert tar.getnames()[:6] == [f"cat_a-000000.{member}" for member in members]


@pytest.mark.skipif("MMLDM_TEST_MEDIA" not in os.environ, reason="MMLDM_TEST_MEDIA names no folder of real videos")
def test_real_videos(tmp_path):
    output = tmp_path / "set"
    config = ROOT / "configs" / "data" / "demo.yaml"
    assert main([*clips(os.environ["MMLDM_TEST_MEDIA"], output, [], workers=2), "--config", str(config)]) == 0
    assert main(["verify", "--input", str(output)]) == 0


def test_measured_selected_cut_and_described(good_videos, overrides, make_video, tmp_path, capsys):
    """The whole way at the command line; what is too quiet is left out without being decoded again."""
    shutil.copytree(good_videos, tmp_path / "videos")
    make_video(tmp_path / "videos" / "cat" / "quiet.mp4", sound=0.001)
    folders = {name: str(tmp_path / name) for name in ("videos", "measures", "selection", "set", "looks")}
    common = ["--input", folders["videos"], "--workers", "0"]
    assert main(["measure", *common, "--output", folders["measures"]]) == 0
    assert "4 candidates, 4 measured" in capsys.readouterr().out
    chosen = ["limits.loudness.min=-40", "held_out.count=1"]
    selection = ["--input", folders["measures"], "--output", folders["selection"], "--workers", "0"]
    assert main(["select", *selection, *chosen]) == 0
    assert (tmp_path / "selection" / "report.html").read_text().count("<img") == 7  # three kept, twice, and one dropped
    assert "2 to train on, 1 held out, 1 dropped (1 low_loudness)" in capsys.readouterr().out
    for part, clips_made in (("train", 10), ("heldout", 5)):
        output = f"{folders['set']}-{part}"
        assert (
            main(["clips", *common, "--list", f"{folders['selection']}/{part}.parquet", "--output", output, *overrides])
            == 0
        )
        assert len(ShardSet(output, "clips")) == clips_made
        assert {sample.meta["split"] for sample in ShardSet(output, "clips")} == {part}
    capsys.readouterr()
    assert main(["stats", "--input", f"{folders['set']}-train", "--output", folders["looks"]]) == 0
    assert "10 clips" in capsys.readouterr().out
    assert (tmp_path / "looks" / "index.html").exists()


@pytest.mark.parametrize("command", ["measure", "select", "clips", "all"])
def test_the_configuration_can_be_looked_at(command, tmp_path, capsys):
    more = ["--autoencoder", "x"] if command == "all" else []
    assert main([command, "--input", "x", "--output", str(tmp_path / "y"), "--print-config", *more]) == 0
    assert ("held_out:" if command == "select" else "source:") in capsys.readouterr().out
    assert not (tmp_path / "y").exists()
