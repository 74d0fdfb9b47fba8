"""The DiT's loss on held-out samples: it is the mean over them, for any processes, and does not change training."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import load
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.dataset import LatentDataset
from mmldm_scale.trainables.dit.trainable import build_trainable
from mmldm_scale.training.engine import deepspeed_engine as engines
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.monitoring import validation
from mmldm_scale.training.resilience import signals
from mmldm_scale.training.resilience.signals import StopRequest
from tests.support.datasets.latent_sets import write_latents

TINY = ["model.depth=1", "model.width=16", "model.heads=2", "model.context_tokens=2", "model.context_width=4"]
SIZES = [f"training.{name}=32" for name in ("global_batch", "log_every", "checkpoint_every", "preview_every")]
SETTINGS = [*TINY, *SIZES, "training.precision=fp32", "training.workers=0", "training.learning_rate=0.01"]
VALIDATE = ["training.validate_every=32", "training.validation_samples=7"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_latents(folder / "learned")
    write_latents(folder / "validation_set", (9,), first=100)
    return folder


def configure(data: Path, *overrides: str) -> DiTTraining:
    sets = [f"shards={data / 'learned'}", f"validation={data / 'validation_set'}"]
    return load(DiTTraining, overrides=[*sets, *SETTINGS, *VALIDATE, "training.micro_batch=4", *overrides])


def logged(run: Path) -> dict[int, dict[str, float]]:
    records = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return {record["samples_seen"]: record for record in records}


def select(records: dict[int, dict[str, float]], prefix: str) -> dict[int, dict[str, float]]:
    """Return of each record the values whose tags begin with ``prefix``."""
    return {seen: {k: v for k, v in record.items() if k.startswith(prefix)} for seen, record in records.items()}


def test_the_loss_is_the_mean_over_the_held_out_samples(data, alone) -> None:
    config = configure(data, "training.zero_stage=1")
    trainable = build_trainable(config)
    samples = trainable.validation.__getitems__(range(7))
    with torch.no_grad():
        for parameter in trainable.module.parameters():
            parameter.add_(0.1)  # otherwise the network predicts zero
        expected = trainable.module.eval()(default_collate(samples)).logged()
    engine = engines.build(trainable.module.train(), config.training, alone)
    values = validation.evaluate(engine, trainable.validation, trainable.term_weights, 4, alone, lambda: None)
    assert trainable.module.training
    for name in ("loss", "loss/audio", "loss/video"):
        assert values[f"validation/{name}"] == pytest.approx(expected[name].mean().item(), rel=1e-6)
    for first in range(0, 1000, 250):
        pairs = zip(expected["loss/video"], samples, strict=True)
        quarter = [error for error, sample in pairs if first <= sample["time"] < first + 250]
        value = values[f"validation/loss_by_time/video/{first}-{first + 249}"]
        assert value == pytest.approx(torch.stack(quarter).mean().item(), rel=1e-6)


def test_held_out_samples_are_the_same_in_every_run_and_cover_the_schedule(data) -> None:
    first = build_trainable(configure(data)).validation
    second = build_trainable(configure(data, "training.seed=5", "flip=1", "reading.window=1")).validation
    assert len(first) == 7
    for sample, same in zip(first.__getitems__([0, 1, 2, 3]), second.__getitems__(range(4)), strict=True):
        assert all(torch.equal(sample[name], same[name]) for name in sample)
    assert [int(sample["time"]) for sample in first.__getitems__(range(7))] == [0, 500, 250, 750, 125, 625, 375]
    assert len(build_trainable(configure(data, "training.validation_samples=100")).validation) == 9


def test_held_out_samples_are_normalised_by_the_training_sets_statistics(data) -> None:
    config = configure(data)
    trainable = build_trainable(config)
    held_out = trainable.validation._dataset
    statistics = trainable.dataset.samples.mixture.statistics
    assert held_out._maker._statistics == statistics
    assert held_out.samples.mixture.manifest.statistics != statistics


def train(config: DiTTraining, run: Path, world: World) -> dict[int, dict[str, float]]:
    """Train in this process; return the log's records by samples seen."""
    run.mkdir(exist_ok=True)
    torch.manual_seed(0)
    assert not Trainer(build_trainable(config), config.training, run, world).run(StopRequest())
    return logged(run)


def test_validation_changes_neither_training_nor_resuming(data, tmp_path, alone, restored_handlers) -> None:
    whole = ["training.total_samples=64", "training.micro_batch=8"]
    plain = train(configure(data, *whole, "training.validate_every=0", "validation=[]"), tmp_path / "plain", alone)
    validated = train(configure(data, *whole), tmp_path / "validated", alone)
    train(configure(data, *whole, "training.total_samples=32"), tmp_path / "pieces", alone)
    pieces = train(configure(data, *whole), tmp_path / "pieces", alone)
    assert select(validated, "loss") == select(pieces, "loss") == select(plain, "loss")
    assert select(validated, "validation") == select(pieces, "validation")
    assert not select(plain, "validation")[64]
    assert validated[64]["validation/loss"] != validated[32]["validation/loss"]


@pytest.fixture(scope="module")
def one_step(data, tmp_path_factory, alone, forks) -> dict[int, dict[str, float]]:
    """The last log record of runs of one step, by number of processes."""
    folder = tmp_path_factory.mktemp("one_step")
    one = train(configure(data, "training.total_samples=32", "training.micro_batch=8"), folder / "one", alone)
    signals.restore_handlers()
    settings = [*SETTINGS, *VALIDATE, "training.total_samples=32", "training.micro_batch=2", "training.zero_stage=3"]
    sets = [f"shards={data / 'learned'}", f"validation={data / 'validation_set'}"]
    status, output = forks(2, "train_dit", *sets, *settings, f"run={folder / 'two'}")
    assert status == 0, output
    return {1: one[32], 2: logged(folder / "two")[32]}


def test_the_loss_is_the_same_on_two_processes_with_another_micro_batch(one_step) -> None:
    one, two = (select(one_step, "validation")[processes] for processes in (1, 2))
    assert len(one) == 11
    assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("processes", [1, 2])
def test_losses_by_time_are_means_over_the_samples_of_the_whole_batch(data, one_step, processes) -> None:
    """The network predicts zero at first, so that a sample's first loss is the mean square of its noise."""
    dataset = LatentDataset(configure(data))
    samples = [dataset[position] for position in range(32)]
    seen = 0
    for name in ("audio", "video"):
        for first in range(0, 1000, 250):
            squares = [s[f"{name}_noise"].square().mean() for s in samples if first <= s["time"] < first + 250]
            seen += len(squares)
            value = one_step[processes][f"loss_by_time/{name}/{first}-{first + 249}"]
            assert value == pytest.approx(float(sum(squares)) / len(squares))
    assert seen == 64


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["validation={data}/learned"], "learned is also in shards"),
        (["validation={data}/other"], "must be like those in shards: autoencoder"),
        (["validation=/nowhere"], "/nowhere: no such folder"),
        (["training.validate_every=33"], "33: must be a multiple of global_batch = 32, such as 32"),
    ],
)
def test_unusable_validation_settings_are_refused_in_one_line(data, overrides, message) -> None:
    if not (data / "other").exists():
        write_latents(data / "other", first=200, autoencoder={"path": "elsewhere", "fingerprint": "other"})
    with pytest.raises(UserError, match=message) as caught:
        build_trainable(configure(data, *(text.format(data=data) for text in overrides)))
    assert "\n" not in str(caught.value)


def test_recordings_that_are_trained_on_are_refused(tmp_path) -> None:
    def origin(number: int) -> dict[str, object]:
        return {"path": f"{number}.mp4", "origin": f"recording {number // 3}"}

    write_latents(tmp_path / "learned", (12, 8), meta=origin)
    write_latents(tmp_path / "validation_set", (4, 5), first=17, meta=origin)  # 18 to 20 are of one recording
    says = (
        rf"^validation: 4 of 9 samples of {tmp_path}/validation_set come from 2 recordings that are also in "
        rf"{tmp_path}/learned, such as clip_017"
    )
    remedy = "; hold out whole recordings, as shard.py select does, or set shared_recordings=true$"
    with pytest.raises(UserError, match=says + remedy):
        build_trainable(configure(tmp_path))
    messages = build_trainable(configure(tmp_path, "shared_recordings=true")).startup_messages
    assert [bool(re.fullmatch(says, line)) for line in messages if line.startswith("validation")] == [True]


def test_recordings_that_are_not_known_are_named_once(data, tmp_path) -> None:
    write_latents(tmp_path / "validation_set", (2,), first=50, meta=lambda n: {"path": "x", "origin": f"r{n}"})
    config = configure(data, f"validation={tmp_path / 'validation_set'}")
    messages = [line for line in build_trainable(config).startup_messages if line.startswith("validation")]
    assert messages == [
        f"validation: {data / 'learned'}: 20 of 20 samples do not say which recording they come from; whether "
        "validation and shards share it is not checked"
    ]
