"""Fine-tuning a KL-VAE's decoder: what stays as it is to the bit, and what the terms of its loss are."""

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
from mmldm_scale.training.trainable import StepInfo, Trainable
from tests.support.datasets.clip_sets import write_clips
from tests.support.tiny_models import tiny_autoencoder
from tests.support.tiny_models.backbones import write_alexnet

ADVERSARIAL = AdversarialConfig(weight=0.1)
SMALL = PatchDiscriminatorConfig(width=4, layers=2)
FULL = StepInfo(samples_seen=0, logged=True, adversarial=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clip shards, a KL-VAE and a backbone of LPIPS."""
    folder = tmp_path_factory.mktemp("kl_vae_finetune")
    write_clips(folder / "clips")
    torch.manual_seed(0)
    vae = kl_vae.build(tiny_autoencoder.KL_VAE, scaling_factor=3.0)
    torch.nn.init.constant_(vae.quant_conv.bias[vae.config.latent_channels :], -10.0)  # narrow posteriors, as trained
    kl_vae.save(folder / "kl_vae", vae)
    write_alexnet(folder / "alexnet.pth")
    return folder


def trainable(data: Path, **settings) -> Trainable:
    torch.manual_seed(0)
    settings = {"shards": [str(data / "clips")], "kl_vae": str(data / "kl_vae"), "discriminator": SMALL} | settings
    return build_trainable(KLVAETraining(**settings))


def values(one: Trainable, positions: range) -> dict:
    return one.module(default_collate([one.dataset[position] for position in positions]))


def test_terms_are_what_they_are_called(data):
    backbone = str(data / "alexnet.pth")
    settings = {"audio_share": 0.5, "lpips": backbone, "lpips_weight": 0.3, "adversarial": ADVERSARIAL}
    one = trainable(data, reconstruction="l1", **settings)
    one.begin_step(FULL)
    found, squared = values(one, range(8)), values(trainable(data, reconstruction="l2", **settings), range(8))
    vae, distance = kl_vae.load(data / "kl_vae"), load_lpips(backbone)
    for position in range(8):
        sample = one.dataset[position]
        frame = sample["frame"].movedim(-1, -3)[None].float() / 127.5 - 1
        picture = one.module.audio_image.encode(sample["waveform"][None]) if sample["audio"] else frame
        posterior = vae.encode(picture).latent_dist
        restored = vae.decode(posterior.mean + posterior.std * sample["noise"]).sample
        error, perceptual = F.l1_loss(restored, picture), distance(restored, picture)[0]
        torch.testing.assert_close(found.terms["reconstruction"][position], error)
        torch.testing.assert_close(squared.terms["reconstruction"][position], F.mse_loss(restored, picture))
        torch.testing.assert_close(found.terms["lpips"][position], perceptual)
        torch.testing.assert_close(found.loss[position], error + 0.3 * perceptual)
        torch.testing.assert_close(found.discriminator_inputs.real[position, 0], picture[0])
        torch.testing.assert_close(found.discriminator_inputs.fake[position, 0], restored[0])
    assert one.term_weights == {"reconstruction": 1.0, "lpips": 0.3}
    assert torch.equal(found.discriminator_inputs.weight, torch.ones(8))
    assert not {"exhibits", "through", "term/kl"} & squared.keys()


def test_each_terms_gradient_reaches_the_restored_pictures(data):
    one = trainable(data, reconstruction="l1", lpips=str(data / "alexnet.pth"), adversarial=ADVERSARIAL)
    one.begin_step(FULL)
    found = values(one, range(2))
    (pictures,) = found.gradient_probes["pictures"]
    adversarial = one.discriminator.module.generator_loss(found.discriminator_inputs.fake)
    terms = {"adversarial": adversarial, **{name: found.terms[name] for name in one.term_weights}}
    gradients = {n: torch.autograd.grad(t.sum(), pictures, retain_graph=True)[0] for n, t in terms.items()}
    torch.testing.assert_close(gradients["reconstruction"].abs(), torch.full_like(pictures, 1 / pictures[0].numel()))
    assert all(gradient.flatten(1).norm(dim=1).min() > 0 for gradient in gradients.values())


def test_the_patches_verdicts_make_the_adversarial_loss(data):
    """Eq. 2's log form, averaged over a picture's patches: D = 1 - sigmoid(logit) is the probability of a fake."""
    one = trainable(data, adversarial=ADVERSARIAL)
    one.begin_step(FULL)
    shown = values(one, range(3)).discriminator_inputs
    loss = one.discriminator.module
    found = loss(shown["real"], shown["fake"].detach(), shown["weight"])
    verdict = {name: 1 - torch.sigmoid(loss.network(shown[name])) for name in ("real", "fake")}  # (B, n)
    expected = -(torch.log(1 - verdict["real"]) + torch.log(verdict["fake"])).mean(dim=1)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(loss.generator_loss(shown["fake"]), -torch.log(1 - verdict["fake"]).mean(dim=1))


def test_the_decoder_learns_and_the_encoder_stays_to_the_bit(data, tmp_path):
    one = trainable(data, reconstruction="l1", audio_share=0.2)
    before = kl_vae.load(data / "kl_vae")
    trained = {name: p for name, p in one.module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=3e-3, weight_decay=0.1)
    history = []
    for _ in range(50):
        loss = values(one, range(6)).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.6 * history[0]
    averaged = {name: p.detach().clone() for name, p in trained.items()}
    one.module.bfloat16()  # as an engine does; the averaged weights it hands over are float32
    one.write_weights(tmp_path / "weights", averaged)

    after = kl_vae.load(tmp_path / "weights")
    pictures = torch.stack([one.dataset[i]["frame"] for i in range(6)]).movedim(-1, -3) / 127.5 - 1
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


def test_the_adversarial_term_teaches_the_decoder_to_pass(data):
    """Against a discriminator that does not learn, the model's term alone makes its pictures look more real to it."""
    one = trainable(data, adversarial=ADVERSARIAL)
    one.begin_step(FULL)
    judge = one.discriminator.module
    optimizer = torch.optim.Adam([p for p in one.module.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(20):
        loss = judge.generator_loss(values(one, range(4)).discriminator_inputs.fake).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] - 0.1


def test_from_scratch_the_same_options_are_there(data):
    one = trainable(
        data, kl_vae="", model=tiny_autoencoder.KL_VAE, reconstruction="l1", lpips=str(data / "alexnet.pth")
    )
    found = values(one, range(2))
    weights = {"reconstruction": 1.0, "kl": 1e-6, "lpips": 1.0}
    assert one.term_weights == weights
    torch.testing.assert_close(found.loss, sum(w * found.terms[name] for name, w in weights.items()))
    assert all(p.requires_grad for p in one.module.parameters())


def test_a_frozen_encoder_takes_a_third_of_its_flops(data):
    scratch, tuned = trainable(data, kl_vae="", model=tiny_autoencoder.KL_VAE), trainable(data)
    assert 0.4 < tuned.flops_per_sample / scratch.flops_per_sample < 0.95


def test_the_run_is_tied_to_what_it_learns_from(data, tmp_path):
    assert trainable(data).inputs.keys() == {"shards", "kl_vae"}
    first = trainable(data, lpips=str(data / "alexnet.pth")).inputs
    assert len(set(first.values())) == len(first) == 3
    torch.manual_seed(1)
    kl_vae.save(tmp_path, kl_vae.build(tiny_autoencoder.KL_VAE))
    assert trainable(data, kl_vae=str(tmp_path)).inputs["kl_vae"] != first["kl_vae"]


def test_low_precision_agrees(data):
    one = trainable(data, reconstruction="l1", lpips=str(data / "alexnet.pth"))
    full = values(one, range(2))
    one.module.bfloat16()
    low = values(one, range(2))
    assert all(value.dtype == torch.float32 for value in low.values())
    torch.testing.assert_close(low.loss, full.loss, rtol=0.02, atol=0.02)


def refusal(data: Path, **settings) -> str:
    with pytest.raises(UserError) as error:
        trainable(data, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refusals(data, tmp_path):
    assert "nowhere" in refusal(data, kl_vae=str(tmp_path / "nowhere"))
    assert "nowhere" in refusal(data, lpips=str(tmp_path / "nowhere"))
    wide = {"discriminator": PatchDiscriminatorConfig(layers=4)}
    assert "discriminator.layers: 4" in refusal(data, adversarial=ADVERSARIAL, **wide)
    trainable(data, **wide)  # without an adversarial term there is no discriminator
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
def test_a_number_that_cannot_be_is_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        KLVAETraining(shards=["x"], **settings)


def test_a_discriminator_that_cannot_be_is_refused():
    for settings in ({"layers": 0}, {"width": 0}):
        with pytest.raises(UserError, match="discriminator"):
            PatchDiscriminatorConfig(**settings)


def train(data: Path, run: Path, world: World, total: int) -> list[dict[str, float]]:
    """Train in ``run`` until ``total`` samples are seen, from its newest checkpoint; return what was logged."""
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


def test_a_run_that_is_carried_on_ends_the_same_to_the_bit(data, tmp_path, alone):
    whole = train(data, tmp_path / "whole", alone, total=24)
    train(data, tmp_path / "halves", alone, total=12)
    halves = train(data, tmp_path / "halves", alone, total=24)
    for one, other in zip(whole, halves, strict=True):
        learned = [name for name in one if name.split("/")[0] in ("loss", "term", "discriminator", "gradient_norm")]
        assert {name: one[name] for name in learned} == {name: other[name] for name in learned}
    first, second = (kl_vae.load(tmp_path / name).state_dict() for name in ("whole", "halves"))
    before = kl_vae.load(data / "kl_vae").state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    frozen = {name for name, tensor in first.items() if torch.equal(tensor, before[name])}
    assert frozen == {name for name in first if name.startswith(("encoder.", "quant_conv."))}


def test_what_a_run_logs(data, tmp_path, alone):
    records = train(data, tmp_path / "run", alone, total=24)
    last, weights = records[-1], [record["weight/adversarial"] for record in records]
    assert weights == pytest.approx([0, 0, 0.025, 0.05, 0.075, 0.1])
    assert (last["weight/reconstruction"], last["weight/lpips"]) == (1.0, 1.0)
    parts = sum(last[f"weight/{name}"] * last.terms[name] for name in ("reconstruction", "lpips", "adversarial"))
    assert last["loss"] == pytest.approx(parts, rel=1e-5)
    assert last["gradient_norm/pictures/adversarial"] > 0
    assert {"discriminator/logit_real", "discriminator/logit_fake", "discriminator/loss"} <= last.keys()
    assert "discriminator/loss" not in records[0]
