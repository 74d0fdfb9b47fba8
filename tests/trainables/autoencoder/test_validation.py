"""The autoencoder's loss on held-out clips: it is the mean over them, for any processes and micro-batch."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from mmldm_scale import cli
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import load
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.autoencoder.trainable import build_trainable
from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.trainable import Trainable
from tests.support.datasets.clip_sets import clip, write_clips
from tests.support.run_results import Finished, Forks, assert_same_checkpoint
from tests.support.tiny_models import tiny_autoencoder
from tests.support.tiny_models.autoencoder_trainable import CLASSES, train_arguments, write_data

FIRST = 10  # number of the first held-out clip
NAMES = ("tone", "hum", "bar")  # classes of the held-out clips; the model does not have "hum"
ONE = (1, "training.micro_batch=8", "training.total_samples=16")  # the discriminator takes part in the second step
ZERO_3 = (
    "training.zero_stage=3",
    "training.deepspeed.zero_optimization.stage3_max_reuse_distance=1",  # otherwise DeepSpeed searches all modules
)
TWO = (2, "training.micro_batch=2", "training.total_samples=8", "training.checkpoint_every=8", *ZERO_3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training data, and 13 held-out clips: three groups of four that are compared, and one more."""
    folder = write_data(tmp_path_factory.mktemp("data"))
    write_clips(folder / "validation_set", 13, NAMES, FIRST)
    write_clips(folder / "few", 3, first=50)
    write_clips(folder / "slow", first=60, media=dataclasses.replace(tiny_autoencoder.MEDIA, fps=5))
    return folder


@pytest.fixture(scope="module")
def runs(forks: Forks, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """Runs of two steps, without validation and with it, and one of a single step on two processes with ZeRO-3."""
    folder, finished = tmp_path_factory.mktemp("runs"), {}
    validated = ["training.validate_every=8", f"validation={data / 'validation_set'}"]
    kinds = {"plain": ONE, "validated": (*ONE, *validated), "two_processes": (*TWO, *validated)}
    for name, (processes, *overrides) in kinds.items():
        run = folder / name
        arguments = train_arguments(data, run, *overrides)
        finished[name] = Finished(run, *forks(processes, "command", str(data), "mmldm", *arguments))
        assert finished[name].status == 0, finished[name].output
    return finished


def configure(data: Path, *overrides: str) -> AutoencoderTraining:
    paths = [f"shards={data / 'clips'}", f"kl_vae={data / 'kl_vae'}", f"validation={data / 'validation_set'}"]
    return load(AutoencoderTraining, [data / "config.yaml"], [*paths, "training.micro_batch=8", *overrides])


def validation(run: Finished, samples_seen: int) -> dict[str, float]:
    values = run.values()[samples_seen]
    return {name.removeprefix("validation/"): value for name, value in values.items() if name.startswith("validation/")}


@pytest.fixture(scope="module")
def end(data, runs, tmp_path_factory) -> tuple[Trainable, dict[str, torch.Tensor]]:
    """The trainable with the weights at the end of a run, and its values for three groups of held-out clips by tag."""
    weights = str(tmp_path_factory.mktemp("end") / "raw")
    exported = ["--checkpoint", str(runs["validated"].run), "--weights", "raw", "--output", weights]
    assert cli.main(["export", *exported]) == 0
    trainable = build_trainable(configure(data))
    state = Autoencoder.from_pretrained(weights).state_dict()
    trainable.module.autoencoder.load_state_dict({k: v for k, v in state.items() if not k.startswith("kl_vae.")})
    trainable.module.eval()
    samples = trainable.validation.__getitems__(range(12))
    with torch.no_grad():
        parts = [trainable.module(default_collate(samples[first : first + 4])).logged() for first in (0, 4, 8)]
    return trainable, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def test_the_loss_is_the_mean_over_whole_groups_of_held_out_clips(runs, end) -> None:
    """As in training, a clip is compared with those of its group alone."""
    trainable, expected = end
    assert len(trainable.validation) == 12
    values = validation(runs["validated"], 16)
    names = {"loss", "loss/audio", "loss/video", "temperature", *(f"term/{name}" for name in trainable.term_weights)}
    weighted = {f"weighted/{name}" for name in trainable.term_weights}
    assert {name for name in values if not name.startswith("loss_by_time")} == names | weighted
    assert sum(values[name] for name in weighted) == pytest.approx(values["loss"], rel=1e-5)
    for name in names:
        assert values[name] == pytest.approx(expected[name].mean().item(), rel=1e-5)


def test_losses_by_time_are_means_over_the_pictures_of_each_quarter(runs, end) -> None:
    trainable, expected = end
    values = validation(runs["validated"], 16)
    times = torch.stack([sample["time"] for sample in trainable.validation.__getitems__(range(12))])
    total = 0.0
    for first in range(0, 1000, 250):
        inside, quarter = (times >= first) & (times < first + 250), f"{first}-{first + 249}"
        audio = expected["loss/audio"][inside[:, 2]].mean().item()
        assert values[f"loss_by_time/audio/{quarter}"] == pytest.approx(audio, rel=1e-5)
        total += values[f"loss_by_time/video/{quarter}"] * inside[:, :2].sum().item()
    assert total == pytest.approx(2 * expected["loss/video"].sum().item(), rel=1e-5)


def test_the_loss_is_the_same_on_two_processes_with_another_micro_batch(runs) -> None:
    one, two = (validation(runs[name], 8) for name in ("validated", "two_processes"))
    assert len(one) == 22
    assert two == pytest.approx(one, rel=1e-4, abs=1e-8)


def test_validation_does_not_change_training(runs) -> None:
    plain, validated = (runs[name].values() for name in ("plain", "validated"))
    for seen, values in validated.items():
        assert {name: value for name, value in values.items() if not name.startswith("validation/")} == plain[seen]
    assert "term/adversarial" in plain[16]
    assert validated[16]["validation/loss"] != validated[8]["validation/loss"]
    assert_same_checkpoint(*(runs[name].checkpoints()[-1] for name in ("plain", "validated")))


def test_held_out_clips_are_the_same_in_every_run_and_cover_the_schedule(data) -> None:
    changes = ["training.seed=5", "flip=1", "condition_dropout=1", "reading.window=1"]
    first, second = (build_trainable(configure(data, *overrides)).validation for overrides in ([], changes))
    samples = first.__getitems__(range(12))
    for sample, same in zip(samples, second.__getitems__(range(12)), strict=True):
        assert all(torch.equal(sample[name], same[name]) for name in sample)
        assert not sample["dropped"].any()
    times = [sample["time"].tolist() for sample in samples]
    assert times[:4] == [[333, 666, 0], [833, 166, 500], [583, 916, 250], [83, 416, 750]]
    stored = first._dataset.clips.samples.mixture.read(range(12))
    assert len({record.key for record in stored}) == 12
    for record, sample in zip(stored, samples, strict=True):
        number = int(record.key.removeprefix("clip_"))
        assert np.abs(sample["frames"].numpy().astype(int) - clip(number).frames).max() < 40  # a JPEG's difference
        assert sample["label"] == [CLASSES.index("tone"), -1, CLASSES.index("bar"), -1][(number - FIRST) % 4]


@pytest.mark.parametrize(
    ("overrides", "count"),
    [(["training.validation_samples=9"], 8), (["contrastive_weight=0"], 13)],
)
def test_validation_clips_are_whole_groups(data, overrides, count) -> None:
    assert len(build_trainable(configure(data, *overrides)).validation) == count


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["validation={data}/clips"], "clips is also in shards"),
        (["validation={data}/slow"], "must be like those in shards: media.fps"),
        (["validation=/nowhere"], "/nowhere: no such folder"),
        (["validation={data}/few"], "validation: 3 held-out clips are fewer than contrastive_batch = 4"),
        (["training.validation_samples=3"], "training.validation_samples: 3 must be at least contrastive_batch = 4"),
    ],
)
def test_unusable_validation_sets_are_refused_in_one_line(data, overrides, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_trainable(configure(data, *(text.format(data=data) for text in overrides)))
    assert "\n" not in str(caught.value)


def test_validate_every_is_refused_without_validation_sets(data, tmp_path, alone) -> None:
    config = configure(data, "validation=[]", "training.validate_every=8")
    with pytest.raises(UserError, match="training.validate_every: must be 0 without held-out sets"):
        Trainer(build_trainable(config), config.training, tmp_path, alone)
