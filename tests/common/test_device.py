import pytest
import torch

from mmldm_scale.common.device import choose_device, gpu_index, shared_gpu
from mmldm_scale.common.errors import UserError


def test_a_gpu_is_taken_where_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["toaster", "cuda:99", "cpu:x"])
def test_what_cannot_be_used_is_one_line(name):
    with pytest.raises(UserError, match=f"^--device {name}: ") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("local_rank", "visible", "processes", "index"),
    [
        (0, 8, 8, 0),
        (7, 8, 8, 7),
        (2, 8, 4, 2),
        (0, 1, 1, 0),
        (5, 1, 8, 0),  # SLURM shows each process its own GPU
        (7, 8, None, 7),  # of a launcher that does not tell how many there are
    ],
)
def test_a_process_takes_the_gpu_of_its_number_or_the_one_that_it_sees(local_rank, visible, processes, index):
    assert gpu_index(local_rank, visible, processes) == index


@pytest.mark.parametrize(("local_rank", "visible", "processes"), [(0, 2, 4), (3, 2, 4), (8, 8, None), (0, 0, 1)])
def test_too_few_gpus_are_one_line_on_every_process(local_rank, visible, processes):
    of_all = f"of the {processes} on this node" if processes else "of this node"
    with pytest.raises(UserError, match=f"^process {local_rank} {of_all} sees {visible} GPUs; "):
        gpu_index(local_rank, visible, processes)


def test_ranks_that_share_a_gpu_are_named():
    assert shared_gpu(["a", "b", "c", "b"]) == (
        "ranks 1 and 3 have the same GPU; start one process for each GPU of a node"
    )
    assert shared_gpu(["a", "b", "", ""]) is None  # two on CPUs
