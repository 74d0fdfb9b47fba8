"""The shipped configurations: they fit together, and into the GPUs that they are made for (``mmldm model-info``)."""

import contextlib
import io

import pytest

from mmldm_scale.cli import main
from mmldm_scale.planning.memory_table import CONFIGS, PACKAGED
from mmldm_scale.planning.workload import load_config

ROOM = 0.9  # of a GPU; the rest is for what cannot be predicted


@pytest.fixture(scope="module")
def printed() -> str:
    """What ``mmldm model-info`` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(["model-info"]) == 0
    return output.getvalue()


@pytest.fixture(scope="module")
def table(printed) -> list[str]:
    """The lines of its last table."""
    return printed.strip().rpartition("\n\n")[2].splitlines()


def test_the_command_prints_the_presets_the_autoencoder_and_the_memory(printed, table):
    assert "1543.7 M" in printed
    assert "KL-VAE (frozen)" in printed
    assert table[0].startswith("predicted GiB of each GPU")
    columns = "GPUs precision micro-batch weights gradients optimizer buckets activations total"
    assert " ".join(table[1].split()) == columns
    assert len(table) == 2 + len(PACKAGED)


def test_every_size_and_data_set_is_there_for_both_kinds_of_gpu():
    files = {file for one in PACKAGED for file in one.files}
    assert {f"dit/{size}.yaml" for size in "SBL"} < files
    assert {"autoencoder/landscape.yaml", "autoencoder/audioset.yaml"} < files
    assert {one.gpu for one in PACKAGED} == {"A800 80 GB", "V100 32 GB"}


@pytest.mark.parametrize("number", range(len(PACKAGED)), ids=[f"{one.label} {one.gpu}" for one in PACKAGED])
def test_a_shipped_configuration_fits_its_gpu(table, number: int):
    one, line = PACKAGED[number], table[2 + number]
    training = load_config(one.trainable, [CONFIGS / file for file in one.files]).training
    assert line.startswith(one.label)
    shown, _, numbers = line.removeprefix(one.label).strip().partition(f"ZeRO-{training.zero_stage}")
    assert shown.split() == [str(one.gpus), "×", *one.gpu.split(), f"{training.precision},"]
    micro_batch, *parts, total = map(float, numbers.split())
    assert micro_batch == training.micro_batch
    assert sum(parts) == pytest.approx(total, abs=0.3)
    capacity = int(one.gpu.split()[1])
    assert 0.04 * capacity < total < ROOM * capacity
    assert training.precision == ("bf16" if one.gpu.startswith("A800") else "fp16")
    assert training.global_batch % (training.micro_batch * one.gpus) == 0


@pytest.mark.parametrize("data", ["landscape", "aist", "audioset"])
@pytest.mark.parametrize("cluster", ["a800", "v100_autoencoder"])
def test_clips_are_compared_with_all_that_eight_gpus_take_at_once(data, cluster):
    files = [CONFIGS / f"autoencoder/{data}.yaml", CONFIGS / f"cluster/{cluster}.yaml"]
    config = load_config("autoencoder", files)
    assert config.contrastive_batch == 8 * config.training.micro_batch
