"""``init=DIR`` for DiTs: one of single clips begins one of long videos, on one process and two, and resumed."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig, load
from mmldm_scale.models.dit import DiT
from mmldm_scale.sampling.description import DiTDescription
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.trainable import build_trainable
from mmldm_scale.training import initial_weights
from mmldm_scale.training.checkpoint.manifest import WEIGHTS, read_manifest
from mmldm_scale.training.checkpoint.migrations import UnsupportedFormat
from mmldm_scale.training.engine.distributed import World
from tests.support.datasets.latent_sets import AUDIO, VIDEO, write_windows
from tests.support.run_results import Finished, Forks, assert_same_checkpoint

MEDIA = MediaConfig(frames=4, fps=10, size=64)
WINDOWS = [(video, start) for video in ("a", "b", "c") for start in range(0, 13, 2)]
LABELS = {"a": "rain", "b": "wind"}
SMALL = ["model.depth=4", "model.width=16", "model.heads=2", "model.context_tokens=3", "model.context_width=4"]
INTERVALS = [f"training.{name}=8" for name in ("global_batch", "log_every", "checkpoint_every")]
RUN = ["training.micro_batch=4", "training.workers=0", "training.preview_every=64", "preview.samples=0", *INTERVALS]
LONG = ["model.continuation=true", "diffusion.continued=1", "training.keep_checkpoints=9"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set of windows, and a DiT of single clips that has learned for a few steps."""
    folder = tmp_path_factory.mktemp("initial_weights")
    write_windows(folder / "set", WINDOWS, MEDIA, 50, labels=LABELS)
    torch.manual_seed(1)
    trainable = build_trainable(configure(folder))
    for parameter in trainable.module.parameters():  # as after training: nothing is zero
        torch.nn.init.normal_(parameter, std=0.2)
    trainable.write_weights(folder / "svg", dict(trainable.module.state_dict()))
    return folder


def configure(data: Path, *overrides: str) -> DiTTraining:
    fixed = [f"shards={data / 'set'}", "training.precision=fp32", "preview.samples=0", *SMALL]
    return load(DiTTraining, overrides=[*fixed, *overrides])


def run_folder(data: Path, name: str) -> str:
    (data / name).mkdir(exist_ok=True)
    return f"run={data / name}"


def test_a_long_model_begins_as_the_trunk_that_it_is_given(data: Path, alone: World) -> None:
    """Its first output is that of the model of single clips which reads the previous clip as further context."""
    config = configure(data, *LONG, f"init={data / 'svg'}", run_folder(data, "long"))
    trainable = initial_weights.build(build_trainable, config, alone)
    assert [line for line in trainable.startup_messages if line.startswith("init: ")] == [
        trainable.startup_messages[-1]
    ]
    new = "embed_previous_audio (2), embed_previous_video (2), embed_control (14), control (22)"
    assert f"tensors from {data / 'svg'} (fingerprint" in trainable.startup_messages[-1]
    assert trainable.startup_messages[-1].endswith(f"40 new ones as initialised: {new}")
    dit = trainable.module.dit
    samples = trainable.dataset.__getitems__(range(6))
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    previous = {f"previous_{name}": batch[f"previous_{name}"] for name in ("audio", "video")}
    tokens = [dit.null_context.expand(6, -1, -1)]
    for name, latent in previous.items():
        layer = getattr(dit, f"embed_{name}")
        tokens.append(torch.einsum("bchw,dc->bhwd", latent, layer.weight).flatten(1, 2) + layer.bias)
    context = torch.cat(tokens, dim=1)
    svg = DiT(dataclasses.replace(configure(data).model, context_tokens=context.shape[1]), AUDIO, VIDEO)
    stored = initial_weights.load_file(data / "svg" / "model.safetensors")
    svg.load_state_dict({**stored, "null_context": context[0].detach()})
    inputs = batch["audio"], batch["video"], batch["time"]
    for ours, expected in zip(dit(*inputs, **previous), svg(*inputs, context=context), strict=True):
        assert expected.abs().max() > 1e-2
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_what_differs_from_the_training_of_the_weights_is_named(data: Path, tmp_path: Path, alone: World) -> None:
    write_windows(tmp_path / "set", WINDOWS, MEDIA, 50, labels={"a": "wind", "b": "fire"}, shift={"fire": 1.0})
    classes = ["context.kind=class"]
    trainable = build_trainable(configure(data, *classes))
    trainable.write_weights(tmp_path / "classes", dict(trainable.module.state_dict()))
    options = [*classes, f"init={tmp_path / 'classes'}", "diffusion.prediction=v", run_folder(tmp_path, "run")]
    other = initial_weights.build(build_trainable, configure(tmp_path, *options), alone)
    line = other.startup_messages[-1]
    assert line == (
        "init: unlike in this training, there: the model has classes rain and lacks classes fire (matched by name); "
        "diffusion.prediction=epsilon, not v; other means and standard deviations of latents"
    )
    rows = trainable.module.dit.embed_class.weight, other.module.dit.embed_class.weight
    assert torch.equal(rows[0][1], rows[1][1])  # wind: of (rain, wind) and of (fire, wind)
    assert not torch.equal(rows[0][0], rows[1][0])


def train(forks: Forks, data: Path, name: str, processes: int, *overrides: str) -> Finished:
    fixed = [f"shards={data / 'set'}", "training.precision=fp32", *SMALL, *RUN, *LONG, f"init={data / 'svg'}"]
    run = data / name
    return Finished(run, *forks(processes, "train_dit", f"run={run}", *fixed, *overrides))


def test_a_long_training_is_the_same_on_two_processes_and_resumed(data: Path, forks: Forks) -> None:
    whole = train(forks, data, "whole", 2, "training.total_samples=24", "training.zero_stage=3")
    assert whole.status == 0, whole.output
    one = train(forks, data, "one", 1, "training.total_samples=24", "training.zero_stage=3")
    assert whole.losses() == pytest.approx(one.losses(), rel=1e-5)
    train(forks, data, "pieces", 2, "training.total_samples=8", "training.zero_stage=3")
    resumed = train(forks, data, "pieces", 2, "training.total_samples=24", "training.zero_stage=3")
    assert "init:" not in resumed.output
    assert resumed.losses() == whole.losses()
    assert_same_checkpoint(whole.checkpoints()[-1], resumed.checkpoints()[-1], ("engine", "weights"))
    shares = {record["data/continued"] for record in whole.log()}
    assert shares == {1.0}


def test_models_of_long_videos_of_an_older_layout_are_refused_and_not_called_damaged(
    data: Path, tmp_path: Path
) -> None:
    """Those of layout 1 have no such key in their description."""
    checkpoint = tmp_path / "step-000000000024"
    shutil.copytree(data / "whole" / "checkpoints" / checkpoint.name, checkpoint)
    file = checkpoint / WEIGHTS / "config.json"
    assert '"layout": 2' in file.read_text()
    assert read_manifest(checkpoint).samples_seen == 24
    assert DiTDescription.read(checkpoint).model.continuation
    file.write_text(file.read_text().replace('"layout": 2,', ""))
    (checkpoint / WEIGHTS / "weights.sha256").unlink()
    for read, error in ((read_manifest, UnsupportedFormat), (DiTDescription.read, UserError)):
        with pytest.raises(error, match="of layout 1, but this version reads layout 2") as caught:
            read(checkpoint)
        assert "\n" not in str(caught.value)
