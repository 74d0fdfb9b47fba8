"""Fine-tuning a KL-VAE's decoder: the terms of its loss, and the parameters that do not change."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AdversarialConfig, PatchDiscriminatorConfig, TrainingConfig
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.lpips import load_lpips
from mmldm_scale.trainables.kl_vae.config import KLVAETraining
from mmldm_scale.trainables.kl_vae.trainable import build_trainable
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.resilience.signals import StopRequest, restore_handlers
from mmldm_scale.training.trainable import StepInfo, StepOutput, Trainable
from tests.support.datasets.clip_sets import write_clips
from tests.support.tiny_models import tiny_autoencoder
from tests.support.tiny_models.backbones import write_alexnet

ADVERSARIAL = AdversarialConfig(weight=0.1)
SMALL = PatchDiscriminatorConfig(width=4, layers=2)
FULL = StepInfo(samples_seen=0, logged=True, adversarial=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clip shards, a KL-VAE and the weights of an LPIPS backbone."""
    folder = tmp_path_factory.mktemp("kl_vae_finetune")
    write_clips(folder / "clips")
    torch.manual_seed(0)
    vae = kl_vae.build(tiny_autoencoder.KL_VAE, scaling_factor=3.0)
    torch.nn.init.constant_(vae.quant_conv.bias[vae.config.latent_channels :], -10.0)  # narrow posteriors, as trained
    kl_vae.save(folder / "kl_vae", vae)
    write_alexnet(folder / "alexnet.pth")
    return folder


def build(data: Path, **settings) -> Trainable:
    torch.manual_seed(0)
    settings = {"shards": [str(data / "clips")], "kl_vae": str(data / "kl_vae"), "discriminator": SMALL} | settings
    return build_trainable(KLVAETraining(**settings))


def values(trainable: Trainable, positions: range) -> StepOutput:
    return trainable.module(default_collate([trainable.dataset[position] for position in positions]))


def test_each_term_is_what_its_name_says(data):
    backbone = str(data / "alexnet.pth")
    settings = {"audio_share": 0.5, "lpips": backbone, "lpips_weight": 0.3, "adversarial": ADVERSARIAL}
    trainable = build(data, reconstruction="l1", **settings)
    trainable.begin_step(FULL)
    output, squared = values(trainable, range(8)), values(build(data, reconstruction="l2", **settings), range(8))
    vae, distance = kl_vae.load(data / "kl_vae"), load_lpips(backbone)
    for position in range(8):
        sample = trainable.dataset[position]
        frame = sample["frame"].movedim(-1, -3)[None].float() / 127.5 - 1
        picture = trainable.module.audio_image.encode(sample["waveform"][None]) if sample["audio"] else frame
        posterior = vae.encode(picture).latent_dist
        restored = vae.decode(posterior.mean + posterior.std * sample["noise"]).sample
        error, perceptual = F.l1_loss(restored, picture), distance(restored, picture)[0]
        torch.testing.assert_close(output.terms["reconstruction"][position], error)
        torch.testing.assert_close(squared.terms["reconstruction"][position], F.mse_loss(restored, picture))
        torch.testing.assert_close(output.terms["lpips"][position], perceptual)
        torch.testing.assert_close(output.loss[position], error + 0.3 * perceptual)
        torch.testing.assert_close(output.discriminator_inputs.real[position, 0], picture[0])
        torch.testing.assert_close(output.discriminator_inputs.fake[position, 0], restored[0])
    assert trainable.term_weights == {"reconstruction": 1.0, "lpips": 0.3}
    assert squared.discriminator_inputs is None
    assert squared.gradient_probes == {}
    assert "kl" not in squared.terms


def test_each_terms_gradient_reaches_the_restored_pictures(data):
    trainable = build(data, reconstruction="l1", lpips=str(data / "alexnet.pth"), adversarial=ADVERSARIAL)
    trainable.begin_step(FULL)
    output = values(trainable, range(2))
    (pictures,) = output.gradient_probes["pictures"]
    adversarial = trainable.discriminator.module.generator_loss(output.discriminator_inputs.fake)
    terms = {"adversarial": adversarial, **{name: output.terms[name] for name in trainable.term_weights}}
    gradients = {n: torch.autograd.grad(t.sum(), pictures, retain_graph=True)[0] for n, t in terms.items()}
    torch.testing.assert_close(gradients["reconstruction"].abs(), torch.full_like(pictures, 1 / pictures[0].numel()))
    assert all(gradient.flatten(1).norm(dim=1).min() > 0 for gradient in gradients.values())


def test_the_adversarial_loss_is_the_mean_over_patches(data):
    """Eq. 2's log form, averaged over a picture's patches: D = 1 - sigmoid(logit) is the probability of a fake."""
    trainable = build(data, adversarial=ADVERSARIAL)
    trainable.begin_step(FULL)
    inputs = values(trainable, range(3)).discriminator_inputs
    loss = trainable.discriminator.module
    losses = loss(inputs.real, inputs.fake.detach())["loss"]
    real, fake = (1 - torch.sigmoid(loss.network(pictures)) for pictures in (inputs.real, inputs.fake))  # (B, n) each
    expected = -(torch.log(1 - real) + torch.log(fake)).mean(dim=1)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(loss.generator_loss(inputs.fake), -torch.log(1 - fake).mean(dim=1))


def test_the_decoder_learns_and_the_encoder_does_not_change_by_a_bit(data, tmp_path):
    trainable = build(data, reconstruction="l1", audio_share=0.2)
    before = kl_vae.load(data / "kl_vae")
    trained = {name: p for name, p in trainable.module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=3e-3, weight_decay=0.1)
    history = []
    for _ in range(50):
        loss = values(trainable, range(6)).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.6 * history[0]
    averaged = {name: p.detach().clone() for name, p in trained.items()}
    trainable.module.bfloat16()  # as an engine does; the averaged weights it hands over are float32
    trainable.write_weights(tmp_path / "weights", averaged)

    after = kl_vae.load(tmp_path / "weights")
    pictures = torch.stack([trainable.dataset[i]["frame"] for i in range(6)]).movedim(-1, -3) / 127.5 - 1
    with torch.no_grad():
        latents = kl_vae.encode(before, pictures)
        assert torch.equal(kl_vae.encode(after, pictures), latents)
        errors = [(kl_vae.decode(vae, latents) - pictures).abs().mean() for vae in (before, after)]
    assert errors[1] < 0.75 * errors[0]
    assert after.config == before.config
    learned = {
        name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])
    }
    assert learned == {name.removeprefix("vae.") for name in trained}
    assert {name.split(".")[0] for name in learned} == {"decoder", "post_quant_conv"}


def test_the_adversarial_term_makes_pictures_look_more_real_to_the_discriminator(data):
    """Here the discriminator does not learn, and the loss is the adversarial term alone."""
    trainable = build(data, adversarial=ADVERSARIAL)
    trainable.begin_step(FULL)
    adversarial = trainable.discriminator.module
    optimizer = torch.optim.Adam([p for p in trainable.module.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(20):
        loss = adversarial.generator_loss(values(trainable, range(4)).discriminator_inputs.fake).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] - 0.1


def test_training_from_scratch_has_the_same_options(data):
    trainable = build(
        data, kl_vae="", model=tiny_autoencoder.KL_VAE, reconstruction="l1", lpips=str(data / "alexnet.pth")
    )
    output = values(trainable, range(2))
    weights = {"reconstruction": 1.0, "kl": 1e-6, "lpips": 1.0}
    assert trainable.term_weights == weights
    torch.testing.assert_close(output.loss, sum(w * output.terms[name] for name, w in weights.items()))
    assert all(p.requires_grad for p in trainable.module.parameters())


def test_a_third_of_a_frozen_encoders_flops_is_counted(data):
    scratch, tuned = build(data, kl_vae="", model=tiny_autoencoder.KL_VAE), build(data)
    assert 0.4 < tuned.flops_per_sample / scratch.flops_per_sample < 0.95


def test_a_runs_inputs_are_shards_kl_vae_and_lpips(data, tmp_path):
    assert build(data).inputs.keys() == {"shards", "kl_vae"}
    first = build(data, lpips=str(data / "alexnet.pth")).inputs
    assert len(set(first.values())) == len(first) == 3
    torch.manual_seed(1)
    kl_vae.save(tmp_path, kl_vae.build(tiny_autoencoder.KL_VAE))
    assert build(data, kl_vae=str(tmp_path)).inputs["kl_vae"] != first["kl_vae"]


def test_bfloat16_agrees_with_float32(data):
    trainable = build(data, reconstruction="l1", lpips=str(data / "alexnet.pth"))
    full = values(trainable, range(2))
    trainable.module.bfloat16()
    low = values(trainable, range(2))
    assert all(value.dtype == torch.float32 for value in low.logged().values())
    torch.testing.assert_close(low.loss, full.loss, rtol=0.02, atol=0.02)


def refusal(data: Path, **settings) -> str:
    with pytest.raises(UserError) as error:
        build(data, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_inputs_that_do_not_fit_are_refused(data, tmp_path):
    assert "nowhere" in refusal(data, kl_vae=str(tmp_path / "nowhere"))
    assert "nowhere" in refusal(data, lpips=str(tmp_path / "nowhere"))
    wide = {"discriminator": PatchDiscriminatorConfig(layers=4)}
    assert "discriminator.layers: 4" in refusal(data, adversarial=ADVERSARIAL, **wide)
    build(data, **wide)  # without an adversarial term there is no discriminator
    deep = tiny_autoencoder.KL_VAE.__class__(channels=[8] * 7, blocks=1)
    kl_vae.save(tmp_path / "deep", kl_vae.build(deep))
    assert "7 levels divide sizes by 64" in refusal(data, kl_vae=str(tmp_path / "deep"))


@pytest.mark.parametrize(
    "settings",
    [
        {"audio_share": 1.5},
        {"kl_weight": -1.0},
        {"lpips_weight": -1.0},
        {"lpips_weight": math.nan},
    ],
)
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        KLVAETraining(shards=["x"], **settings)


def test_a_discriminator_without_layers_or_width_is_refused():
    for settings in ({"layers": 0}, {"width": 0}):
        with pytest.raises(UserError, match="discriminator"):
            PatchDiscriminatorConfig(**settings)


def train(data: Path, run: Path, world: World, total: int) -> list[dict[str, float]]:
    """Train in ``run`` up to ``total`` samples, from its newest checkpoint; return the log's records."""
    config = KLVAETraining(
        shards=[str(data / "clips")],
        kl_vae=str(data / "kl_vae"),
        reconstruction="l1",
        lpips=str(data / "alexnet.pth"),
        discriminator=SMALL,
        adversarial=AdversarialConfig(weight=0.1, after=8, ramp=16),
        training=TrainingConfig(
            total_samples=total,
            global_batch=4,
            micro_batch=2,
            learning_rate=1e-3,
            ema_lengths=[0.063],
            precision="fp32",
            workers=0,
            log_every=4,
            checkpoint_every=12,
            preview_every=24,
        ),
    )
    run.mkdir(exist_ok=True)
    torch.manual_seed(0)
    try:
        assert not Trainer(build_trainable(config), config.training, run, world).run(StopRequest())
    finally:
        restore_handlers()
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_resumed_run_ends_with_the_same_bits(data, tmp_path, alone):
    whole = train(data, tmp_path / "whole", alone, total=24)
    train(data, tmp_path / "halves", alone, total=12)
    halves = train(data, tmp_path / "halves", alone, total=24)
    for expected, resumed in zip(whole, halves, strict=True):
        names = [name for name in expected if name.split("/")[0] in ("loss", "term", "discriminator", "gradient_norm")]
        assert {name: expected[name] for name in names} == {name: resumed[name] for name in names}
    first, second = (kl_vae.load(tmp_path / name).state_dict() for name in ("whole", "halves"))
    before = kl_vae.load(data / "kl_vae").state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    frozen = {name for name, tensor in first.items() if torch.equal(tensor, before[name])}
    assert frozen == {name for name in first if name.startswith(("encoder.", "quant_conv."))}


def test_a_run_logs_terms_weights_and_the_discriminators_values(data, tmp_path, alone):
    records = train(data, tmp_path / "run", alone, total=24)
    last, weights = records[-1], [record["weight/adversarial"] for record in records]
    assert weights == pytest.approx([0, 0, 0.025, 0.05, 0.075, 0.1])
    assert (last["weight/reconstruction"], last["weight/lpips"]) == (1.0, 1.0)
    parts = sum(last[f"weight/{name}"] * last[f"term/{name}"] for name in ("reconstruction", "lpips", "adversarial"))
    assert last["loss"] == pytest.approx(parts, rel=1e-5)
    assert last["gradient_norm/pictures/adversarial"] > 0
    assert {"discriminator/logit_real", "discriminator/logit_fake", "discriminator/loss"} <= last.keys()
    assert "discriminator/loss" not in records[0]
