"""The DiT's trainable: its samples, loss, weights folder and FLOPs."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig, load
from mmldm_scale.models import pretrained
from mmldm_scale.models.dit import DiT
from mmldm_scale.models.flops import dit_macs
from mmldm_scale.shards.manifest import Manifest
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.trainable import build_trainable, outline
from tests.support.datasets.latent_sets import AUDIO, VIDEO, latent_sample, write_latents

SMALL = ["model.depth=1", "model.width=16", "model.heads=2", "model.context_tokens=2", "model.context_width=4"]


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """A set of 20 latent samples."""
    return write_latents(tmp_path / "latents")


def configure(latents: Path, *overrides: str) -> DiTTraining:
    return load(DiTTraining, overrides=[f"shards={latents}", "training.precision=fp32", *SMALL, *overrides])


def test_a_sample_is_a_function_of_seed_and_position(latents):
    dataset = build_trainable(configure(latents)).dataset
    copy = pickle.loads(pickle.dumps(build_trainable(configure(latents)).dataset))  # as in a loader worker
    other = build_trainable(configure(latents, "training.seed=1")).dataset
    for position in (0, 19, 20, 1003):
        sample, same = dataset[position], copy[position]
        assert all(torch.equal(sample[name], same[name]) for name in sample)
        assert not torch.equal(sample["audio_noise"], other[position]["audio_noise"])
    first, second = dataset[3], dataset[23]  # the random numbers differ between epochs
    assert not torch.equal(first["video_noise"], second["video_noise"])


def test_a_sample_is_the_same_in_any_micro_batch(latents, tmp_path):
    write_latents(tmp_path / "more", (5, 9), first=100)
    dataset = build_trainable(configure(latents, f"shards=[{latents},{tmp_path / 'more'}]", "weights=[1,2]")).dataset
    positions = [7, 3, 1003, 4, 5, 3]
    for position, sample in zip(positions, dataset.__getitems__(positions), strict=True):
        alone = dataset[position]
        assert sample.keys() == alone.keys()
        assert all(torch.equal(sample[name], alone[name]) for name in sample)


def test_latents_are_normalised_samples_of_their_posteriors_and_half_are_mirrored(latents):
    dataset = build_trainable(configure(latents, "posterior=draw")).dataset
    samples = [dataset[i] for i in range(400)]
    for name in ("audio", "video"):
        values = torch.stack([sample[name] for sample in samples])  # (400, C, H, W)
        assert values.dtype == torch.float32
        assert values.mean(dim=(0, 2, 3)).abs().max() < 0.05
        assert (values.std(dim=(0, 2, 3)) - 1).abs().max() < 0.05
    statistics = dataset.samples.mixture.statistics["video"]
    mean, std = (torch.tensor(statistics[key])[:, None, None] for key in ("mean", "std"))
    mirrored, variances = 0, []
    for position, sample in enumerate(samples):
        video = torch.from_numpy(latent_sample(dataset.samples.mixture.orders[0](position)).video_mean).float()
        error = [(sample["video"] * std + mean - view).square().mean() for view in (video, video.flip(-1))]
        variances.append(min(error))
        mirrored += int(error[1] < error[0])
    assert np.mean(variances) == pytest.approx(np.exp(-2), rel=0.05)  # the posteriors' variance
    assert 160 < mirrored < 240


def test_losses_fall_and_are_metrics_of_each_modality(latents):
    torch.manual_seed(0)
    trainable = build_trainable(configure(latents))
    batch = {k: torch.stack([trainable.dataset[i][k] for i in range(64)]) for k in trainable.dataset[0]}
    optimizer = torch.optim.Adam(trainable.module.parameters(), lr=1e-2)
    history = []
    for _ in range(60):
        output = trainable.module(batch)
        values = output.logged()
        assert {name: tuple(v.shape) for name, v in values.items()} == {
            "loss": (64,),
            "loss/audio": (64,),
            "loss/video": (64,),
        }
        history.append({name: v.mean().item() for name, v in values.items()})
        optimizer.zero_grad()
        output.loss.mean().backward()
        optimizer.step()
    assert history[0]["loss"] == pytest.approx(1, abs=0.05)  # the network starts at a prediction of zero
    for name in ("loss/audio", "loss/video"):
        assert history[-1][name] < 0.8 * history[0][name]


PARTNERS = {"other_audio", "other_video", "displaced_audio", "displaced_given"}


def test_contrastive_partners_are_a_function_of_seed_and_position(latents, tmp_path):
    more = write_latents(tmp_path / "more", (5, 9), first=100)
    plain, contrastive = (
        build_trainable(configure(latents, f"shards=[{latents},{more}]", *overrides)).dataset
        for overrides in ([], ["contrastive.weight=0.1"])
    )
    positions = [7, 3, 1003, 4, 5, 40]
    together = contrastive.__getitems__(positions)
    for position, sample in zip(positions, together, strict=True):
        alone, own = contrastive[position], plain[position]
        assert set(sample) == set(own) | PARTNERS
        assert all(torch.equal(sample[name], alone[name]) for name in sample)  # in any micro-batch
        assert all(torch.equal(sample[name], own[name]) for name in own)  # other entries do not change
        assert not sample["displaced_given"]  # the sets' keys name no windows
        assert not sample["displaced_audio"].any()


def test_the_contrastive_partner_is_another_clip_of_the_set(latents):
    dataset = build_trainable(configure(latents, "contrastive.weight=0.1", "flip=0", "posterior=draw")).dataset
    mixture = dataset.samples.mixture
    for position in range(0, 60, 7):
        sample, (_, index) = dataset[position], mixture.pair_index(position)
        assert index != mixture.orders[0](position)
        other = latent_sample(index)
        for name, mean in (("other_audio", other.audio_mean), ("other_video", other.video_mean)):
            statistics = mixture.statistics[name.partition("_")[2]]
            centre, spread = (torch.tensor(statistics[key])[:, None, None] for key in ("mean", "std"))
            error = sample[name] * spread + centre - torch.from_numpy(mean).float()
            assert error.std() == pytest.approx(np.exp(-1), rel=0.5)  # its posterior's; other clips differ by 0.5 to 2


def test_the_contrastive_term_is_in_loss_log_and_flops(latents):
    trainable, plain = (build_trainable(configure(latents, f"contrastive.weight={weight}")) for weight in (0.5, 0))
    assert trainable.term_weights == {"contrastive": 0.5}
    assert plain.term_weights == {}
    assert trainable.flops_per_sample == 4 * plain.flops_per_sample
    batch = {k: torch.stack([trainable.dataset[i][k] for i in range(4)]) for k in trainable.dataset[0]}
    output = trainable.module(batch)
    assert set(output.logged()) == {"loss", "loss/audio", "loss/video", "term/contrastive", "data/displaced"}
    assert output.terms["contrastive"].shape == (4,)
    expected = (output.metrics["loss/audio"] + output.metrics["loss/video"]) / 2 + 0.5 * output.terms["contrastive"]
    torch.testing.assert_close(output.loss, expected)


def test_the_loss_weights_of_the_configuration_reach_the_loss(latents):
    trainable = build_trainable(configure(latents, "loss_weights={audio: 0.5, video: 3}"))
    batch = {k: torch.stack([trainable.dataset[i][k] for i in range(4)]) for k in trainable.dataset[0]}
    output = trainable.module(batch)
    expected = 0.25 * output.metrics["loss/audio"] + 1.5 * output.metrics["loss/video"]
    torch.testing.assert_close(output.loss, expected)


def test_the_weights_folder_holds_weights_and_description(latents, tmp_path):
    config = configure(latents)
    trainable = build_trainable(config)
    state = {name: tensor.float() for name, tensor in trainable.module.state_dict().items()}
    trainable.write_weights(tmp_path / "weights", state)
    folder = pretrained.find(tmp_path, "dit")
    stored = json.loads((folder / "config.json").read_text())
    assert stored["autoencoder"] == {"path": "somewhere", "fingerprint": "abc"}
    assert Manifest.read(latents).autoencoder["path"] == "somewhere"
    assert stored["media"] == dataclasses.asdict(MediaConfig(size=64))
    assert stored["statistics"] == Manifest.read(latents).statistics
    model = DiT(config.model, AUDIO, VIDEO)
    pretrained.load_into(model, folder)
    for loaded, trained in zip(model.parameters(), trainable.module.dit.parameters(), strict=True):
        assert torch.equal(loaded, trained)


def test_a_mixture_is_normalised_by_the_statistics_of_its_samples(latents, tmp_path):
    other = write_latents(tmp_path / "other", (5, 9), first=100)
    single, mixed = (
        build_trainable(configure(latents, "posterior=draw", *overrides))
        for overrides in ([], [f"shards=[{latents},{other}]", "weights=[1,3]"])
    )
    assert single.inputs != mixed.inputs
    values = torch.stack([mixed.dataset[i]["video"] for i in range(800)])
    assert values.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert (values.std(dim=(0, 2, 3)) - 1).abs().max() < 0.05
    mixed.write_weights(tmp_path / "weights", dict(mixed.module.state_dict()))
    stored = json.loads((tmp_path / "weights" / "config.json").read_text())["statistics"]
    first, second = (Manifest.read(folder).statistics["audio"]["mean"] for folder in (latents, other))
    np.testing.assert_allclose(stored["audio"]["mean"], 0.25 * np.array(first) + 0.75 * np.array(second))


def test_latents_of_another_shape_than_the_manifests_are_damage(tmp_path):
    wrong = write_latents(tmp_path / "wrong", audio_shape=(4, 4, 4))
    with pytest.raises(UserError, match="latents of shapes"):
        build_trainable(configure(wrong, f"run={tmp_path / 'run'}", "reading.damaged_share=0.9")).dataset[0]


def test_the_flops_are_those_of_the_shapes_in_the_shards(latents):
    d, n = 16, 2 + 1 + 4 + 1 + 9  # width; context, [EOS] and latent tokens
    linear = 12 * d * d * n + 6 * d * d  # the layer
    linear += 256 * d + d * d + 2 * 4 * d + 3 * 4 * d * (4 + 9) + 2 * 2 * d * d  # time, context, ends
    assert build_trainable(configure(latents)).flops_per_sample == 2 * (linear + 2 * n * n * d)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["shards=/nowhere"], "/nowhere: no such folder"), (["model.attention=flash"], "flash cannot be used here")],
)
def test_missing_shards_and_unusable_attention_are_refused_at_the_start(latents, overrides, message):
    with pytest.raises(UserError, match=message):
        build_trainable(configure(latents, *overrides))


def test_average_velocities_are_learned_on_intervals_that_fit_any_timestep(latents, tmp_path):
    """Half of the samples have one; in validation, timesteps are replaced. The planner counts one more forward pass."""
    settings = ["diffusion.prediction=flow", "diffusion.mean_flow=0.5", "model.average_velocity=true"]
    held_out = write_latents(tmp_path / "held_out", (8,), first=100)
    config = configure(latents, *settings, f"validation={held_out}", "training.micro_batch=2", "shared_recordings=true")
    trainable = build_trainable(config)
    samples = [trainable.dataset[position] for position in range(20)]
    assert 4 <= sum(sample["interval"] > 0 for sample in samples) <= 16
    for sample in [*samples, *trainable.validation.__getitems__(range(8))]:
        assert 0 <= sample["interval"] <= 1
    for parameter in trainable.module.parameters():  # of which many are zero, so that nothing reaches the others
        torch.nn.init.normal_(parameter, std=0.1)
    output = trainable.module(torch.utils.data.default_collate(samples))
    output.loss.mean().backward()
    weighted = (output.metrics["loss/audio"] + output.metrics["loss/video"]) / 2
    torch.testing.assert_close(output.loss, weighted / (weighted + 1e-3))
    assert trainable.module.dit.span[2].weight.grad.any()
    plain = build_trainable(configure(latents, *settings[:1]))
    assert "interval" not in plain.dataset[0]
    planned = outline(config)
    planned.module(planned.batch)  # on shapes alone
    assert trainable.flops_per_sample == pytest.approx(4 / 3 * dit_macs(config.model, AUDIO, VIDEO).flops)
