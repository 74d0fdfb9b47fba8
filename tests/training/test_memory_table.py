"""The shipped configurations: they fit together, and into the GPUs that they are made for."""

import pytest

from mmldm_scale.config import AutoencoderTraining, load
from mmldm_scale.training.memory_table import CONFIGS, GIB, SHIPPED, Shipped, memory_table, prediction

ROOM = 0.9  # of a GPU; the rest is for what cannot be predicted


def test_every_size_and_data_set_is_there_for_both_kinds_of_gpu():
    files = {file for one in SHIPPED for file in one.files}
    assert {f"dit/{size}.yaml" for size in "SBL"} < files
    assert {"autoencoder/landscape.yaml", "autoencoder/audioset.yaml"} < files
    assert {one.gpu for one in SHIPPED} == {"A800 80 GB", "V100 32 GB"}


@pytest.mark.parametrize("one", SHIPPED, ids=lambda one: f"{one.name} {one.gpu}")
def test_a_shipped_configuration_fits_its_gpu(one: Shipped):
    training, found = prediction(one)
    capacity = int(one.gpu.split()[1]) * GIB
    assert 0.04 * capacity < found.total < ROOM * capacity
    assert training.precision == ("bf16" if one.gpu.startswith("A800") else "fp16")
    assert training.global_batch % (training.micro_batch * one.gpus) == 0


@pytest.mark.parametrize("data", ["landscape", "aist", "audioset"])
@pytest.mark.parametrize("cluster", ["a800", "v100_autoencoder"])
def test_clips_are_compared_with_all_that_eight_gpus_take_at_once(data, cluster):
    files = [CONFIGS / f"autoencoder/{data}.yaml", CONFIGS / f"cluster/{cluster}.yaml"]
    config = load(AutoencoderTraining, files, ["shards=DIR", "kl_vae=DIR"])
    assert config.contrastive_batch == 8 * config.training.micro_batch


def test_the_table_has_a_line_for_each_with_its_sum():
    title, header, line = memory_table(SHIPPED[:1]).splitlines()
    assert title.startswith("predicted GiB of each GPU")
    columns = "GPUs precision micro-batch weights gradients optimizer buckets activations total"
    assert " ".join(header.split()) == columns
    name, gpu, how, stage, *numbers = line.replace("8 × A800 80 GB", "gpu").split()
    assert (name, gpu, how, stage, numbers[0]) == ("DiT-S", "gpu", "bf16,", "ZeRO-1", "24")
    *parts, total = map(float, numbers[1:])
    assert sum(parts) == pytest.approx(total, abs=0.3)
