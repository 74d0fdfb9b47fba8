import pytest
import torch

from mmldm_scale.common.device import choose_device
from mmldm_scale.common.errors import UserError


def test_a_gpu_is_taken_where_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["toaster", "cuda:99", "cpu:x"])
def test_what_cannot_be_used_is_one_line(name):
    with pytest.raises(UserError, match=f"^--device {name}: ") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)
