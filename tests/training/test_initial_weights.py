"""``init=DIR``: a run begins with the weights of another, on any number of processes and any ZeRO stage."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmldm_scale import config
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import ShardTraining
from mmldm_scale.models import pretrained
from mmldm_scale.trainables.kl_vae.config import KLVAETraining
from mmldm_scale.training import initial_weights
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.trainable import Trainable, WeightsLayout
from tests.support.run_results import Finished, assert_same_checkpoint

STILL = ["training.learning_rate=1e-30", "training.total_samples=16", "adversarial.weight=0"]  # one step, to save
LENGTH = ["training.checkpoint_every=32", "training.keep_checkpoints=9"]


def weights(run: Path) -> dict[str, Tensor]:
    """Return the averaged weights in the newest checkpoint of ``run``."""
    return load_file(sorted((run / "checkpoints").iterdir())[-1] / "weights" / "model.safetensors")


@pytest.mark.parametrize(("stage", "processes"), [(0, 1), (1, 2), (2, 1), (3, 2)])
def test_a_run_begins_with_the_weights_of_another(
    undisturbed: Finished, train: Callable[..., Finished], stage: int, processes: int
) -> None:
    """A step of no length leaves them as they were."""
    finished = train(f"init={undisturbed.run}", f"training.zero_stage={stage}", *STILL, processes=processes)
    assert finished.status == 0, finished.output
    there, here = weights(undisturbed.run), weights(finished.run)
    trained = {name for name in there if name.startswith("net.")}
    assert len(trained) == 4
    assert all(torch.equal(there[name], here[name]) for name in trained)
    newest = undisturbed.checkpoints()[-1] / "weights"
    digest = pretrained.fingerprint(newest)
    line = f"init: 5 tensors from {newest} (fingerprint {digest[:12]}…); 2 new ones as initialised: frozen (2)\n"
    assert line in finished.output
    record = json.loads((finished.run / "initial_weights.json").read_text())
    assert record == {"path": str(newest), "fingerprint": digest}
    assert f"init: {undisturbed.run}" in (finished.run / "config.yaml").read_text()


def test_the_losses_are_the_same_on_one_process_and_two(undisturbed: Finished, train: Callable[..., Finished]) -> None:
    options = [f"init={undisturbed.run}", "training.total_samples=32"]
    one, two = (train(*options, name=f"on_{count}", processes=count).losses() for count in (1, 2))
    fresh = train("training.total_samples=32", name="fresh").losses()
    assert one == pytest.approx(two, rel=1e-5)
    assert one[16] < 0.9 * fresh[16]


def test_a_run_that_resumes_does_not_need_the_other_one(
    undisturbed: Finished, train: Callable[..., Finished], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(undisturbed.checkpoints()[-1] / "weights", source)
    whole = train(f"init={source}", "training.total_samples=96", *LENGTH, name="whole")
    train(f"init={source}", "training.total_samples=32", *LENGTH, name="pieces")
    shutil.rmtree(source)
    for name, given in {"named": f"init={source}", "unnamed": "init=null"}.items():
        shutil.copytree(tmp_path / "pieces", tmp_path / name)
        resumed = train(given, "training.total_samples=96", *LENGTH, name=name)
        assert resumed.status == 0, resumed.output
        assert "init" not in resumed.output
        assert_same_checkpoint(whole.checkpoints()[-1], resumed.checkpoints()[-1])


@dataclasses.dataclass
class Settings(ShardTraining):
    run: str = "unused"
    shards: list[str] = dataclasses.field(default_factory=lambda: ["unused"])


class Network(nn.Module):
    """Has a table of classes with one row more, for a class that is not known."""

    def __init__(self, width: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.body, self.extra = nn.Linear(width, 2), nn.Linear(1, 1)
        self.table = nn.Embedding(classes + 1, 2)


def begin(folder: Path, world: World, network: Network, init: Path, **layout: Any) -> Trainable:
    """Return the trainable of ``network`` with the weights ``init``; the run is ``folder``."""
    prepared = Trainable(
        name="net",
        module=nn.ModuleDict({"net": network}),
        dataset=[{}],
        inputs={},
        flops_per_sample=1.0,
        write_weights=lambda folder, state: None,
        weights_layout=WeightsLayout(**{"prefix": "net.", "class_tensors": r"table\.weight", **layout}),
    )
    folder.mkdir(exist_ok=True)
    return initial_weights.build(lambda _: prepared, Settings(run=str(folder), init=str(init)), world)


def save(folder: Path, network: Network, kind: str = "net", **description: Any) -> Path:
    """Write ``network`` without ``extra``, with a tensor that it lacks."""
    state = {name: value for name, value in network.state_dict().items() if "extra" not in name}
    pretrained.save(folder, kind, description, {**state, "gone.weight": torch.zeros(1), "vae.x": torch.zeros(1)})
    return folder


def test_new_tensors_stay_as_they_are_and_those_of_classes_go_by_name(tmp_path: Path, alone: World) -> None:
    there, here = Network(), Network()
    before = {name: value.clone() for name, value in here.state_dict().items()}
    source = save(tmp_path / "source", there, context={"classes": ["rain", "wind", "fire"]}, seen="there")
    differences = lambda stored: [f"seen={stored['seen']}"]  # noqa: E731
    layout = {"classes": ["fire", "snow", "rain"], "other_parts": ("vae.",), "differences": differences}
    trainable = begin(tmp_path / "run", alone, here, source, **layout)
    assert torch.equal(here.body.weight, there.body.weight)
    assert torch.equal(here.extra.weight, before["extra.weight"])
    rows, own = there.table.weight, before["table.weight"]
    assert torch.equal(here.table.weight, torch.stack([rows[2], own[1], rows[0], rows[3]]))
    first, second = trainable.startup_messages
    assert first.startswith(f"init: 3 tensors from {source} (fingerprint ")
    assert first.endswith("); 2 new ones as initialised: extra (2); 1 left out, which this model lacks: gone (1)")
    expected = "the model has classes wind and lacks classes snow (matched by name); seen=there"
    assert second == f"init: unlike in this training, there: {expected}"


def test_another_number_of_classes_fits(tmp_path: Path, alone: World) -> None:
    there, here = Network(classes=2), Network(classes=4)
    source = save(tmp_path / "source", there, classes=["a", "b"])
    begin(tmp_path / "run", alone, here, source, classes=["x", "b", "y", "a"])
    assert torch.equal(here.table.weight[[3, 1, 4]], there.table.weight)


def refused(folder: Path, world: World, network: Network, init: Path, **layout: Any) -> str:
    with pytest.raises(UserError) as caught:
        begin(folder, world, network, init, **layout)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, alone: World) -> None:
    run, source = tmp_path / "run", save(tmp_path / "source", Network())
    expected = f"init={source}: body.weight is (2, 3) there, but must be (2, 5) in this model"
    assert refused(run, alone, Network(width=5), source) == expected
    assert refused(run, alone, Network(classes=9), source).endswith(
        "table.weight is (4, 2) there, but must be (10, 2) in this model"
    )
    other = save(tmp_path / "other", Network(), kind="autoencoder")
    assert "init: " + str(other) + ": holds a model of kind 'autoencoder', but 'net'" in refused(
        run, alone, Network(), other
    )
    assert "no such folder" in refused(run, alone, Network(), tmp_path / "nowhere")
    assert refused(run, alone, Network(), source, prefix="other.").endswith("shares no tensor with this model")
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    assert "differs from its sha256" in refused(run, alone, Network(), source)


def test_a_run_that_logged_steps_begins_anew_with_the_same_weights_only(tmp_path: Path, alone: World) -> None:
    run, first, second = tmp_path / "run", *(save(tmp_path / name, Network()) for name in ("first", "second"))
    begin(run, alone, Network(), first)
    begin(run, alone, Network(), second)  # it had logged nothing
    (run / "log.jsonl").write_text('{"samples_seen": 16, "time": 1.0, "loss": 1.0}\n')
    begin(run, alone, Network(), second)
    assert f"holds other weights than this run began with, those of {second}" in refused(run, alone, Network(), first)


def test_a_kl_vae_begins_with_kl_vae_or_init_but_not_both() -> None:
    with pytest.raises(UserError, match="init: x: must be left out with kl_vae=y"):
        config.load(KLVAETraining, [], ["shards=a", "kl_vae=y", "init=x"])
