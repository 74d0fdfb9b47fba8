import hashlib
import json
import re
import shutil
import signal
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from mmldm_scale import __version__
from mmldm_scale.common import atomic_files
from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.media.decode import probe, read_clips
from mmldm_scale.media.wav import decode_wav, write_wav
from mmldm_scale.models import pretrained
from mmldm_scale.models.dit import DiT
from mmldm_scale.sampling import blocks, processes
from tests.support.sampling_job import FAST, sample
from tests.support.small_disk import mount_small_disk
from tests.support.tiny_models.weights_folders import MEDIA, TinyModel, with_context

pytestmark = pytest.mark.usefixtures("one_thread")


def videos_in(folder: Path) -> dict[str, str]:
    """Return the sha256 of every mp4 below ``folder``."""
    files = sorted(folder.rglob("*.mp4"))
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def records_in(folder: Path) -> dict[str, bytes]:
    """Return the JSON beside each sample in ``folder``."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("???_0*.json"))}


def assert_same_samples(one: Path, other: Path) -> None:
    """Hold the samples in two folders, and the JSON beside them, against one another byte for byte.

    Where a machine's arithmetic is not the same twice, it says so, and the pictures have to be the same but for
    rounding. Not the sound: of a difference of 1e-7 Griffin-Lim makes another one.
    """
    digests = videos_in(other)
    assert records_in(one) == records_in(other)
    assert videos_in(one).keys() == digests.keys()
    for name in (name for name, digest in videos_in(one).items() if digests[name] != digest):
        a, b = (next(read_clips(folder / name, [0.0], MEDIA)) for folder in (one, other))
        levels = int(np.abs(a.frames.astype(int) - b.frames).max())
        sound = float(np.abs(a.waveform - b.waveform).max())
        assert levels <= 20, f"{name}: pixels differ by {levels} levels"
        warnings.warn(f"{name}: pixels differ by {levels} levels, sound by {sound:.3g}", stacklevel=2)


@pytest.fixture(scope="module")
def whole(model, one_thread, tmp_path_factory) -> Path:
    """A folder filled by one undisturbed job."""
    folder = tmp_path_factory.mktemp("samples") / "whole"
    assert sample(model, folder) == 0
    return folder


def test_every_sample_is_a_video_with_sound(whole):
    assert list(videos_in(whole)) == [f"svg_{i:06d}.mp4" for i in range(5)]
    assert len(set(videos_in(whole).values())) == 5
    info = probe(whole / "svg_000004.mp4")
    assert (info.width, info.height, info.fps, info.sample_rate) == (32, 32, 10, 8000)
    assert info.seconds == pytest.approx(0.4, abs=0.02)
    assert not list(whole.rglob("*.tmp"))


def test_the_json_beside_a_sample_says_what_made_it(model, whole):
    assert list(records_in(whole)) == [f"svg_{i:06d}.json" for i in range(5)]
    assert json.loads(records_in(whole)["svg_000003.json"]) == {
        "name": "svg_000003",
        "task": "svg",
        "index": 3,
        "seed": 0,
        "guidance": {"audio": 2.5, "video": 2.5},
        "sampler": "ddim",
        "steps": 2,
        "decoding": {"sampler": "ddim", "steps": 2, "audio_guidance": 1.0, "video_guidance": 1.0},
        "vocoder": "griffin-lim",
        "precision": "fp32",
        "class": None,
        "prompt": None,
        "checkpoint": {"fingerprint": pretrained.fingerprint(model.dit)},
        "autoencoder": {"fingerprint": pretrained.fingerprint(model.autoencoder)},
        "input": None,
        "version": __version__,
    }


def test_missing_jsons_are_written_and_the_samples_stay(model, whole, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*.mp4")}
    (folder / "svg_000003.json").rename(folder / "svg_000003.json.0a.tmp")  # as a killed job leaves it
    assert sample(model, folder, "--autoencoder", tmp_path / "nowhere") == 0
    assert "1 svg samples had no JSON beside them" in capsys.readouterr().err
    assert not list(folder.rglob("*.tmp"))
    assert_same_samples(folder, whole)
    for file in [*folder.glob("svg_*.json"), *(folder / "spectrograms").iterdir()]:
        file.unlink()
    record = json.loads((folder / "svg.json").read_text())
    del record["version"]  # as in folders of versions that wrote no JSON
    (folder / "svg.json").write_text(json.dumps(record))
    assert sample(model, folder, "--autoencoder", tmp_path / "nowhere") == 0
    assert "5 svg samples had no JSON beside them (older versions wrote none" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*.mp4")} == before
    for name, content in records_in(whole).items():
        assert json.loads(records_in(folder)[name]) == json.loads(content) | {"version": None}
    assert len(list((folder / "spectrograms").iterdir())) == 5


def test_verify_writes_a_wrong_json_again(model, whole, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    (folder / "svg_000001.json").write_text("{")
    (folder / "svg_000002.json").write_bytes((whole / "svg_000004.json").read_bytes())
    assert sample(model, folder, "--verify") == 0
    assert capsys.readouterr().err.splitlines()[:2] == [
        f"{folder}/svg_000001.json: damaged, is written again",
        f"{folder}/svg_000002.json: another name, index than this folder's, is written again",
    ]
    assert_same_samples(folder, whole)


def test_processes_of_a_launcher_share_the_work_and_one_speaks(model, whole, tmp_path, forks):
    status, output = forks(2, "command", str(tmp_path), *command(model, "out"))
    assert status == 0, output
    assert_same_samples(tmp_path / "out", whole)
    assert output.count("samples are in out; index.html there shows them") == 1
    assert "another job" not in output
    assert len(list((tmp_path / "out/tensorboard").iterdir())) == 1


def command(model: TinyModel, output: str, *more: str, number: int = 5) -> list[str]:
    return [
        *("mmldm", "sample", "--checkpoint", str(model.dit), "--task", "svg", "--output", output, "--device", "cpu"),
        *("--num-samples", str(number), *more, *FAST),
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_job_with_a_line_and_without_leftovers(model, whole, tmp_path, forks, number):
    sight = str(tmp_path / "out/svg_000000.mp4")
    words = [str(tmp_path), *command(model, "out", number=500)]
    status, output = forks(1, "signalled", 0, number, sight, "command", *words)
    assert status == 128 + number, output
    last = output.splitlines()[-1]
    assert re.fullmatch(
        rf"mmldm: stopped by {number.name}: \d+ of 500 samples are in out; the same command makes the others", last
    )
    left = {
        file.suffix for file in (tmp_path / "out").rglob("*") if file.is_file() and file.parent.name != "tensorboard"
    }
    assert left <= {".mp4", ".json", ".png"}
    assert not (tmp_path / "out/leases").exists()


def test_processes_of_our_own_end_together_and_what_they_made_is_whole(model, whole, tmp_path, forks):
    sight = str(tmp_path / "out/svg_000003.mp4")
    words = [str(tmp_path), *command(model, "out", "--processes", "2", "--lossless", number=500)]
    status, output = forks(1, "signalled", 0, signal.SIGINT, sight, "command", *words)
    assert status == 130, output
    said = [line for line in re.split(r"[\r\n]+", output) if line and not line.startswith("svg: ")]
    assert len(said) == 1
    assert said[0].startswith("mmldm: stopped by SIGINT: ")
    assert "svg: 500 of 500 samples" not in output
    assert re.search(r"svg: \d+ of 500 samples[,;].* seconds per sample: denoise ", output)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert not (tmp_path / "out/leases").exists()
    assert (tmp_path / "out/lossless/svg/plan.json").is_file()  # the processes know of --lossless, too
    made, expected = videos_in(tmp_path / "out"), videos_in(whole)
    assert made.items() & expected.items() >= {("svg_000003.mp4", expected["svg_000003.mp4"])}


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for visible in (1, 4):
        monkeypatch.setattr("torch.cuda.device_count", lambda visible=visible: visible)
        with pytest.raises(UserError, match=f"{visible} GPU"):
            processes.check_processes(8, "auto")
    with pytest.raises(UserError, match="--device cuda:1: is one device; with --processes 8 it must be auto, cuda or"):
        processes.check_processes(8, "cuda:1")
    processes.check_processes(4, "cuda")
    processes.check_processes(8, "cpu")


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_any_number_of_parts_makes_the_same_files(model, whole, tmp_path, parts):
    for part in range(parts, 0, -1):
        assert sample(model, tmp_path / "out", "--part", f"{part}/{parts}") == 0
    assert_same_samples(tmp_path / "out", whole)


def test_array_tasks_share_the_work(model, whole, tmp_path, monkeypatch):
    for name, value in {"MIN": 3, "MAX": 4, "STEP": 1, "COUNT": 2, "ID": 3}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    sample(model, tmp_path / "out")
    assert list(videos_in(tmp_path / "out")) == [f"svg_{i:06d}.mp4" for i in (0, 1, 4)]  # blocks 0 and 2
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    sample(model, tmp_path / "out")
    assert_same_samples(tmp_path / "out", whole)


def test_run_again_it_makes_only_what_is_missing_and_the_same(model, whole, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    for index in (1, 4):
        (folder / f"svg_{index:06d}.mp4").unlink()
        (folder / f"svg_{index:06d}.json").unlink()
    (folder / "inputs").mkdir()
    for name in (".svg_000001.mp4.tmp", "inputs/.svg_000001.mp4.tmp", "svg_000000.json.0a.tmp", ".svg_000000.mp4.tmp"):
        (folder / name).write_bytes(b"left by a job that was killed")
    before = (folder / "svg_000000.mp4").stat().st_mtime_ns
    sample(model, folder)
    assert_same_samples(folder, whole)
    assert (folder / "svg_000000.mp4").stat().st_mtime_ns == before
    assert not list(folder.rglob("*.tmp"))


def test_a_sample_does_not_depend_on_how_many_are_asked_for(model, whole, tmp_path):
    """Each block is computed whole: the last one, of one sample in place of two, too."""
    assert sample(model, tmp_path / "out", number=3) == 0
    shutil.copytree(whole, tmp_path / "first")
    for index in (3, 4):
        (tmp_path / f"first/svg_{index:06d}.mp4").unlink()
        (tmp_path / f"first/svg_{index:06d}.json").unlink()
    assert_same_samples(tmp_path / "out", tmp_path / "first")


def test_two_jobs_on_one_folder_share_its_blocks(model, whole, tmp_path, capsys):
    out = tmp_path / "out"
    with Leases(out) as other:
        assert other.take("svg_000002")
        assert sample(model, out) == 0
        assert list(videos_in(out)) == [f"svg_{index:06d}.mp4" for index in (0, 1, 4)]
        assert "another job is making samples 2 to 3" in capsys.readouterr().err
    assert sample(model, out) == 0
    assert_same_samples(out, whole)
    assert not (out / "leases").exists()


@pytest.mark.parametrize("size", [0, 700, -400])
def test_verify_finds_a_damaged_sample_and_makes_it_again(model, whole, tmp_path, capsys, size):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    file = out / "svg_000003.mp4"
    file.write_bytes(file.read_bytes()[:size])
    assert sample(model, out) == 0
    assert videos_in(out) != videos_in(whole)
    assert sample(model, out, "--verify") == 0
    assert f"{file}: damaged, is made again: " in capsys.readouterr().err
    assert_same_samples(out, whole)


def test_a_full_disk_costs_tensorboards_samples_and_no_video(model, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with mount_small_disk(tmp_path / "out/tensorboard", 8):
        assert sample(model, tmp_path / "out", number=1) == 0
    assert list(videos_in(tmp_path / "out")) == ["svg_000000.mp4"]
    assert re.findall(f"{tmp_path}/out/tensorboard: (.+)", capsys.readouterr().err) == [
        "cannot be written: No space left on device; the run goes on, and records wait in memory",
        "records not written: 4 (No space left on device)",
    ]


def test_a_finished_folder_needs_no_autoencoder_any_more(model, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    assert sample(model, tmp_path / "out", "--autoencoder", tmp_path / "nowhere") == 0


def test_more_samples_can_be_asked_for_later(model, whole, tmp_path):
    sample(model, tmp_path / "out", number=2)
    assert len(videos_in(tmp_path / "out")) == 2
    sample(model, tmp_path / "out")
    assert_same_samples(tmp_path / "out", whole)


def test_a2v_keeps_the_sound_and_shows_the_input(model, videos, tmp_path):
    folder = tmp_path / "out"
    sample(model, folder, "--input", videos, task="a2v", number=4)
    assert sorted(videos_in(folder)) == [f"{d}a2v_{i:06d}.mp4" for d in ("", "inputs/") for i in range(4)]
    names = ["a.mp4", "sub/b.mp4", "z.mp4", "a.mp4"]  # sample i has usable input i mod 3
    for index, name in enumerate(names):
        given = next(read_clips(videos / name, [0.0], model.media))
        made = next(read_clips(folder / f"a2v_{index:06d}.mp4", [0.0], model.media))
        assert np.corrcoef(given.waveform[200:-200], made.waveform[200:-200])[0, 1] > 0.95  # twice through AAC
        shown = next(read_clips(folder / f"inputs/a2v_{index:06d}.mp4", [0.0], model.media))
        assert np.abs(given.frames.astype(int) - shown.frames.astype(int)).mean() < 8
    record = json.loads((folder / "a2v_000001.json").read_text())
    assert record["input"] == {
        "name": "b.mp4",
        "set": None,
        "key": None,
        "path": "sub/b.mp4",
        "window": [0.0, 0.4],
        "sha256": hashlib.sha256((videos / "sub/b.mp4").read_bytes()).hexdigest(),
    }
    first, fourth = (videos_in(folder)[f"a2v_{i:06d}.mp4"] for i in (0, 3))
    assert first != fourth  # of the same input, with noise of their own
    assert '"input": ["mp4", 1, ' in (folder / "index.html").read_text()


def test_a2v_starts_from_a_sound_file(model, tmp_path):
    given = (0.5 * np.sin(2 * np.pi * 300 * np.arange(8000) / 8000)).astype(np.float32)
    write_wav(tmp_path / "tone.wav", given, 8000)
    (tmp_path / "out").mkdir()
    for name in ("a2v.json", "a2v_inputs.json", "index.html"):
        (tmp_path / f"out/{name}.0a.tmp").write_bytes(b"left by a job that was killed")
    assert sample(model, tmp_path / "out", "--input", tmp_path / "tone.wav", task="a2v", number=1) == 0
    assert not list((tmp_path / "out").rglob("*.tmp"))
    made = next(read_clips(tmp_path / "out/a2v_000000.mp4", [0.0], model.media))
    assert np.corrcoef(given[200:3000], made.waveform[200:3000])[0, 1] > 0.95
    shown = decode_wav((tmp_path / "out/inputs/a2v_000000.wav").read_bytes())
    assert np.abs(shown - given[: len(shown)]).max() < 0.01
    assert json.loads((tmp_path / "out/a2v_000000.json").read_text())["input"]["path"] == "tone.wav"
    (tmp_path / "out/inputs/a2v_000000.wav").write_bytes(b"cut")
    arguments = ("--input", tmp_path / "tone.wav", "--verify")
    assert sample(model, tmp_path / "out", *arguments, task="a2v", number=1) == 0
    assert len(decode_wav((tmp_path / "out/inputs/a2v_000000.wav").read_bytes())) == len(shown)


def test_verify_makes_a_sample_again_with_its_input(model, videos, tmp_path):
    arguments = ("--input", videos / "a.mp4")
    assert sample(model, tmp_path / "out", *arguments, task="a2v", number=1) == 0
    before = videos_in(tmp_path / "out")
    (tmp_path / "out/inputs/a2v_000000.mp4").write_bytes(b"cut")
    assert sample(model, tmp_path / "out", *arguments, "--verify", task="a2v", number=1) == 0
    assert videos_in(tmp_path / "out").keys() == before.keys()
    assert videos_in(tmp_path / "out")["inputs/a2v_000000.mp4"] == before["inputs/a2v_000000.mp4"]


def test_v2a_keeps_the_pictures(model, videos, tmp_path):
    sample(model, tmp_path, "--input", videos / "z.mp4", task="v2a", number=1)
    given, made = (next(read_clips(p, [0.0], model.media)) for p in (videos / "z.mp4", tmp_path / "v2a_000000.mp4"))
    assert np.abs(given.frames.astype(int) - made.frames.astype(int)).mean() < 8


def test_tensorboard_has_pictures_and_sound(whole):
    events = EventAccumulator(str(whole / "tensorboard")).Reload()
    images, sounds = events.Tags()["images"], events.Tags()["audio"]
    assert "svg/000000/pictures" in images
    assert "svg/000000/video" in images
    assert "svg/000000/sound" in sounds
    assert len(sounds) == blocks.SHOWN
    pictures = events.Images("svg/000000/pictures")[0]
    assert (pictures.height, pictures.width) == (2 * 32, 2 * 32)


@pytest.mark.parametrize(
    ("arguments", "task", "says"),
    [
        (["--input", "somewhere"], "svg", "takes no --input"),
        ([], "a2v", "starts from audio: it needs --input"),
        (["--part", "0/2"], "svg", "1 ≤ I ≤ N, such as 1/4"),
        (["--part", "3/2"], "svg", "1 ≤ I ≤ N, such as 1/4"),
        (["--part", "x"], "svg", "1 ≤ I ≤ N, such as 1/4"),
        (["--device", "toaster"], "svg", "--device toaster: cannot be used"),
        (["attention=flash"], "svg", "flash cannot be used here"),
        (["stepps=3"], "svg", "stepps"),
        (["--preset", "nowhere"], "svg", "preset 'nowhere': must be one of aist, audioset, demo, landscape, "),
        (["--input", "/nowhere"], "v2a", "--input /nowhere: no such"),
    ],
)
def test_what_cannot_work_is_one_line(model, tmp_path, arguments, task, says):
    with pytest.raises(UserError, match=says) as caught:
        sample(model, tmp_path / "out", *arguments, task=task)
    assert "\n" not in str(caught.value)


def test_a_check_finds_what_is_missing_and_writes_nothing(model, videos, tmp_path, capsys):
    out = tmp_path / "out"
    assert sample(model, out, "--check", "--input", videos, task="v2a") == 0
    assert capsys.readouterr().out == f"{out}: 5 samples of task v2a from 5 files in {videos} can be made\n"
    for option in (["--autoencoder", "nowhere"], ["vocoder=nowhere"], ["--label", "cat"]):
        with pytest.raises(UserError):
            sample(model, out, "--check", *option)
    assert list(out.iterdir()) == []  # that it can be written has been tried


def test_a_refused_job_does_not_bind_its_folder(model, tmp_path):
    with pytest.raises(UserError, match="--device toaster"):
        sample(model, tmp_path / "out", "--device", "toaster", "seed=9", number=1)
    assert sample(model, tmp_path / "out", number=1) == 0


@pytest.mark.parametrize("change", ["seed=9", "video_guidance=7", "sampler=unipc"])
def test_samples_of_other_settings_are_not_mixed_in(model, whole, change):
    with pytest.raises(UserError, match=f"contains svg samples made with another {change.split('=')[0]};"):
        sample(model, whole, change)


def test_a_folder_begun_before_a_setting_existed_is_continued(model, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    record = tmp_path / "out" / "svg.json"
    settings = json.loads(record.read_text())
    assert settings.pop("sampler") == "auto"
    assert (settings.pop("class_guidance"), settings.pop("guidance_interval")) == (None, [0.0, 1.0])
    record.write_text(json.dumps(settings))
    assert sample(model, tmp_path / "out") == 0
    record.write_text("[]")
    with pytest.raises(UserError, match="svg.json: not the record of a sampling job; give another --output"):
        sample(model, tmp_path / "out")


def test_a_folder_has_the_samples_of_one_vocoder_wherever_it_is(model, tmp_path):
    place, out = tmp_path / "vocoder", tmp_path / "out"
    audio = MEDIA.audio
    config = SpeechT5HifiGanConfig(
        model_in_dim=audio.n_mels,
        sampling_rate=audio.sample_rate,
        upsample_initial_channel=4,
        upsample_rates=[audio.hop_length],
        upsample_kernel_sizes=[2 * audio.hop_length],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
    )
    SpeechT5HifiGan(config).save_pretrained(place)
    assert sample(model, out, f"vocoder={place}", number=1) == 0
    place.rename(tmp_path / "moved")
    assert sample(model, out, f"vocoder={tmp_path / 'moved'}", "--verify", number=1) == 0
    recorded = json.loads((out / "svg.json").read_text())
    assert recorded["vocoder"] == json.loads((out / "svg_000000.json").read_text())["vocoder"]
    with pytest.raises(UserError, match=f"^vocoder={place}: no such file or folder$"):
        sample(model, out, f"vocoder={place}", number=1)
    SpeechT5HifiGan(config).save_pretrained(place)
    with pytest.raises(UserError, match="made with another vocoder; give another --output"):
        sample(model, out, f"vocoder={place}", number=1)
    (out / "svg.json").write_text(json.dumps(recorded | {"vocoder": str(place)}))  # as older versions recorded it
    assert sample(model, out, f"vocoder={place}", number=1) == 0
    with pytest.raises(UserError, match="made with another vocoder; give another --output"):
        sample(model, out, f"vocoder={tmp_path / 'moved'}", number=1)


def test_a_job_reads_each_file_for_its_digest_once(model, videos, tmp_path, monkeypatch):
    inputs = tmp_path / "a"
    shutil.copytree(videos / "sub", inputs)
    autoencoder = tmp_path / "autoencoder"
    shutil.copytree(model.autoencoder, autoencoder)
    read: Counter[str] = Counter()

    def counted(path: Path) -> str:
        read[str(path)] += 1
        return sha256(path)

    monkeypatch.setattr(atomic_files, "sha256", counted)
    words = ("--input", inputs, "--window", "all", "--autoencoder", autoencoder)
    assert sample(model, tmp_path / "out", *words, task="a2v", number=2) == 0
    assert read[f"{inputs}/b.mp4"] == 1
    assert [read[str(file)] for file in autoencoder.rglob("*.safetensors")] == [1]


def test_how_many_pictures_are_decoded_together_may_change(model, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    assert sample(model, tmp_path / "out", "decoding.pictures=2") == 0


def levels_apart(one: Path, other: Path) -> int:
    """Return by how many levels the pictures of two videos differ at most."""
    a, b = (next(read_clips(file, [0.0], MEDIA)).frames.astype(int) for file in (one, other))
    return int(np.abs(a - b).max())


def test_used_up_memory_halves_the_clips_computed_together_and_loses_none(model, whole, tmp_path, monkeypatch, capsys):
    forward, sizes = DiT.forward, []

    def limited(dit: DiT, audio: Tensor | None, *others: Tensor) -> object:
        sizes.append(len(audio))
        if len(audio) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(dit, audio, *others)

    monkeypatch.setattr(DiT, "forward", limited)
    assert sample(model, tmp_path / "out", number=3) == 0
    assert sizes == [2, 1, 1, 1, 1, 1, 1]  # the second block is computed for its one sample alone
    said = capsys.readouterr().err
    assert said.count("svg: the GPU's memory is used up by 2 clips computed together; it goes on with") == 1
    assert records_in(tmp_path / "out").items() <= records_in(whole).items()
    for index in range(3):
        name = f"svg_{index:06d}.mp4"
        assert levels_apart(tmp_path / "out" / name, whole / name) <= 20  # rounding, enlarged by H.264
    monkeypatch.setattr(DiT, "forward", lambda *_: limited(None, torch.empty(2)))
    with pytest.raises(UserError, match="the GPU's memory is too small for one clip: decoding.pictures=4"):
        sample(model, tmp_path / "out", "clips_together=1")
    assert not (tmp_path / "out/leases").exists()


def test_a_job_says_what_a_sample_costs_and_what_each_stage_took(model, tmp_path, capsys):
    assert sample(model, tmp_path / "out", number=1) == 0
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"svg: a sample costs \S+ TMACs: denoise \S+ \(2 steps\), decode \S+ \(signal decoder .*", lines[0]
    )
    last = r"svg: 1 of 1 samples, \S+ samples/s; seconds per sample: denoise \S+, decode \S+, write \S+"
    assert re.fullmatch(last, lines[-1])


def test_at_least_one_sample(model, tmp_path):
    with pytest.raises(UserError, match="--num-samples 0"):
        sample(model, tmp_path, number=0)


def test_an_output_that_cannot_be_written_is_told(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used as output folder"):
        sample(model, tmp_path / "file" / "out")


def test_samples_of_a_label_are_not_mixed_with_those_of_another(model, tmp_path):
    folder = with_context(model, tmp_path / "dit", "class", ["rain", "wind"])
    labelled = TinyModel(folder, model.autoencoder, model.other_autoencoder, MEDIA)
    with pytest.raises(UserError, match="label 'storm': .* its classes are rain, wind"):
        sample(labelled, tmp_path / "out", "--label", "storm", number=1)
    assert not (tmp_path / "out").exists()
    guided = ("class_guidance=4", "guidance_interval=[0,0.6]")
    sample(labelled, tmp_path / "out", "--label", "rain", *guided, number=1)
    record = json.loads(records_in(tmp_path / "out")["svg_000000.json"])
    assert record["guidance"] == {"audio": 2.5, "video": 2.5, "class": 4.0, "interval": [0.0, 0.6]}
    sample(labelled, tmp_path / "without", number=1)
    assert videos_in(tmp_path / "out") != videos_in(tmp_path / "without")
    with pytest.raises(UserError, match="made with another label; give another --output"):
        sample(labelled, tmp_path / "out", "--label", "wind", *guided, number=1)
    with pytest.raises(UserError, match="made with another class_guidance; give another --output"):
        sample(labelled, tmp_path / "out", "--label", "rain", "class_guidance=3", guided[1], number=1)
