import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.models.attention import attention, choose_backend, resolve

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
BOTH = {"flash_attn", "xformers.ops"}


def tensors(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 7, 8), (2, 3, 11, 8), (2, 3, 11, 8)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def by_definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention written with einsum and exp, in the dtype of its arguments."""
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhnm,bhmd->bhnd", weights / weights.sum(-1, keepdim=True), v)


@pytest.mark.parametrize("backend", ["sdpa", "math"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (FP32, 1e-5), (BF16, 4e-2)])
def test_agrees_with_the_definition_in_float64_forward_and_backward(backend, dtype, bound):
    ours, exact = tensors(dtype), [x.detach().double().requires_grad_() for x in tensors(dtype)]
    out, expected = attention(*ours, backend), by_definition(*exact)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    (out.double() * weights).sum().backward()
    (expected * weights).sum().backward()
    assert out.dtype == dtype
    assert out.shape == (2, 3, 7, 8)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=bound)
    for x, y in zip(ours, exact, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=0, atol=2 * bound)


@pytest.mark.parametrize(
    ("capability", "dtype", "installed", "expected"),
    [
        ((9, 0), BF16, BOTH, "flash"),
        ((8, 0), BF16, BOTH, "flash"),
        ((8, 0), FP16, BOTH, "flash"),
        ((8, 0), BF16, {"xformers.ops"}, "sdpa"),
        ((8, 0), FP32, BOTH, "sdpa"),
        ((7, 0), FP16, BOTH, "xformers"),
        ((7, 5), FP16, BOTH, "xformers"),
        ((7, 0), FP16, {"flash_attn"}, "sdpa"),
        ((7, 0), BF16, BOTH, "sdpa"),
        ((6, 0), FP16, BOTH, "sdpa"),
        (None, BF16, BOTH, "sdpa"),
        (None, FP32, BOTH, "sdpa"),
    ],
)
def test_auto_reads_the_table(capability, dtype, installed, expected):
    assert resolve("auto", capability, dtype, installed.__contains__) == expected


@pytest.mark.parametrize(
    ("wanted", "capability", "dtype", "installed", "says"),
    [
        ("flash", (7, 0), FP16, BOTH, "needs compute capability 8.0, this GPU has 7.0"),
        ("flash", (8, 0), FP32, BOTH, "computes in float16, bfloat16, not in float32"),
        ("flash", (8, 0), BF16, set(), r"flash_attn is not installed .* pip install 'mmldm_scale\[flash\]'"),
        ("flash", None, BF16, BOTH, "needs a CUDA GPU"),
        ("xformers", None, FP16, BOTH, "needs a CUDA GPU"),
        ("xformers", (7, 0), BF16, BOTH, "bfloat16 needs compute capability 8.0"),
        ("xformers", (7, 0), FP16, set(), "pip install xformers"),
    ],
)
def test_a_backend_asked_for_by_name_that_cannot_work_is_refused_in_one_line(
    wanted, capability, dtype, installed, says
):
    with pytest.raises(UserError, match=says) as caught:
        resolve(wanted, capability, dtype, installed.__contains__)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wanted", ["flash", "xformers"])
def test_a_backend_that_fits_is_taken_by_name(wanted):
    assert resolve(wanted, (8, 0), BF16, BOTH.__contains__) == wanted


def test_on_this_machines_cpu_auto_is_sdpa_and_gpu_backends_are_refused():
    assert choose_backend("auto", torch.device("cpu"), FP32) == "sdpa"
    assert choose_backend("math", torch.device("cpu"), FP32) == "math"
    with pytest.raises(UserError, match="CUDA"):
        choose_backend("flash", torch.device("cpu"), BF16)
