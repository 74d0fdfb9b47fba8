"""Training a KL-VAE from scratch: its losses, its data and its weights folder."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate

from mmldm_scale.common.errors import UserError
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.trainables.kl_vae.config import KLVAETraining
from mmldm_scale.trainables.kl_vae.trainable import build_trainable
from mmldm_scale.training.trainable import StepOutput, Trainable
from tests.support.datasets.clip_sets import write_clips
from tests.support.tiny_models import tiny_autoencoder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("kl_vae") / "clips")


def build(clips: Path, seed: int = 0, **settings) -> Trainable:
    torch.manual_seed(0)
    config = KLVAETraining(shards=[str(clips)], model=tiny_autoencoder.KL_VAE, **settings)
    config.training.seed = seed
    return build_trainable(config)


def losses(trainable: Trainable, positions: range) -> StepOutput:
    return trainable.module(default_collate([trainable.dataset[position] for position in positions]))


def test_each_term_is_what_its_name_says(clips):
    trainable = build(clips, kl_weight=0.01, audio_share=0.5)
    output = losses(trainable, range(8))
    is_audio = set()
    for position in range(8):
        sample = trainable.dataset[position]
        is_audio.add(bool(sample["audio"]))
        frame = sample["frame"].movedim(-1, -3)[None].float() / 127.5 - 1
        picture = trainable.module.audio_image.encode(sample["waveform"][None]) if sample["audio"] else frame
        posterior = trainable.module.vae.encode(picture).latent_dist
        restored = trainable.module.vae.decode(posterior.mean + posterior.std * sample["noise"]).sample
        error = torch.nn.functional.mse_loss(restored, picture)
        torch.testing.assert_close(output.terms["reconstruction"][position], error)
        torch.testing.assert_close(output.terms["kl"][position], posterior.kl()[0])
        torch.testing.assert_close(output.loss[position], error + 0.01 * posterior.kl()[0])
    assert is_audio == {True, False}


def test_the_loss_of_a_sample_does_not_depend_on_the_rest_of_its_batch(clips):
    """It is thus the same for any number of processes; another seed gives other losses."""
    trainable = build(clips)
    together = losses(trainable, range(4)).loss
    apart = torch.cat([losses(trainable, range(2, 4)).loss, losses(trainable, range(2)).loss])
    torch.testing.assert_close(together, apart.roll(2))
    assert not torch.allclose(together, losses(build(clips, seed=1), range(4)).loss)


def test_the_loss_falls_and_the_weights_folder_has_the_scaling_factor(clips, tmp_path):
    trainable = build(clips)
    optimizer = torch.optim.Adam(trainable.module.parameters(), lr=1e-2)
    history = []
    for step in range(40):
        loss = losses(trainable, range(4 * (step % 3), 4 * (step % 3) + 4)).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-5:]) < 0.5 * sum(history[:5])

    trainable.write_weights(tmp_path / "weights", trainable.module.state_dict())
    vae = kl_vae.load(tmp_path / "weights")
    for name, tensor in trainable.module.vae.state_dict().items():
        assert torch.equal(tensor, vae.state_dict()[name])
    pictures = torch.cat([trainable.dataset[i]["frame"][None] for i in range(6)]).movedim(-1, -3) / 127.5 - 1
    assert 0.5 < kl_vae.encode(vae, pictures).std() < 2


def test_the_flops_are_those_of_one_picture(clips):
    trainable = build(clips)
    convolution = 2 * 3 * 9 * 8 * 32 * 32  # the first of all, from 3 channels to 8
    assert 20 * convolution < trainable.flops_per_sample < 200 * convolution


def test_empty_sets_and_sizes_that_do_not_fit_are_refused(clips, tmp_path):
    with pytest.raises(UserError, match="empty"):
        build(write_clips(tmp_path / "none", 0))
    config = KLVAETraining(shards=[str(clips)])
    config.model.channels = [8] * 7
    with pytest.raises(UserError, match="channels"):
        build_trainable(config)
