"""The distillation of a signal decoder: what it learns, its weights folder, and what that decodes."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file
from torch.utils.data import default_collate

from mmldm_scale.cli import main
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DecodingConfig, LossWeights, TrainingConfig, load
from mmldm_scale.diffusion.noise_process import Diffusion
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.decoder import NOISE
from mmldm_scale.models.autoencoder.distillation import Distillation, timesteps
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.planning import memory
from mmldm_scale.trainables.decoder_distil.config import DecoderDistilTraining, TeacherConfig
from mmldm_scale.trainables.decoder_distil.loss import draw
from mmldm_scale.trainables.decoder_distil.trainable import build_trainable, outline
from mmldm_scale.training.trainable import StepInfo, Trainable
from tests.support.datasets.clip_sets import write_clips
from tests.support.tiny_models import tiny_autoencoder
from tests.support.tiny_models.autoencoder_trainable import CLASSES

TRAINING = """
target: teacher
teacher: {steps: 2}
training: {global_batch: 4, micro_batch: 2, total_samples: 16, learning_rate: 1.0e-3, precision: fp32, zero_stage: 2,
           log_every: 4, checkpoint_every: 8, preview_every: 16, ema_lengths: [0.063], workers: 0,
           keep_checkpoints: 10, collective_timeout: 60}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips and a trained autoencoder, as far as its zero-initialised layers are none."""
    folder = tmp_path_factory.mktemp("decoder_distil")
    write_clips(folder / "clips", classes=CLASSES)
    tiny_autoencoder.opened(tiny_autoencoder.build(classes=CLASSES)).save_pretrained(folder / "teacher")
    (folder / "config.yaml").write_text(TRAINING)
    return folder


def build(data: Path, steps: int = 3, guidance: float = 1.0, **settings: object) -> Trainable:
    teacher = TeacherConfig(steps, guidance, guidance)
    training = TrainingConfig(micro_batch=4, global_batch=4, log_every=4, precision="fp32")
    paths = {"shards": [str(data / "clips")], "autoencoder": str(data / "teacher")}
    settings = paths | {"target": "teacher"} | settings
    return build_trainable(DecoderDistilTraining(teacher=teacher, training=training, **settings))


def batch_of(trainable: Trainable) -> dict[str, torch.Tensor]:
    return default_collate([trainable.dataset[position] for position in range(4)])


def test_the_teacher_draws_as_ddim_does_and_its_guidance_counts() -> None:
    """From the last timestep, in 5 steps, as diffusers' scheduler with trailing steps."""
    scheduler = DDIMScheduler(
        beta_start=NOISE.beta_start,
        beta_end=NOISE.beta_end,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(5)
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))

    class Decoder:
        process = Diffusion(NOISE)

        def __call__(self, noisy, time, condition):
            return condition * noisy.tanh() + time.view(-1, 1, 1, 1) / 1000

    expected = noise
    for time in scheduler.timesteps:
        predicted = 3 * Decoder()(expected, time, 1.0) - 2 * Decoder()(expected, time, 0.5)
        expected = scheduler.step(predicted, time, expected).prev_sample
    drawn = draw(Decoder(), noise, torch.tensor([999, 999]), 5, 1.0, 0.5, 3.0)
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)


def test_the_timesteps_are_those_that_decoding_visits() -> None:
    assert timesteps(1000, [1, 2, 4]) == [249, 499, 749, 999]
    assert timesteps(1000, [5, 1]) == [199, 399, 599, 799, 999]


def test_a_decoder_that_draws_as_its_teacher_in_one_step_has_no_loss(data: Path) -> None:
    """At the start it is the teacher; with one step of that, both predict the same. Otherwise they differ."""
    one = build(data, steps=1)
    batch = batch_of(one)
    assert one.module(batch).loss.max() < 1e-8
    several, guided = (build(data, **settings).module(batch).loss for settings in ({}, {"steps": 1, "guidance": 2.0}))
    assert min(several.min(), guided.min()) > 1e-4


def test_the_target_may_be_the_clips_own_pictures_and_modalities_have_weights(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainable = build(data, target="clip", loss_weights=LossWeights(audio=0.5, video=2.0))
    module, batch = trainable.module, batch_of(trainable)
    frames = batch["frames"].movedim(-1, -3).float() / 127.5 - 1
    chosen = torch.cat([frames[clip, targets] for clip, targets in enumerate(batch["targets"])])
    images = module.audio_image.encode(batch["waveform"])
    latents = {len(pictures): module.autoencoder.picture_latents(pictures) for pictures in (images, chosen)}
    assert {*module.times[batch["time"]].flatten().tolist()} <= {249, 499, 749, 999}
    shift = {4: 0.0, 8: 0.0}  # of the solved latents, by number of pictures: 4 audio images, 8 frames

    def solve(noisy, time, condition):
        signal = module.process.alphas_cumprod[time].view(-1, 1, 1, 1)
        return (noisy - signal.sqrt() * (latents[len(noisy)] + shift[len(noisy)])) / (1 - signal).sqrt()

    monkeypatch.setattr(module.autoencoder.decoder, "forward", solve)
    assert module(batch).loss.max() < 1e-4
    shift |= {4: 1.0, 8: 2.0}
    output = module(batch)
    torch.testing.assert_close(output.metrics["loss/audio"], torch.ones(4), rtol=1e-2, atol=0)
    torch.testing.assert_close(output.metrics["loss/video"], 4 * torch.ones(4), rtol=1e-2, atol=0)
    torch.testing.assert_close(output.loss, torch.full((4,), 0.5 * 1 + 2.0 * 4), rtol=1e-2, atol=0)


def test_only_the_decoder_learns_and_a_logged_step_has_losses_by_time(data: Path) -> None:
    trainable = build(data)
    module = trainable.module
    trainable.begin_step(StepInfo(logged=True))
    output = module(batch_of(trainable))
    output.loss.mean().backward()
    assert {name.split(".")[1] for name, _ in module.named_parameters()} == {"decoder"}
    assert any(parameter.grad.any() for parameter in module.parameters() if parameter.grad is not None)
    assert all(parameter.grad is None for part in module.frozen.values() for parameter in part.parameters())
    assert {tag for tag in output.metrics if tag.endswith("/0-0")} == {
        "loss_by_time/audio/0-0",
        "loss_by_time/video/0-0",
    }
    assert trainable.flops_per_sample > build(data, target="clip").flops_per_sample


def test_a_run_resumes_exactly_and_its_weights_decode_what_the_teacher_encoded(
    data: Path, forks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes with ZeRO-2, killed and resumed, end with the weights of one that was not killed."""
    arguments = ["train", "decoder-distil", "--config", str(data / "config.yaml"), f"shards={data / 'clips'}"]
    arguments += [f"autoencoder={data / 'teacher'}"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    status, output = forks(2, "command", str(data), "mmldm", *arguments, f"run={whole}")
    assert status == 0, output
    kill = (1, signal.SIGKILL, f"{run}/checkpoints/step-000000000008")
    status, output = forks(2, "signalled", *kill, "command", str(data), "mmldm", *arguments, f"run={run}")
    assert status == signal.SIGKILL, output
    status, output = forks(2, "command", str(data), "mmldm", *arguments, f"run={run}")
    assert status == 0, output
    file = "checkpoints/step-000000000016/weights/model.safetensors"
    resumed, undisturbed = (load_file(folder / file) for folder in (run, whole))
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in resumed.items())

    taught = load_file(data / "teacher/model.safetensors")
    assert resumed.keys() == taught.keys()
    changed = {name.split(".")[0] for name, tensor in resumed.items() if not torch.equal(tensor, taught[name])}
    assert changed == {"decoder"}
    model, teacher = Autoencoder.from_pretrained(run), Autoencoder.from_pretrained(data / "teacher")
    assert teacher.distillation is None
    assert model.distillation == Distillation((1, 2, 4), pretrained.fingerprint(data / "teacher"))
    latents, noise = tiny_autoencoder.latents(model, 1), [torch.randn(1, *model.noise_shape) for _ in range(2)]
    noise[1] = noise[1][:, None].expand(-1, model.media.frames, -1, -1, -1)
    for steps in (1, 2, 4):
        frames, _ = model.decode(*latents, *noise, DecodingConfig("auto", steps))
        assert frames is not None
    for refused, message in (
        (DecodingConfig(), "decoding.steps: 50: this signal decoder was distilled for 1, 2 or 4 steps"),
        (DecodingConfig("dpm++", 4), "decoding.sampler: dpm\\+\\+: must be auto or ddim"),
        (DecodingConfig(steps=4, video_guidance=2), "decoding.video_guidance: 2: must be 1; .* guidance 1,"),
    ):
        with pytest.raises(UserError, match=message):
            model.decode(*latents, *noise, refused)

    exported = tmp_path / "exported"
    assert main(["export", "--checkpoint", str(run), "--weights", "raw", "--output", str(exported)]) == 0
    assert Autoencoder.from_pretrained(exported).distillation == model.distillation
    reconstruct = ["reconstruct", "--checkpoint", str(run), "--input", str(data / "clips"), "--num-samples", "1"]
    assert main([*reconstruct, "--output", str(tmp_path / "refused")]) != 0
    assert "distilled for 1, 2 or 4 steps" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
    with pytest.raises(UserError, match="is distilled already"):
        build(data, autoencoder=str(run))


def test_what_cannot_be_distilled_is_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    for overrides, message in (
        (["steps=[]"], "steps: .* one or more different numbers"),
        (["steps=[1,3]"], "steps: .* each must divide the largest, and that 1,000"),
        (["steps=[2,5]"], "steps: .* each must divide the largest"),
        (["steps=[50]"], "steps: .* at most 10"),
        (["init=x"], "init: x: must be null; the decoder begins with the weights of autoencoder="),
        (["teacher.steps=0"], "teacher.steps: 0: must be in 1..100"),
        (["teacher.audio_guidance=0.5"], "teacher.audio_guidance: 0.5: must be at least 1"),
        (["teacher.video_guidance=2"], "teacher.video_guidance: 2: needs target=teacher"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load(DecoderDistilTraining, [], ["shards=x", "autoencoder=y", *overrides])
        assert "\n" not in str(error.value)
    other = dataclasses.replace(tiny_autoencoder.MEDIA, fps=5)
    write_clips(tmp_path / "clips", media=dataclasses.asdict(other))
    with pytest.raises(UserError, match="the format of the clips differs .*fps: the clips 5, the autoencoder 10"):
        build(data, shards=[str(tmp_path / "clips")])


def test_a_damaged_description_is_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    model = Autoencoder.from_pretrained(data / "teacher")
    for value in ([], {"steps": []}, {"steps": [4], "teacher": "x"}):
        model.save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "weights.sha256").unlink()
        (tmp_path / "config.json").write_text(json.dumps(stored | {"distilled": value}))
        with pytest.raises(UserError, match="config.json: distilled: "):
            Autoencoder.from_pretrained(tmp_path)


def test_the_planner_counts_the_teacher_that_is_there(data: Path) -> None:
    config = DecoderDistilTraining(shards=["x"], autoencoder=str(data / "teacher"), target="teacher")
    planned, built = memory.working_outline(outline, config), build(data, steps=10)
    assert memory.predict(planned, config.training, 1).activations > 0
    assert planned.count_flops() == built.flops_per_sample
    trained = sum(parameter.numel() for parameter in planned.module.parameters())
    assert trained == sum(parameter.numel() for parameter in built.module.parameters())
    kept = sum(parameter.numel() for parameter in planned.frozen.parameters())
    whole = sum(parameter.numel() for parameter in Autoencoder.from_pretrained(data / "teacher").parameters())
    assert kept == whole  # the teacher's decoder in place of the one that is trained
