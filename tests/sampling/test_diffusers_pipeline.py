"""``MMLDMPipeline`` against :class:`Pipeline`, with the habits of a user of diffusers, and the folder that it reads."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from PIL import Image

from mmldm_scale import MMLDMPipeline
from mmldm_scale.common import rng
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DecodingConfig, DiTConfig, Sampling
from mmldm_scale.media.clip import Clip
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.distillation import Distillation
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.dit import DiT
from mmldm_scale.sampling.diffusers_format import DiffusersFormat
from mmldm_scale.sampling.diffusers_pipeline import folder_code
from mmldm_scale.sampling.diffusers_pipeline.folder import Extras
from mmldm_scale.sampling.diffusers_pipeline.saving import PARTS_MODULE as PARTS
from mmldm_scale.sampling.pipeline import Pipeline
from tests.support.tiny_models.saved_autoencoder import save_autoencoder
from tests.support.tiny_models.weights_folders import with_context

SETTINGS = Sampling(steps=4, decoding=DecodingConfig(steps=2))
QUICK = {"num_inference_steps": 4, "decoder_num_inference_steps": 2}


def export(dit: Path, folder: Path, autoencoder: Path | None = None) -> Path:
    """Write the DiT of the weights folder ``dit`` as a pipeline, as ``mmldm export --format diffusers`` does."""
    layout = DiffusersFormat(Extras(autoencoder))
    shutil.copytree(dit, layout.place(folder, "dit"), ignore=shutil.ignore_patterns(pretrained.SUMS))
    layout.write(folder, "dit", dit)
    pretrained.seal(folder)
    return folder


def load(dit: Path, folder: Path) -> MMLDMPipeline:
    pipe = MMLDMPipeline.from_pretrained(export(dit, folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    return export(model.dit, tmp_path_factory.mktemp("exported") / "pipeline")


@pytest.fixture(scope="module")
def loaded(folder) -> MMLDMPipeline:
    pipe = MMLDMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(loaded) -> Iterator[MMLDMPipeline]:
    scheduler = loaded.scheduler
    yield loaded
    loaded.scheduler = scheduler


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    return [Clip(frames, random.uniform(-1, 1, 3200).astype(np.float32)) for frames in pictures]


def noise_of(pipeline: Pipeline, task: str, indices: list[int]) -> tuple[dict, dict]:
    """Return the noise of DiT and signal decoder that ``pipeline`` draws, from the random numbers themselves."""
    shapes, picture = pipeline.description.shapes, pipeline.autoencoder.noise_shape
    decoder = {"audio": picture, "video": (pipeline.media.frames, *picture)}

    def draw(use: str, parts: dict) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(rng.standard_normal(0, f"{use}/{task}/{name}", indices, parts[name]))
            for name in shapes
        }

    return draw("sample", shapes), draw("decode", decoder)


def assert_equal(pipe: MMLDMPipeline, ours: Pipeline, task: str, sources: list[Clip], **given) -> None:
    """Check latents, frames and sound of both pipelines from the same noise."""
    latents, decoder_latents = noise_of(ours, task, [3, 4])
    expected = ours.latents(task, [3, 4], sources)
    scale = {"guidance_scale": {"audio": SETTINGS.audio_guidance, "video": SETTINGS.video_guidance}}
    made = pipe(task, latents=latents, output_type="latent", **QUICK, **scale, **given)
    for name, found in (("video", made.frames), ("audio", made.audios)):
        if name in expected.present:
            torch.testing.assert_close(found, expected.present[name], rtol=1e-4, atol=1e-4)
    output = pipe(task, latents=latents, decoder_latents=decoder_latents, **QUICK, **scale, **given)
    for i, clip in enumerate(ours.generate(task, [3, 4], sources)):
        if output.frames is not None:
            assert np.abs(output.frames[i] * 255 - clip.frames).max() < 0.51
        if output.audios is not None:  # Griffin-Lim turns a rounding error into a large one at a few places
            assert np.median(np.abs(output.audios[i] - clip.waveform)) < 1e-3


def test_samples_are_those_of_our_own_pipeline(model, pipe, clips) -> None:
    ours = Pipeline.from_pretrained(model.dit, SETTINGS)
    assert_equal(pipe, ours, "svg", [])
    assert_equal(pipe, ours, "a2v", clips, audio=np.stack([clip.waveform for clip in clips]))
    assert_equal(pipe, ours, "v2a", clips, video=np.stack([clip.frames for clip in clips]))


def save_flow(model, folder: Path, mean_flow: float = 0.0) -> Path:
    """Write a DiT like ``model``'s that predicts the velocity of a flow."""
    stored = pretrained.read_config(model.dit, "dit")
    config = DiTConfig(**stored["model"] | {"average_velocity": mean_flow > 0})
    diffusion = stored["diffusion"] | {"prediction": "flow", "mean_flow": mean_flow}
    dit = DiT(config, tuple(stored["audio_shape"]), tuple(stored["video_shape"]))
    torch.manual_seed(3)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    flow = stored | {"model": dataclasses.asdict(config), "diffusion": diffusion}
    pretrained.save(folder, "dit", flow, dit.state_dict())
    return folder


def test_a_flow_is_that_of_our_own_pipeline(model, tmp_path, clips) -> None:
    pipe = load(save_flow(model, tmp_path / "dit"), tmp_path / "pipeline")
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    ours = Pipeline.from_pretrained(tmp_path / "dit", SETTINGS)
    assert_equal(pipe, ours, "v2a", clips, video=[clip.frames for clip in clips])
    options = {"latents": noise_of_shapes(pipe), "output_type": "latent", "guidance_scale": 1}
    euler = pipe("v2a", 50, video=clips[0], **options).audios
    own = pipe.scheduler.config
    kinds = [(DDIMScheduler(), "DDIMScheduler takes epsilon; the model predicts flow_prediction")]
    kinds.append((DPMSolverMultistepScheduler.from_config(own), "DPMSolverMultistepScheduler takes epsilon"))
    half = DPMSolverMultistepScheduler.from_config(own, prediction_type="flow_prediction")
    kinds.append((half, "DPMSolverMultistepScheduler has not the timesteps of a flow"))
    for pipe.scheduler, message in kinds:
        with pytest.raises(ValueError, match=message) as error:
            pipe(**QUICK)
        remedy = 'from_config(pipe.scheduler.config, prediction_type="flow_prediction", use_flow_sigmas=True)'
        assert str(error.value).endswith(f": make it with {remedy}")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    solver = pipe("v2a", 50, video=clips[0], **options).audios
    assert (solver - euler).std() < 0.1 * euler.std()


def test_average_velocities_are_those_of_the_steps(model, tmp_path, clips) -> None:
    pipe = load(save_flow(model, tmp_path / "dit", mean_flow=0.5), tmp_path / "pipeline")
    ours = Pipeline.from_pretrained(tmp_path / "dit", SETTINGS)
    assert_equal(pipe, ours, "v2a", clips, video=[clip.frames for clip in clips])
    assert "num_inference_steps=4," in (tmp_path / "pipeline" / "README.md").read_text()
    options = {"latents": noise_of(ours, "svg", [3, 4])[0], "output_type": "latent", **QUICK}
    averages = pipe(**options).frames
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, stochastic_sampling=True)
    assert not torch.allclose(pipe(generator=seeded(0)[0], **options).frames, averages, atol=0.01)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    at_instants = Pipeline.from_pretrained(tmp_path / "dit", dataclasses.replace(SETTINGS, sampler="dpm++", steps=100))
    expected = at_instants.latents("svg", [3, 4]).video
    made = pipe(**options | {"num_inference_steps": 100}).frames
    assert (made - expected).std() < 0.05 * expected.std()


def test_a_distilled_decoder_is_exported_with_the_dit_of_its_teacher(model, tmp_path) -> None:
    student = Autoencoder.from_pretrained(model.autoencoder)
    student.distillation = Distillation((1, 2), pretrained.fingerprint(model.autoencoder))
    student.save_pretrained(tmp_path / "student")
    pipe = MMLDMPipeline.from_pretrained(export(model.dit, tmp_path / "pipeline", tmp_path / "student"))
    pipe.set_progress_bar_config(disable=True)
    one = {"num_inference_steps": 1, "generator": seeded(0)}
    most = pipe(**one | {"generator": seeded(0)}).frames
    two = pipe(decoder_num_inference_steps=2, **one | {"generator": seeded(0)}).frames
    assert np.array_equal(most, two)
    steps = []
    for options, message in (
        ({"decoder_num_inference_steps": 4}, "decoder_num_inference_steps: 4: .* was distilled for 1 or 2 steps"),
        ({"decoder_sampler": "unipc"}, "decoder_sampler: unipc: must be auto or ddim"),
        ({"decoder_guidance_scale": 2}, "decoder_guidance_scale: 2: must be 1"),
    ):
        with pytest.raises(UserError, match=message):
            pipe(callback_on_step_end=lambda *arguments: steps.append(arguments) or {}, **one, **options)
    assert not steps
    pipe.save_pretrained(tmp_path / "again")
    assert MMLDMPipeline.from_pretrained(tmp_path / "again").autoencoder.model.distillation == student.distillation
    assert "- signal decoder: distilled, for 1 or 2 steps" in (tmp_path / "pipeline" / "README.md").read_text()
    student.distillation = Distillation((1, 2), pretrained.fingerprint(model.other_autoencoder))
    student.save_pretrained(tmp_path / "stranger")
    with pytest.raises(UserError, match="is not the autoencoder that made the DiT's latents"):
        export(model.dit, tmp_path / "refused", tmp_path / "stranger")


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_a_model_of_one_modality(model, tmp_path, modality) -> None:
    place = save_autoencoder(tmp_path / "autoencoder", media=model.media, modalities=[modality])
    stored = pretrained.read_config(model.dit, "dit")
    config = DiTConfig(**stored["model"] | {"modalities": [modality]})
    shape = (4, 4, 4) if modality == "audio" else (4, 8, 8)
    dit = DiT(config, shape, shape)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    origin = {"path": str(place), "fingerprint": pretrained.fingerprint(place)}
    own = {"model": dataclasses.asdict(config), "autoencoder": origin, f"{modality}_shape": shape}
    pretrained.save(tmp_path / "dit", "dit", stored | own, dit.state_dict())
    pipe = load(tmp_path / "dit", tmp_path / "pipeline")
    assert_equal(pipe, Pipeline.from_pretrained(tmp_path / "dit", SETTINGS), "svg", [])
    latents = torch.zeros(1, *shape)
    output = pipe(latents=latents, **QUICK)  # of the only modality, without its name
    assert (output.frames is None, output.fps is None) == (modality == "audio",) * 2
    assert (output.audios is None, output.sampling_rate is None) == (modality == "video",) * 2
    with pytest.raises(UserError, match=f"task a2v: .* {modality} alone"):
        pipe("a2v", audio=np.zeros(3200, np.float32))


def test_seeds_and_saving(pipe, tmp_path) -> None:
    first = pipe(generator=seeded(1, 2), num_videos_per_prompt=2, **QUICK)
    second = pipe(generator=seeded(2), **QUICK)
    assert np.abs(first.frames[1] - second.frames[0]).max() < 1e-3
    assert np.abs(first.frames[0] - second.frames[0]).max() > 0.01
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    one = pipe(generator=seeded(7)[0], **QUICK)
    assert np.array_equal(pipe(generator=seeded(7)[0], **QUICK).frames, one.frames)
    pipe.save_pretrained(tmp_path / "saved")
    again = MMLDMPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, DPMSolverMultistepScheduler)
    other = again(generator=seeded(7)[0], **QUICK)
    assert np.array_equal(other.frames, one.frames)
    assert np.array_equal(other.audios, one.audios)
    assert (tmp_path / "saved" / "pipeline.py").is_file()
    assert not [*(tmp_path / "saved").rglob("*.bin")]


def test_every_step_is_seen_and_can_be_changed_or_be_the_last(pipe) -> None:
    seen = []

    def look(used: MMLDMPipeline, step: int, time: torch.Tensor, values: dict) -> dict:
        seen.append((step, int(time), {name: tuple(part.shape) for name, part in values["latents"].items()}))
        used._interrupt = step == 1
        return {"latents": {name: torch.full_like(part, 0.5) for name, part in values["latents"].items()}}

    frames, audios = pipe(callback_on_step_end=look, output_type="latent", return_dict=False, **QUICK)
    assert seen == [(i, time, {"audio": (1, 4, 4, 4), "video": (1, 4, 8, 8)}) for i, time in ((0, 999), (1, 749))]
    assert bool((frames == 0.5).all())
    assert bool((audios == 0.5).all())
    assert pipe.num_timesteps == 4


def test_schedulers_that_scale_latents_agree_with_ddim_in_many_steps(pipe, clips) -> None:
    start = noise_of_shapes(pipe)
    ddim = pipe("v2a", 50, video=clips[0], latents=start, output_type="latent", guidance_scale=1)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    euler = pipe("v2a", 50, video=clips[0], latents=start, output_type="latent", guidance_scale=1)
    assert (euler.audios - ddim.audios).std() < 0.2 * ddim.audios.std()


def noise_of_shapes(pipe: MMLDMPipeline) -> dict[str, torch.Tensor]:
    generator = seeded(0)[0]
    return {name: torch.randn(1, *shape, generator=generator) for name, shape in pipe.dit.description.shapes.items()}


def test_inputs_and_outputs_in_the_forms_of_diffusers(pipe, clips, videos) -> None:
    frames, options = clips[0].frames, {"output_type": "latent", "latents": noise_of_shapes(pipe), **QUICK}
    pictures = [Image.fromarray(frame) for frame in frames]
    forms = [pictures, [pictures], frames, frames / 255, torch.from_numpy(frames).movedim(-1, 1), clips[0]]
    made = [pipe("v2a", video=form, **options).audios for form in forms]
    assert all(torch.allclose(one, made[0], atol=1e-4) for one in made[1:])
    wave = clips[0].waveform
    forms = [wave, torch.from_numpy(wave), [wave], np.stack([wave, wave])[None], clips[0]]
    made = [pipe("a2v", audio=form, **options).frames for form in forms]
    assert all(torch.allclose(one, made[0], atol=1e-4) for one in made[1:])
    kept = pipe("a2v", audio=videos / "a.mp4", output_type="pt", **QUICK)
    assert pipe("audio", output_type="latent", **QUICK).frames is None
    assert kept.frames.shape == (1, 4, 3, 32, 32)
    assert kept.audios.shape == (1, 3200)
    output = pipe("v2a", video=str(videos / "a.mp4"), output_type="pil", **QUICK)
    assert output.frames[0][0].size == (32, 32)
    assert np.asarray(output.audios).shape == (1, 3200)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "v2x"}, "task: 'v2x': must be one of svg, a2v, v2a, audio, video"),
        ({"task": "a2v"}, "audio: task 'a2v' needs it"),
        ({"video": np.zeros((4, 32, 32, 3), np.uint8)}, "video: task 'svg' takes none"),
        ({"task": "a2v", "audio": np.zeros(100, np.float32)}, r"audio\[0\]: 0.013 s: must be at least 0.4 s"),
        ({"task": "a2v", "audio": np.zeros(3200, np.int16)}, r"audio\[0\]: .* must be floats in \[-1, 1\]"),
        ({"task": "v2a", "video": np.zeros((2, 32, 32, 3), np.uint8)}, r"video\[0\]: 2 frames: must be at least 4"),
        ({"task": "v2a", "video": np.ones((4, 32, 32, 3)) * 3}, r"video\[0\]: values must be uint8, or floats"),
        ({"generator": seeded(1, 2)}, r"generator: 2 generators for 1 samples \(num_videos_per_prompt\)"),
        ({"latents": {"audio": torch.zeros(1, 4, 4, 4)}}, "latents: .* must be tensors of shapes"),
        ({"output_type": "mp4"}, "output_type: 'mp4': must be np, pt, pil or latent"),
        ({"class_labels": "rain"}, "label 'rain': no class"),
        ({"class_labels": 3}, "class 3: the model in .* has 0 classes, from 0"),
        ({"prompt_embeds": torch.zeros(1, 4)}, "prompt_embeds: the model in .* was not trained on texts, but none"),
        ({"guidance_scale": {"audio": 2.0}, "audio": None}, "guidance_scale: .* has none of video"),
        ({"decoder_guidance_scale": {"audio": 2.0}}, "decoder_guidance_scale: .* has none of video"),
        ({"decoder_guidance_scale": 0.5}, "decoder_guidance_scale: must be at least 1"),
        ({"class_guidance": -1.0}, "class_guidance: -1.0: must be a number of at least 0"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval: .*: must be .low, high. with 0 <= low < high <= 1"),
        ({"decoder_num_inference_steps": 0}, "decoder_num_inference_steps: must be at least 1"),
        ({"decoder_num_inference_steps": 2000}, "decoder_num_inference_steps: 2000: must be from 1 to"),
        ({"decode_chunk_size": -1}, "decode_chunk_size: must not be negative"),
        ({"decoder_sampler": "ode45"}, "decoder_sampler: 'ode45' is unknown"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "only 'latents' is possible"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0: must be at least 1"),
    ],
)
def test_mistakes_are_one_line(pipe, arguments, message) -> None:
    with pytest.raises((ValueError, UserError), match=message) as error:
        pipe(**arguments)
    assert "\n" not in str(error.value)


def test_a_class_steers_its_sample(model, tmp_path) -> None:
    pipe = load(with_context(model, tmp_path / "dit", "class", ["rain", "wind"]), tmp_path / "pipeline")
    start = {name: part.repeat(2, 1, 1, 1) for name, part in noise_of_shapes(pipe).items()}
    made = pipe(class_labels=["rain", 1], latents=start, output_type="latent", **QUICK).frames
    assert not torch.allclose(made[0], made[1], atol=0.01)
    ours = Pipeline.from_pretrained(tmp_path / "dit", SETTINGS)
    latents, _ = noise_of(ours, "svg", [0])
    expected = ours.latents("svg", [0], labels=["wind"]).video
    found = pipe(class_labels="wind", latents=latents, output_type="latent", **QUICK).frames
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert 'class_labels="rain"' in (tmp_path / "pipeline" / "README.md").read_text()


def test_class_and_given_sound_are_guided_as_in_our_own_pipeline(model, tmp_path, clips) -> None:
    pipe = load(with_context(model, tmp_path / "dit", "class", ["rain", "wind"]), tmp_path / "pipeline")
    settings = dataclasses.replace(SETTINGS, video_guidance=3.0, class_guidance=5.0, guidance_interval=[0.3, 0.8])
    ours = Pipeline.from_pretrained(tmp_path / "dit", settings)
    latents, _ = noise_of(ours, "a2v", [3])
    expected = ours.latents("a2v", [3], clips[:1], labels=["wind"]).video
    options = {"audio": clips[0], "class_labels": "wind", "latents": latents, "output_type": "latent", **QUICK}
    scales = {"guidance_scale": {"video": 3}, "decoder_guidance_scale": {"video": 1}}  # given sound needs none
    found = pipe("a2v", class_guidance=5, guidance_interval=(0.3, 0.8), **scales, **options).frames
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(pipe("a2v", **scales, **options).frames, expected, atol=0.01)


def test_half_precision_is_close_and_keeps_the_kl_vae_in_float32_while_it_decodes(folder, pipe) -> None:
    half = MMLDMPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (half.dit, half.autoencoder, half.vae, half.unet)} == {torch.bfloat16}
    difference = half(generator=seeded(3), **QUICK).frames - pipe(generator=seeded(3), **QUICK).frames
    assert np.abs(difference).mean() < 0.02


def changed(folder: Path, copy: Path, name: str, **values) -> Path:
    """Copy ``folder`` with other ``values`` in its JSON file ``name``, without the sums that would notice it."""
    shutil.copytree(folder, copy)
    (copy / pretrained.SUMS).unlink()
    stored = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(stored | values))
    return copy


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "is of 'StableDiffusionPipeline'"),
        ("scheduler/scheduler_config.json", {"_class_name": "DiffusionPipeline"}, "must be a scheduler of diffusers"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "x"}, "does not describe a scheduler"),
        ("vae/config.json", {"scaling_factor": 2.0}, "is not the KL-VAE of the autoencoder beside it"),
        ("vae/config.json", {"layers_per_block": 10**9}, "does not describe a KL-VAE"),
        ("unet/config.json", {"attention_head_dim": 1}, "is another U-Net"),
        ("autoencoder/config.json", {"fingerprint": "0"}, "is not of the autoencoder that made the DiT's latents"),
        ("dit/config.json", {"kind": "kl_vae"}, "holds a model of kind 'kl_vae'"),
    ],
)
def test_folders_that_do_not_fit_are_one_line(folder, tmp_path, file, values, message) -> None:
    with pytest.raises(UserError, match=message) as error:
        MMLDMPipeline.from_pretrained(changed(folder, tmp_path / "copy", file, **values))
    assert "\n" not in str(error.value)


def test_damage_and_unknown_options_are_one_line(folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    with (tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0" if file.read(1) else b"\1")
    with pytest.raises(UserError, match="is damaged"):
        MMLDMPipeline.from_pretrained(tmp_path / "copy")
    with pytest.raises(UserError, match="variant: no option of MMLDMPipeline.from_pretrained"):
        MMLDMPipeline.from_pretrained(folder, variant="fp16")
    with pytest.raises(UserError, match="holds no pipeline"):
        MMLDMPipeline.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def other_version(model, tmp_path_factory) -> Path:
    """A pipeline's folder with the code of another version of the package."""
    sources = folder_code._sources()
    name = "sampling_diffusers_pipeline_parts"
    changed = sources[name].replace("class MMLDMDiT(ModelMixin):", "class MMLDMDiT(ModelMixin):\n    version = 2\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_code, "_sources", lambda: sources | {name: changed})
        return export(model.dit, tmp_path_factory.mktemp("exported") / "other")


@pytest.fixture
def no_package(tmp_path, monkeypatch) -> None:
    """As if mmldm_scale were not installed, with an empty cache of diffusers for code."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mmldm_scale", "diffusers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mmldm_scale", None)  # its import fails
    monkeypatch.setitem(sys.modules, PARTS, None)  # restored afterwards
    monkeypatch.delitem(sys.modules, PARTS)


def test_diffusers_alone_makes_the_same_samples_with_the_code_in_the_folder(pipe, folder, no_package) -> None:
    location = str(folder)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(location, custom_pipeline=location)
    alone = DiffusionPipeline.from_pretrained(location, custom_pipeline=location, trust_remote_code=True)
    alone.set_progress_bar_config(disable=True)
    assert {type(part).__module__.partition(".")[0] for part in (alone, alone.dit)} == {"diffusers_modules"}
    frames = alone(generator=seeded(7)[0], **QUICK).frames
    assert np.abs(frames - pipe(generator=seeded(7)[0], **QUICK).frames).max() < 1e-4
    with pytest.raises(Exception, match=r"a.wav: to read files, install mmldm_scale; or pass an array"):
        alone("a2v", audio="a.wav")
    assert {file.suffix for file in folder.rglob("*.*")} == {".py", ".json", ".md", ".safetensors", ".sha256"}


def test_folders_of_two_versions_have_each_its_own_classes(folder, other_version, no_package, monkeypatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # both may be copied within the second that it goes by
    for place, version in ((folder, None), (other_version, 2), (folder, None)):
        location = str(place)
        pipe = DiffusionPipeline.from_pretrained(location, custom_pipeline=location, trust_remote_code=True)
        assert {getattr(kind, "version", None) for kind in (type(pipe.dit), sys.modules[PARTS].MMLDMDiT)} == {version}
        assert sys.modules[type(pipe).__module__].MMLDMDiT is type(pipe.dit)


def test_where_the_package_is_installed_its_own_classes_are_used(other_version, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    parts, location = sys.modules[PARTS], str(other_version)
    pipe = DiffusionPipeline.from_pretrained(location, custom_pipeline=location, trust_remote_code=True)
    assert sys.modules[PARTS] is parts
    assert type(pipe) is MMLDMPipeline
    assert type(pipe.dit) is parts.MMLDMDiT
