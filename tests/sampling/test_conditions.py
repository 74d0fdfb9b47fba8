"""``mmldm sample`` of long videos, continuations, windows of inputs, and prompts: files, records and refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from mmldm_scale.common.errors import UserError
from mmldm_scale.media.decode import read_clips
from mmldm_scale.media.whole import read_whole
from mmldm_scale.models import pretrained
from mmldm_scale.sampling.inputs import set_fingerprint
from mmldm_scale.shards.clips import clip_modalities, decode_clip
from mmldm_scale.shards.reader import ShardSet
from tests.support.sampling_job import sample
from tests.support.tiny_models.weights_folders import TinyModel, with_context, with_continuation

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def long(model, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A model whose clips have 0.4 s, and which continues them."""
    return with_continuation(model, tmp_path_factory.mktemp("long") / "dit")


def record(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def test_a_long_sample_is_one_video_whose_sound_is_as_long_as_its_picture(long, tmp_path, capsys):
    out = tmp_path / "out"
    assert sample(long, out, "--seconds", 1, "--lossless", number=1) == 0
    clip, frame_rate, sample_rate = read_whole(out / "svg_000000.mp4")
    assert (clip.frames.shape, clip.waveform.shape, frame_rate, sample_rate) == ((10, 32, 32, 3), (8000,), 10, 8000)
    made = record(out, "svg_000000")
    assert (made["seconds"], made["window_seconds"], made["input"]) == (1.0, 0.4, None)
    members = ShardSet(out / "lossless/svg", "samples")[0].members
    exact = decode_clip(members, modalities=clip_modalities(members))
    assert np.corrcoef(exact.frames.flatten(), clip.frames.flatten())[0, 1] > 0.8  # H.264 of noise
    assert exact.waveform.shape == (8000,)
    before = (out / "svg_000000.mp4").stat().st_mtime_ns
    assert sample(long, out, "--seconds", 1.04, "--lossless", "--verify", number=1) == 0  # those of 10 frames
    assert (out / "svg_000000.mp4").stat().st_mtime_ns == before
    assert "damaged" not in capsys.readouterr().err
    with pytest.raises(UserError, match="contains svg samples made with another seconds; give another --output"):
        sample(long, out, number=1)


def test_the_seconds_of_a_sample_are_those_of_its_frames(long, tmp_path):
    assert sample(long, tmp_path, "--seconds", 0.84, number=1) == 0
    file = tmp_path / "svg.json"
    recorded = json.loads(file.read_text())
    assert (record(tmp_path, "svg_000000")["seconds"], recorded["seconds"]) == (0.8, 0.8)
    assert sample(long, tmp_path, "--seconds", 0.8, number=1) == 0
    file.write_text(json.dumps(recorded | {"seconds": 0.84}))  # as older versions recorded them
    assert sample(long, tmp_path, "--seconds", 0.8, number=1) == 0
    with pytest.raises(UserError, match="made with another seconds; give another --output"):
        sample(long, tmp_path, "--seconds", 0.9, number=1)


def test_a_continuation_begins_where_its_input_ends(long, videos, tmp_path):
    assert sample(long, tmp_path, "--input", videos / "a.mp4", task="video_continuation", number=1) == 0
    source = record(tmp_path, "video_continuation_000000")["input"]
    assert (source["name"], source["window"]) == ("a.mp4", [0.6, 1.0])
    shown, _, _ = read_whole(tmp_path / "inputs/video_continuation_000000.mp4")
    given = next(read_clips(videos / "a.mp4", [0.6], long.media))
    assert np.abs(given.frames.astype(int) - shown.frames).mean() < 8


def test_each_window_of_the_inputs_makes_a_sample(model, videos, tmp_path):
    assert sample(model, tmp_path, "--input", videos, "--window", "all", task="a2v", number=None) == 0
    names = [f"a2v_{index:06d}" for index in range(6)]
    assert sorted(file.stem for file in tmp_path.glob("a2v_0*.mp4")) == names
    sources = [record(tmp_path, name)["input"] for name in names]
    windows = [(source["path"], *source["window"]) for source in sources]
    files = ("a.mp4", "sub/b.mp4", "z.mp4")
    assert windows == [(file, start, start + 0.4) for file in files for start in (0.0, 0.4)]


def test_a_clip_of_a_shard_set(model, tmp_path):
    assert sample(model, tmp_path / "clips", "--lossless", number=2) == 0
    folder = tmp_path / "clips/lossless/svg"
    assert sample(model, tmp_path / "out", "--input", folder, task="v2a", number=1) == 0
    source = record(tmp_path / "out", "v2a_000000")["input"]
    assert {key: source[key] for key in ("name", "set", "key", "path", "window")} == {
        "name": "svg_000000",
        "set": "svg",
        "key": "svg_000000",
        "path": "svg/svg_000000",
        "window": [0.0, 0.4],
    }


def test_a_shard_set_that_has_changed_is_refused(model, tmp_path):
    made, out = tmp_path / "made", tmp_path / "out"
    assert sample(model, made, "--lossless", number=2) == 0
    assert sample(model, tmp_path / "more", "--lossless", number=3) == 0
    sets = {name: tmp_path / name / "lossless/svg" for name in ("made", "more")}
    words = ("--input", sets["made"])
    assert sample(model, out, *words, task="v2a", number=1) == 0
    recorded = (out / "v2a.json").read_text()
    shutil.rmtree(sets["made"])
    shutil.copytree(sets["more"], sets["made"])
    set_fingerprint([sets["more"]])  # a process keeps one set open, which is another one now
    with pytest.raises(UserError, match="v2a samples made with another input_set; give another --output$"):
        sample(model, out, *words, task="v2a", number=1)
    older = {key: value for key, value in json.loads(recorded).items() if key != "input_set"}
    (out / "v2a.json").write_text(json.dumps(older))
    assert sample(model, out, *words, task="v2a", number=1) == 0


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder of width 4 in transformers' format."""
    folder = tmp_path_factory.mktemp("encoder")
    words = {word: number for number, word in enumerate(("<pad>", "<unk>", "rain", "wind", "storm"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(0)
    T5EncoderModel(T5Config(vocab_size=5, d_model=4, d_kv=2, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(folder)
    return folder


def test_prompts_are_encoded_once_and_steer_their_samples(model, encoder, tmp_path):
    folder = with_context(model, tmp_path / "dit", "text", [])
    texts = TinyModel(folder, model.autoencoder, model.other_autoencoder, model.media)
    (tmp_path / "prompts.txt").write_text("rain\n\nwind storm\n", encoding="utf-8")
    words, out = (f"text_encoder={encoder}", "--prompts", tmp_path / "prompts.txt"), tmp_path / "out"
    assert sample(texts, out, *words, number=None) == 0
    assert [record(out, f"svg_{index:06d}")["prompt"] for index in range(2)] == ["rain", "wind storm"]
    assert record(out, "svg_000000")["text_encoder"] == {"fingerprint": pretrained.fingerprint(encoder)}
    cached = sorted((out / "contexts").iterdir())
    assert len(cached) == 2
    times = [file.stat().st_mtime_ns for file in cached]
    assert sample(texts, out, *words, number=3) == 0
    assert record(out, "svg_000002")["prompt"] == "rain"
    assert [file.stat().st_mtime_ns for file in sorted((out / "contexts").iterdir())] == times
    with pytest.raises(UserError, match="made with another prompts; give another --output"):
        sample(texts, out, f"text_encoder={encoder}", "--prompt", "rain", number=1)
    with torch.no_grad():  # as docs/train_dit.md makes those of the training
        expected = T5EncoderModel.from_pretrained(encoder).eval()(torch.tensor([[3, 4]])).last_hidden_state[0].half()
    assert any(torch.equal(load_file(file)["embedding"], expected) for file in cached)


def test_a_folder_has_the_samples_of_one_encoder_wherever_it_is(model, encoder, tmp_path):
    texts = replace(model, dit=with_context(model, tmp_path / "dit", "text", []))
    place, moved, out = tmp_path / "encoder", tmp_path / "moved", tmp_path / "out"
    shutil.copytree(encoder, place)
    shutil.copytree(encoder, moved)
    (moved / "pytorch_model.bin").write_bytes(b"the same in a format that is not read")

    def run(folder: Path, *words: str) -> int:
        return sample(texts, out, f"text_encoder={folder}", "--prompt", "rain", *words, number=1)

    assert run(place) == 0
    assert run(moved, "--verify") == 0
    file = out / "svg.json"
    recorded = json.loads(file.read_text())
    assert recorded["text_encoder"] == record(out, "svg_000000")["text_encoder"]
    torch.manual_seed(1)
    T5EncoderModel(T5EncoderModel.from_pretrained(place).config).save_pretrained(place)
    with pytest.raises(UserError, match="made with another text_encoder; give another --output"):
        run(place, "--verify")
    file.write_text(json.dumps(recorded | {"text_encoder": str(moved)}))  # as older versions recorded it
    assert run(moved) == 0
    with pytest.raises(UserError, match="made with another text_encoder; give another --output"):
        run(place)


def test_an_encoder_with_code_of_its_own_is_refused_without_asking(model, encoder, tmp_path, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    texts = replace(model, dit=with_context(model, tmp_path / "dit", "text", []))
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    code = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": ["code.Tokens", None]}
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for name in ("config.json", "tokenizer_config.json"):
        changed = {"auto_map": code, "model_type": "of_its_own", "tokenizer_class": "Tokens"}
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changed))
    with pytest.raises(UserError, match=f"^text_encoder={folder}: cannot be loaded by transformers: ") as error:
        sample(texts, tmp_path / "out", f"text_encoder={folder}", "--prompt", "rain", number=1)
    assert "\n" not in str(error.value)
    assert not asked
    assert not (tmp_path / "ran").exists()


def test_prompts_that_cannot_be_used_are_one_line(model, encoder, tmp_path):
    folder = with_context(model, tmp_path / "dit", "text", [])
    texts = replace(model, dit=folder)
    out, file = tmp_path / "out", tmp_path / "prompts.txt"
    wide = tmp_path / "wide"
    shutil.copytree(encoder, wide)
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(config | {"d_model": 6}))
    file.write_text("\n \n")
    for words, used, says in (
        (["--prompt", "rain"], model, "--prompt: the model in .* was not trained on texts, but context.kind=none"),
        (["--prompts", file], model, f"^--prompts {file}: the model in .* was not trained on texts"),
        (["--prompt", "rain"], texts, "text_encoder: must be set for a prompt"),
        (["--prompt", "rain", "text_encoder=/nowhere"], texts, "text_encoder=/nowhere: config.json cannot be read: No"),
        (["--prompt", "rain", f"text_encoder={wide}"], texts, "have width 6; the model was trained on 4"),
        (["--prompts", file, f"text_encoder={encoder}"], texts, "prompts.txt: has no prompt"),
        (["--prompts", "/nowhere", f"text_encoder={encoder}"], texts, "--prompts /nowhere: cannot be read: No such"),
    ):
        with pytest.raises(UserError, match=says) as error:
            sample(used, out, *words, number=1)
        assert "\n" not in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "task", "number", "says"),
    [
        ([], "svg", None, "^--task svg: needs --num-samples$"),
        (["--window", "last"], "svg", 1, "^--task svg takes no --window; a2v, v2a, joint_continuation, audio_contin"),
        (["--window", "middle", "--input", "."], "a2v", 1, "^--window middle: must be first, last, all or a start"),
        (["--seconds", "0.1"], "svg", 1, "^--seconds 0.1: must be from 0.4, the length of the model's clips, to 600"),
        ([], "video_continuation", 1, "starts from video: it needs --input, a video or a folder of videos, or a shard"),
    ],
)
def test_what_cannot_work_is_one_line(long, tmp_path, arguments, task, number, says):
    with pytest.raises(UserError, match=says) as error:
        sample(long, tmp_path / "out", *arguments, task=task, number=number)
    assert "\n" not in str(error.value)


def test_the_tasks_that_a_model_can_do_are_named(model, videos, tmp_path):
    with pytest.raises(UserError, match=r"model.continuation=false; must be one of svg, a2v, v2a, audio, video$"):
        sample(model, tmp_path / "out", "--input", videos, task="joint_continuation", number=1)
    assert not (tmp_path / "out").exists()
