"""Attention: agreement with its definition, the table of backends, and libraries that are missing or broken."""

import sys
from types import ModuleType

import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.models import attention as attention_module
from mmldm_scale.models.attention import KERNELS, attention, choose_backend, resolve

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
LIBRARIES = {"flash", "flash4", "xformers"}
GPU = torch.device("cuda", 0)


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
    inputs, exact = tensors(dtype), [x.detach().double().requires_grad_() for x in tensors(dtype)]
    out, expected = attention(*inputs, backend), by_definition(*exact)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    (out.double() * weights).sum().backward()
    (expected * weights).sum().backward()
    assert out.dtype == dtype
    assert out.shape == (2, 3, 7, 8)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=bound)
    for x, y in zip(inputs, exact, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=0, atol=2 * bound)


@pytest.mark.parametrize(
    ("capability", "dtype", "available", "expected"),
    [
        ((12, 0), BF16, LIBRARIES, "flash"),
        ((12, 0), BF16, {"flash4", "xformers"}, "sdpa"),
        ((10, 0), BF16, LIBRARIES, "flash"),
        ((10, 0), BF16, {"flash4", "xformers"}, "flash4"),
        ((9, 0), BF16, LIBRARIES, "flash"),
        ((9, 0), BF16, {"flash4"}, "flash4"),
        ((9, 0), FP16, {"flash4"}, "flash4"),
        ((9, 0), FP32, LIBRARIES, "sdpa"),
        ((9, 0), BF16, {"xformers"}, "sdpa"),
        ((8, 0), BF16, LIBRARIES, "flash"),
        ((8, 0), FP16, LIBRARIES, "flash"),
        ((8, 0), BF16, {"flash4", "xformers"}, "sdpa"),
        ((8, 0), FP32, LIBRARIES, "sdpa"),
        ((7, 0), FP16, LIBRARIES, "xformers"),
        ((7, 5), FP16, LIBRARIES, "xformers"),
        ((7, 0), FP16, {"flash", "flash4"}, "sdpa"),
        ((7, 0), BF16, LIBRARIES, "sdpa"),
        ((6, 0), FP16, LIBRARIES, "sdpa"),
        (None, BF16, LIBRARIES, "sdpa"),
        (None, FP32, LIBRARIES, "sdpa"),
    ],
)
def test_auto_reads_the_table(capability, dtype, available, expected):
    assert resolve("auto", capability, dtype, available.__contains__) == expected


@pytest.mark.parametrize(
    ("capability", "dtype", "head_width", "expected"),
    [
        ((9, 0), BF16, 128, "flash"),
        ((9, 0), BF16, 320, "sdpa"),
        ((7, 0), FP16, 64, "xformers"),
        ((7, 0), FP16, 12, "sdpa"),
        ((7, 0), FP32, 12, "xformers"),
    ],
)
def test_auto_avoids_libraries_that_cannot_take_the_width_of_a_head(capability, dtype, head_width, expected):
    assert resolve("auto", capability, dtype, LIBRARIES.__contains__, head_width) == expected


@pytest.mark.parametrize(
    ("requested", "capability", "dtype", "available", "message"),
    [
        ("flash", (7, 0), FP16, LIBRARIES, "needs compute capability 8.0, this GPU has 7.0"),
        ("flash", (8, 0), FP32, LIBRARIES, "computes in float16, bfloat16, not in float32"),
        ("flash", (8, 0), BF16, {"flash4"}, r"flash_attn.flash_attn_func is not .* 'mmldm_scale\[flash\]'"),
        ("flash", None, BF16, LIBRARIES, "needs a CUDA GPU"),
        ("flash4", None, BF16, LIBRARIES, "needs a CUDA GPU"),
        ("flash4", (8, 0), BF16, LIBRARIES, "needs compute capability 9.0 or newer, below 11.0, this GPU has 8.0"),
        ("flash4", (12, 0), BF16, LIBRARIES, "needs compute capability 9.0 or newer, below 11.0, this GPU has 12.0"),
        ("flash4", (9, 0), FP32, LIBRARIES, "computes in float16, bfloat16, not in float32"),
        ("flash4", (9, 0), BF16, {"flash"}, "flash_attn.cute.flash_attn_func is not .* run pip install flash-attn-4"),
        ("xformers", None, FP16, LIBRARIES, "needs a CUDA GPU"),
        ("xformers", (7, 0), BF16, LIBRARIES, "bfloat16 needs compute capability 8.0"),
        ("xformers", (7, 0), FP16, set(), "pip install xformers"),
    ],
)
def test_a_named_backend_that_cannot_run_is_refused_in_one_line(requested, capability, dtype, available, message):
    with pytest.raises(UserError, match=message) as caught:
        resolve(requested, capability, dtype, available.__contains__)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("requested", "dtype", "head_width", "message"),
    [
        ("flash", BF16, 264, "its heads are at most 256 wide, those of this model 264"),
        ("flash4", BF16, 136, "its heads are at most 128 wide, those of this model 136"),
        ("flash4", BF16, 60, "the width of a head must be a multiple of 8 in bfloat16, not 60"),
        ("xformers", FP32, 6, "the width of a head must be a multiple of 4 in float32, not 6"),
    ],
)
def test_a_named_backend_is_refused_for_heads_that_it_cannot_take(requested, dtype, head_width, message):
    with pytest.raises(UserError, match=message):
        resolve(requested, (9, 0), dtype, LIBRARIES.__contains__, head_width)


@pytest.mark.parametrize("requested", ["flash", "flash4", "xformers"])
def test_a_backend_that_can_run_is_taken_by_name(requested):
    assert resolve(requested, (9, 0), BF16, LIBRARIES.__contains__, 64) == requested


def test_on_a_cpu_auto_is_sdpa_and_gpu_backends_are_refused():
    assert choose_backend("auto", torch.device("cpu"), FP32) == "sdpa"
    assert choose_backend("math", torch.device("cpu"), FP32) == "math"
    with pytest.raises(UserError, match="CUDA"):
        choose_backend("flash", torch.device("cpu"), BF16)


@pytest.fixture
def install(monkeypatch):
    """Replace the optional libraries by modules that hold the given functions, on a GPU of the given capability."""
    caches = (attention_module._function, choose_backend)

    def replace(functions: dict[str, object], capability: tuple[int, int] = (9, 0)) -> None:
        for path in ("flash_attn", "flash_attn.cute", "xformers", "xformers.ops"):
            monkeypatch.setitem(sys.modules, path, None)  # importing it raises ImportError
        for path, function in functions.items():
            names, name = path.split(".")[:-1], path.rpartition(".")[2]
            for depth in range(len(names)):
                parent = ".".join(names[: depth + 1])
                if sys.modules[parent] is None:
                    monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
            setattr(sys.modules[".".join(names)], name, function)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        for cached in caches:
            cached.cache_clear()

    yield replace
    for cached in caches:
        cached.cache_clear()


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Stand in for flash-attn 2 and xformers, which take and return (B, N, H, D)."""
    assert q.shape == (2, 7, 3, 8)
    assert k.shape == v.shape == (2, 11, 3, 8)
    return by_definition(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def flash4(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, None]:
    """Stand in for flash-attn-4, which returns the log-sum-exp, if any, beside (B, N, H, D)."""
    return flash(q, k, v), None


FLASH4_ALONE = {"flash_attn.cute.flash_attn_func": flash4}
BOTH = FLASH4_ALONE | {"flash_attn.flash_attn_func": flash}


@pytest.mark.parametrize(
    ("functions", "capability", "expected"),
    [
        (FLASH4_ALONE, (7, 0), "sdpa"),
        (FLASH4_ALONE, (8, 0), "sdpa"),
        (FLASH4_ALONE, (9, 0), "flash4"),
        (FLASH4_ALONE, (10, 0), "flash4"),
        (BOTH, (9, 0), "flash"),
        (BOTH, (10, 0), "flash"),
        ({}, (9, 0), "sdpa"),
        ({"flash_attn.__version__": "0.0"}, (9, 0), "sdpa"),  # the package is there, its function is not
    ],
)
def test_a_backend_is_available_when_its_function_is(install, functions, capability, expected):
    install(functions, capability)
    assert choose_backend("auto", GPU, BF16, 64) == expected
    assert choose_backend("auto", torch.device("cpu"), BF16, 64) == "sdpa"


def test_flash_by_name_is_refused_where_only_flash_attn_4_is_installed(install):
    install(FLASH4_ALONE)
    with pytest.raises(UserError, match="flash_attn.flash_attn_func is not installed or cannot be imported"):
        choose_backend("flash", GPU, BF16, 64)
    assert choose_backend("flash4", GPU, BF16, 64) == "flash4"


def test_a_library_whose_import_fails_is_not_available(install, monkeypatch):
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("built for another CUDA")

    install({})
    monkeypatch.setitem(sys.modules, "flash_attn", Broken("flash_attn"))
    assert choose_backend("auto", GPU, BF16, 64) == "sdpa"


@pytest.mark.parametrize("backend", ["flash", "flash4", "xformers"])
def test_libraries_get_and_return_heads_behind_tokens(install, backend):
    install({".".join(KERNELS[backend].function): flash4 if backend == "flash4" else flash})
    q, k, v = tensors(torch.float64)
    out = attention(q, k, v, backend)
    assert out.shape == (2, 3, 7, 8)
    torch.testing.assert_close(out, by_definition(q, k, v))
    out.sum().backward()
    assert q.grad.shape == q.shape


def test_a_missing_library_is_named_in_the_error_of_a_call(install):
    install({})
    with pytest.raises(ValueError, match="'flash4' is missing; call choose_backend first"):
        attention(*tensors(BF16), "flash4")
