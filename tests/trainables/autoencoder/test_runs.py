"""``mmldm train autoencoder`` on tiny clips, with the contrastive term and a discriminator."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.monitor_page import documented
from tests.support.run_results import Forks
from tests.support.tiny_models.autoencoder_trainable import train_arguments, write_data

TERMS = {"mse", "kl_audio", "kl_video", "classification", "contrastive", "adversarial"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def train(forks: Forks, data: Path) -> Callable[..., list[dict[str, float]]]:
    """Train to the end and return the log's records."""

    def train(run: Path, processes: int, *overrides: str) -> list[dict[str, float]]:
        status, output = forks(processes, "command", str(data), "mmldm", *train_arguments(data, run, *overrides))
        assert status == 0, output
        return log(run)

    return train


def log(run: Path) -> list[dict[str, float]]:
    drop = ("time", "speed/", "memory/")
    records = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [{key: value for key, value in record.items() if not key.startswith(drop)} for record in records]


@pytest.fixture(scope="module")
def undisturbed(data: Path, train: Callable) -> Path:
    """A run of two processes, whose steps are two micro-steps with one group of four clips each."""
    train(data / "undisturbed", 2)
    return data / "undisturbed"


def test_every_term_is_learned_and_logged(undisturbed):
    first, second, *_ = records = log(undisturbed)
    assert [record["samples_seen"] for record in records] == list(range(8, 33, 8))
    assert {key.removeprefix("term/") for key in second if key.startswith("term/")} == TERMS
    assert {key.removeprefix("term/") for key in first if key.startswith("term/")} == TERMS - {"adversarial"}
    assert [record["weight/adversarial"] for record in records] == pytest.approx([0, 0.05, 0.1, 0.1])
    for name in TERMS - {"kl_audio", "kl_video"}:  # the projectors are detached, so the heads' terms stop there
        probe = "semantics" if name in ("classification", "contrastive") else "latents"
        assert second[f"gradient_norm/{probe}/{name}"] > 0
    assert second["gradient_norm/latents/contrastive"] == 0
    assert 0 <= second["discriminator/accuracy"] <= 1
    assert second["discriminator/loss"] > 0
    total = sum(second[f"weight/{name}"] * second[f"term/{name}"] for name in TERMS)
    assert second["loss"] == pytest.approx(total, rel=1e-4)
    last = json.loads((undisturbed / "log.jsonl").read_text().splitlines()[-1])
    tags = {tag for tag in last if "/" in tag}
    assert {tag for tag in tags if not any(known.fullmatch(tag) for known in documented().values())} == set()


def test_the_log_is_the_same_on_one_process(train, tmp_path, undisturbed):
    """The discriminator's weights are thus the same too, since the loss depends on them."""
    records = train(tmp_path / "run", 1, "training.micro_batch=8")
    for two, one in zip(log(undisturbed), records, strict=True):
        assert two.keys() == one.keys()
        for name, value in two.items():
            assert one[name] == pytest.approx(value, rel=1e-4, abs=1e-8), (name, two["samples_seen"])


def test_a_killed_and_resumed_run_ends_with_the_same_weights(forks, data, train, tmp_path, undisturbed):
    """Both engines resume: the later losses depend on the discriminator's weights and moments."""
    run = tmp_path / "run"
    kill = (1, signal.SIGKILL, f"{run}/checkpoints/step-000000000016")
    status, output = forks(2, "signalled", *kill, "command", str(data), "mmldm", *train_arguments(data, run))
    assert status == signal.SIGKILL, output
    assert not (run / "checkpoints/step-000000000032").exists()
    assert train(run, 2) == log(undisturbed)
    file = "checkpoints/step-000000000032/weights/model.safetensors"
    resumed, expected = load_file(run / file), load_file(undisturbed / file)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.items())
