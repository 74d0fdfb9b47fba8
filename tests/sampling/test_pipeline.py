import functools
import itertools
import json
import shutil

import numpy as np
import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DecodingConfig, Sampling
from mmldm_scale.media.clip import Clip
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.sampling.inputs import read_first_clip
from mmldm_scale.sampling.pipeline import Pipeline
from tests.support.tiny_models.weights_folders import with_context

SETTINGS = Sampling(steps=2, decoding=DecodingConfig(steps=2))


@pytest.fixture(scope="module")
def pipeline(model) -> Pipeline:
    return Pipeline.from_pretrained(model.dit, SETTINGS)


def close(one: Clip, other: Clip) -> bool:
    """Whether two clips are the same up to the rounding of batched arithmetic."""
    frames = np.abs(one.frames.astype(int) - other.frames.astype(int)).max() <= 1
    return bool(frames) and np.abs(one.waveform - other.waveform).max() < 1e-2


def test_clips_have_the_shape_that_the_model_was_trained_on(pipeline):
    clip = pipeline.generate("svg", [0])[0]
    assert clip.frames.shape == (4, 32, 32, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.waveform.shape == (3200,)
    assert np.abs(clip.waveform).max() <= 1
    assert clip.frames.std() > 1


def test_a_sample_depends_on_its_index_not_on_its_batch(pipeline):
    three = pipeline.generate("svg", [5, 6, 7])
    again = pipeline.generate("svg", [7, 9])
    assert close(three[2], again[0])
    assert not close(three[1], three[2])
    assert not close(three[2], again[1])


def test_seed_and_task_change_the_sample(model, pipeline, videos):
    other = Pipeline.from_pretrained(model.dit, Sampling(steps=2, decoding=DecodingConfig(steps=2), seed=1))
    assert not close(pipeline.generate("svg", [0])[0], other.generate("svg", [0])[0])


def test_what_is_given_is_kept_and_steers_the_rest(pipeline, videos):
    inputs = [read_first_clip(videos / name, pipeline.media) for name in ("a.mp4", "z.mp4")]
    for made, source in zip(pipeline.generate("a2v", [0, 1], inputs), inputs, strict=True):
        assert np.array_equal(made.waveform, source.waveform)
        assert not np.array_equal(made.frames, source.frames)
    for made, source in zip(pipeline.generate("v2a", [0, 1], inputs), inputs, strict=True):
        assert np.array_equal(made.frames, source.frames)
        assert not np.array_equal(made.waveform, source.waveform)
    swapped = pipeline.generate("a2v", [0], inputs[1:])[0]
    assert not close(swapped, pipeline.generate("a2v", [0], inputs[:1])[0])
    with pytest.raises(ValueError, match="one input for each sample"):
        pipeline.generate("a2v", [0, 1], inputs[:1])


def test_half_precision_makes_about_the_same(model, pipeline):
    half = Pipeline.from_pretrained(model.dit, Sampling(steps=2, decoding=DecodingConfig(steps=2), precision="bf16"))
    assert half.dit.final_audio.project.weight.dtype == torch.bfloat16
    exact, rough = (p.generate("svg", [0])[0].frames.astype(float) for p in (pipeline, half))
    assert np.abs(exact - rough).mean() < 10


def test_another_autoencoder_is_refused_and_a_moved_one_is_taken(model, tmp_path):
    with pytest.raises(UserError, match=r"is not the autoencoder that made the DiT's latents") as caught:
        Pipeline.from_pretrained(model.dit, SETTINGS, model.other_autoencoder)
    assert "\n" not in str(caught.value)
    shutil.copytree(model.autoencoder, tmp_path / "moved")
    Pipeline.from_pretrained(model.dit, SETTINGS, tmp_path / "moved")


def test_an_autoencoder_that_is_gone_is_asked_for(model, tmp_path):
    shutil.copytree(model.dit, tmp_path / "dit")
    config = json.loads((tmp_path / "dit" / "config.json").read_text())
    config["autoencoder"]["path"] = str(tmp_path / "gone")
    (tmp_path / "dit" / "config.json").write_text(json.dumps(config))
    pretrained.seal(tmp_path / "dit")
    with pytest.raises(UserError, match=r"gone: no such folder.*--autoencoder DIR names its new place"):
        Pipeline.from_pretrained(tmp_path / "dit", SETTINGS)


def test_the_autoencoder_is_found_by_a_path_without_the_machines_part(model, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(model.dit, tmp_path / "weights/dit")
    shutil.copytree(model.autoencoder, tmp_path / "runs/autoencoder")
    config = json.loads((tmp_path / "weights/dit/config.json").read_text())
    config["autoencoder"]["path"] = "runs/autoencoder"
    (tmp_path / "weights/dit/config.json").write_text(json.dumps(config))
    pretrained.seal(tmp_path / "weights/dit")
    monkeypatch.chdir(tmp_path / "elsewhere")
    Pipeline.from_pretrained(tmp_path / "weights/dit", SETTINGS)


def test_weights_of_another_kind_or_without_a_description_are_refused(model, tmp_path):
    with pytest.raises(UserError, match="kind 'autoencoder', but 'dit' is needed"):
        Pipeline.from_pretrained(model.autoencoder, SETTINGS)
    shutil.copytree(model.dit, tmp_path / "dit")
    (tmp_path / "dit" / "config.json").write_text('{"kind": "dit", "model": {"depth": "x"}}')
    pretrained.seal(tmp_path / "dit")
    with pytest.raises(UserError, match="describes no DiT of this version"):
        Pipeline.from_pretrained(tmp_path / "dit", SETTINGS)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("autoencoder", "kl_vae", "somebody/model"),  # diffusers would ask the network for it
        ("autoencoder", "kl_vae.layers_per_block", 10**12),
        ("autoencoder", "kl_vae.block_out_channels", [-1, 2]),
        ("autoencoder", "kl_vae.norm_num_groups", 0),
        ("autoencoder", "kl_vae.act_fn", None),
        ("autoencoder", "kl_vae.scaling_factor", "x"),
        ("autoencoder", "classes", 5),
        ("dit", "model.depth", 10**12),
        ("dit", "model.heads", 0),
        ("dit", "model.context_tokens", -1),
        ("dit", "diffusion.steps", -1),
        ("dit", "media.size", 10**12),
        ("dit", "media.fps", float("nan")),
        ("dit", "media.audio.f_min", 1e308),
        ("dit", "statistics", []),
    ],
)
def test_a_configuration_that_describes_no_model_is_one_line(model, tmp_path, kind: str, key: str, value) -> None:
    folder = tmp_path / kind
    shutil.copytree(getattr(model, kind), folder)
    (folder / pretrained.SUMS).unlink()
    described = json.loads((folder / "config.json").read_text())
    *parents, leaf = key.split(".")
    functools.reduce(dict.__getitem__, parents, described)[leaf] = value
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError) as error:
        Autoencoder.from_pretrained(folder) if kind == "autoencoder" else Pipeline.from_pretrained(folder, SETTINGS)
    assert "\n" not in str(error.value)


def test_weights_are_sampled_by_what_they_were_trained_to_predict(model, pipeline, tmp_path):
    shutil.copytree(model.dit, tmp_path / "dit")
    (tmp_path / "dit" / pretrained.SUMS).unlink()  # older versions wrote none
    file = tmp_path / "dit" / "config.json"
    stored, made = json.loads(file.read_text()), {}
    new = {"prediction", "min_snr", "zero_terminal_snr", "time_distribution"}
    older = {name: value for name, value in stored["diffusion"].items() if name not in new}
    assert len(older) == len(stored["diffusion"]) - len(new)
    for name, settings in {
        "older": {},
        "v": {"prediction": "v"},
        "zero": {"prediction": "v", "zero_terminal_snr": True, "min_snr": 5.0},
        "flow": {"prediction": "flow", "time_distribution": "logit_normal"},
    }.items():
        file.write_text(json.dumps(stored | {"diffusion": older | settings}))
        made[name] = Pipeline.from_pretrained(tmp_path / "dit", SETTINGS).generate("svg", [0])[0]
    assert close(made["older"], pipeline.generate("svg", [0])[0])
    for one, other in itertools.combinations(made.values(), 2):
        assert not np.array_equal(one.frames, other.frames)
    file.write_text(json.dumps(stored | {"diffusion": older | {"prediction": "flow"}}))
    with pytest.raises(UserError, match="steps: 1001: must be from 1 to"):
        Pipeline.from_pretrained(tmp_path / "dit", Sampling(steps=1001))


@pytest.mark.parametrize("settings", [Sampling(steps=1001), Sampling(decoding=DecodingConfig(steps=1001))])
def test_steps_that_do_not_fit_the_schedule_are_refused(model, settings):
    with pytest.raises(UserError, match="steps: 1001: must be from 1 to"):
        Pipeline.from_pretrained(model.dit, settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Sampling(sampler="euler"), "^sampler: euler needs prediction=flow, not epsilon; allowed: ddim, "),
        (Sampling(sampler="ode45"), "^sampler: 'ode45' is unknown; allowed: ddim, "),
        (Sampling(decoding=DecodingConfig("euler")), "^decoding.sampler: euler needs prediction=flow, not epsilon"),
    ],
)
def test_samplers_that_do_not_fit_are_refused_before_anything_is_loaded(model, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        Pipeline.from_pretrained(model.dit, settings, tmp_path / "no autoencoder")


def test_the_dit_is_sampled_by_name(model, pipeline):
    latents = {
        name: Pipeline.from_pretrained(model.dit, Sampling(sampler=name, steps=10)).latents("svg", [0])
        for name in ("auto", "ddim", "dpm++", "unipc")
    }
    assert torch.equal(latents["auto"].video, latents["ddim"].video)
    for name, other in itertools.combinations(("ddim", "dpm++", "unipc"), 2):
        assert not torch.allclose(latents[name].video, latents[other].video)


@pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
def test_the_autoencoder_decodes_by_a_faster_sampler_too(model, pipeline, sampler):
    fast = Pipeline.from_pretrained(model.dit, Sampling(steps=2, decoding=DecodingConfig(sampler, steps=7)))
    clip = fast.generate("svg", [0])[0]
    assert clip.frames.shape == (4, 32, 32, 3)
    assert not close(clip, pipeline.generate("svg", [0])[0])


@pytest.fixture(scope="module")
def classes(model, tmp_path_factory) -> Pipeline:
    """One that was trained on two classes."""
    folder = tmp_path_factory.mktemp("classes") / "dit"
    return Pipeline.from_pretrained(with_context(model, folder, "class", ["rain", "wind"]), SETTINGS)


def test_a_label_steers_its_sample_and_no_other(classes):
    rain, wind, again = classes.generate("svg", [0, 0, 0], labels=["rain", "wind", "rain"])
    without = classes.generate("svg", [0])[0]
    assert close(rain, again)
    for one, other in ((rain, wind), (rain, without), (wind, without)):
        assert not close(one, other)


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_each_modality_of_a_labelled_sample_is_guided_by_its_own_setting(model, classes, modality):
    folder, other = classes.description.folder, {"audio": "video", "video": "audio"}[modality]
    plain, strong = (
        Pipeline.from_pretrained(folder, Sampling(steps=1, **{f"{modality}_guidance": strength})).latents(
            "svg", [0], labels=["wind"]
        )
        for strength in (2.5, 4.0)
    )
    assert torch.equal(getattr(plain, other), getattr(strong, other))  # in one step it has not seen the guided one
    assert not torch.allclose(getattr(plain, modality), getattr(strong, modality))


def test_class_and_interval_of_guidance_reach_the_samples(classes):
    folder = classes.description.folder

    def latents(**settings) -> torch.Tensor:
        pipeline = Pipeline.from_pretrained(folder, Sampling(steps=1, **settings))
        return pipeline.latents("svg", [0], labels=["wind"]).video

    # This network's classes differ by less than 1e-3, so that it takes a large scale to see them beside rounding.
    strong, plain = latents(video_guidance=1000.0), latents(video_guidance=1.0)
    assert torch.equal(latents(video_guidance=1.0, class_guidance=1000.0), strong)
    outside = latents(video_guidance=1000.0, guidance_interval=[0.0, 0.9])  # the only step is at 1
    torch.testing.assert_close(outside, plain, rtol=1e-4, atol=1e-3)
    assert (strong - plain).abs().max() > 0.1


def test_a_label_that_the_model_does_not_know_is_refused_with_those_that_it_does(classes, pipeline):
    with pytest.raises(UserError, match="label 'storm': .* its classes are rain, wind"):
        classes.generate("svg", [0], labels=["storm"])
    with pytest.raises(UserError, match="label 'rain': .* it was not trained on classes"):
        pipeline.generate("svg", [0], labels=["rain"])
    with pytest.raises(ValueError, match="one is needed for each sample"):
        classes.generate("svg", [0, 1], labels=["rain"])


def test_embeddings_steer_a_model_that_was_trained_on_texts(model, classes, tmp_path):
    texts = Pipeline.from_pretrained(with_context(model, tmp_path / "dit", "text", []), SETTINGS)
    one, other = torch.full((1, 4), 2.0), torch.full((2, 4), -2.0)
    made = texts.generate("svg", [0, 0, 0], embeddings=[one, other, one])
    assert close(made[0], made[2])
    assert not close(made[0], made[1])
    assert not close(made[0], texts.generate("svg", [0])[0])
    for wrong in (torch.ones(3, 4), torch.ones(1, 5), torch.ones(4)):
        with pytest.raises(UserError, match=r"embeddings: .*: must be of shape \(n, 4\) with n from 1 to 2"):
            texts.generate("svg", [0], embeddings=[wrong])
    with pytest.raises(UserError, match="was not trained on texts, but class"):
        classes.generate("svg", [0], embeddings=[one])
