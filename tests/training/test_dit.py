import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mmldm_scale.config import DiTTraining, MediaConfig, load
from mmldm_scale.errors import UserError
from mmldm_scale.models import pretrained
from mmldm_scale.models.dit import DiT
from mmldm_scale.shards.latents import LatentSample, encode_latents, statistics, sums
from mmldm_scale.shards.manifest import Manifest, ShardEntry
from mmldm_scale.shards.writer import ShardWriter
from mmldm_scale.training.dit import build_task

AUDIO, VIDEO = (4, 2, 2), (4, 3, 3)
SMALL = ["model.depth=1", "model.width=16", "model.heads=2", "model.context_tokens=2", "model.context_width=4"]


def latent_sample(number: int) -> LatentSample:
    random = np.random.default_rng(number)
    scale = np.array([1, 2, 3, 4])[:, None, None]
    audio, video = (random.normal(1, 0.5, shape) * scale for shape in (AUDIO, VIDEO))
    deviation = [np.full(shape, -2.0) for shape in (AUDIO, VIDEO)]
    half = [x.astype(np.float16) for x in (audio, deviation[0], video, deviation[1], video[..., ::-1], deviation[1])]
    return LatentSample(*half)


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """A set of 20 latent samples."""
    folder = tmp_path / "latents"
    folder.mkdir()
    samples = [latent_sample(i) for i in range(20)]
    with ShardWriter(folder, 0) as shard:
        for i, sample in enumerate(samples):
            shard.add(f"clip_{i:02d}", encode_latents(sample), {})
        entry = ShardEntry.of(shard.commit())
    Manifest(
        kind="latents",
        media=MediaConfig(size=64),
        classes=[],
        videos=20,
        failed_files=0,
        candidates=20,
        samples=20,
        dropped=0,
        reasons={},
        shards=[entry],
        autoencoder={"path": "somewhere", "fingerprint": "abc"},
        audio_shape=AUDIO,
        video_shape=VIDEO,
        statistics=statistics([sums(samples)]),
    ).write(folder)
    return folder


def configure(latents: Path, *overrides: str) -> DiTTraining:
    return load(DiTTraining, overrides=[f"shards={latents}", "training.precision=fp32", *SMALL, *overrides])


def test_a_sample_is_a_function_of_seed_and_position(latents):
    dataset = build_task(configure(latents)).dataset
    copy = pickle.loads(pickle.dumps(build_task(configure(latents)).dataset))  # as a loader worker gets it
    other = build_task(configure(latents, "training.seed=1")).dataset
    for position in (0, 19, 20, 1003):
        one, same = dataset[position], copy[position]
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not torch.equal(one["audio_noise"], other[position]["audio_noise"])
    first, second = dataset[3], dataset[23]  # other epochs have other chances
    assert not torch.equal(first["video_noise"], second["video_noise"])


def test_latents_are_normalised_drawn_from_their_posteriors_and_sometimes_mirrored(latents):
    dataset = build_task(configure(latents)).dataset
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
        error = [(sample["video"] * std + mean - way).square().mean() for way in (video, video.flip(-1))]
        variances.append(min(error))
        mirrored += int(error[1] < error[0])
    assert np.mean(variances) == pytest.approx(np.exp(-2), rel=0.05)  # as the posteriors say
    assert 160 < mirrored < 240


def test_losses_fall_and_are_reported_for_each_modality(latents):
    torch.manual_seed(0)
    task = build_task(configure(latents))
    batch = {k: torch.stack([task.dataset[i][k] for i in range(64)]) for k in task.dataset[0]}
    optimizer = torch.optim.Adam(task.module.parameters(), lr=1e-2)
    history = []
    for _ in range(60):
        values = task.module(batch)
        assert {name: tuple(v.shape) for name, v in values.items()} == {
            "loss": (64,),
            "loss/audio": (64,),
            "loss/video": (64,),
        }
        history.append({name: v.mean().item() for name, v in values.items()})
        optimizer.zero_grad()
        values["loss"].mean().backward()
        optimizer.step()
    assert history[0]["loss"] == pytest.approx(1, abs=0.05)  # the network starts at a prediction of zero
    for name in ("loss/audio", "loss/video"):
        assert history[-1][name] < 0.8 * history[0][name]


def test_weights_folder_describes_itself(latents, tmp_path):
    config = configure(latents)
    task = build_task(config)
    state = {name: tensor.float() for name, tensor in task.module.state_dict().items()}
    task.write_weights(tmp_path / "weights", state)
    folder = pretrained.find(tmp_path, "dit")
    stored = json.loads((folder / "config.json").read_text())
    assert stored["autoencoder"] == {"path": "somewhere", "fingerprint": "abc"}
    assert stored["media"] == dataclasses.asdict(MediaConfig(size=64))
    assert stored["statistics"] == Manifest.read(latents).statistics
    model = DiT(config.model, AUDIO, VIDEO)
    pretrained.load_into(model, folder)
    for loaded, trained in zip(model.parameters(), task.module.dit.parameters(), strict=True):
        assert torch.equal(loaded, trained)


def test_flops_are_those_of_the_shapes_in_the_shards(latents):
    d, n = 16, 2 + 1 + 4 + 1 + 9  # width; context, [EOS] and latent tokens
    linear = 12 * d * d * n + 6 * d * d  # the layer
    linear += 256 * d + d * d + 2 * 4 * d + 3 * 4 * d * (4 + 9) + 2 * 2 * d * d  # time, context, ends
    assert build_task(configure(latents)).flops_per_sample == 2 * (linear + 2 * n * n * d)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [(["shards=/nowhere"], "/nowhere: no such folder"), (["model.attention=flash"], "flash cannot be used here")],
)
def test_what_cannot_work_is_said_at_once(latents, overrides, says):
    with pytest.raises(UserError, match=says):
        build_task(configure(latents, *overrides))
