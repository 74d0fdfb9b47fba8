"""Memory counted on shapes, held against arithmetic, real tensors, and what PyTorch's allocator really handed out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmldm_scale.config import DiTConfig
from mmldm_scale.models.dit import DiT
from mmldm_scale.planning.allocations import Allocations
from tests.support.allocator import allocated

ROWS, WIDTH, WIDER = 10, 64, 256
FLOAT = 4  # bytes


def layers(device: str) -> nn.ModuleList:
    with torch.device(device):
        return nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDER), nn.GELU(), nn.Linear(WIDER, WIDTH)) for _ in "123")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_autograd_keeps_is_what_the_layers_need(device):
    model, x = layers(device), torch.zeros(ROWS, WIDTH, device=device)
    with Allocations(model.parameters()) as memory:
        for layer in model:
            x = layer(x)
        # GELU keeps its input, the second linear layer its own, the next first one what came out
        assert memory.now == 3 * FLOAT * ROWS * (WIDER + WIDER + WIDTH)
        x.sum().backward()
        del x
    assert memory.now == 0  # not the gradients either


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_recomputation_keeps_the_inputs_and_one_segment_at_a_time(device):
    model, x = layers(device), torch.zeros(ROWS, WIDTH, device=device)
    peaks = {}
    for recomputed in (False, True):
        with Allocations(model.parameters()) as memory:
            hidden = x
            for layer in model:
                hidden = checkpoint(layer, hidden, use_reentrant=False) if recomputed else layer(hidden)
            if recomputed:
                assert memory.now == 3 * FLOAT * ROWS * WIDTH
            hidden.sum().backward()
        peaks[recomputed] = memory.peak
    others = 2 * FLOAT * ROWS * (WIDER + WIDER)  # what the two layers keep that are not in turn
    assert peaks[False] - peaks[True] == pytest.approx(others, rel=0.02)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_keeps_no_weights(device):
    heads, tokens, width = 4, 100, 16
    x = torch.zeros(2, heads, tokens, width, device=device, requires_grad=True)
    with Allocations() as memory:
        y = F.scaled_dot_product_attention(x, x, x)
    assert memory.now == y.numel() * FLOAT + 2 * heads * tokens * FLOAT  # the output and a number a row


def test_shared_storage_counts_once_and_goes_with_its_last_tensor():
    with Allocations() as memory:
        x = torch.zeros(8, 8)
        parts = x.T, x[2:]
        del x
        assert memory.now == 64 * FLOAT
        parts[0].add_(1)
        assert memory.now == 64 * FLOAT
        del parts
    assert (memory.now, memory.peak) == (0, 64 * FLOAT)


@pytest.mark.parametrize("recomputation", ["none", "selective", "full"])
def test_a_transformers_step_is_what_the_allocator_hands_out(recomputation):
    config = DiTConfig(
        depth=3, width=64, heads=4, context_tokens=8, context_width=32, activation_checkpointing=recomputation
    )
    shapes = (4, 8, 8), (4, 16, 16)

    def step(model: nn.Module, latents: list[Tensor], time: Tensor) -> None:
        sum(noise.square().mean() for noise in model(*latents, time)).backward()

    counted = {}
    for device in ("cpu", "meta"):
        with torch.device(device):
            inputs = DiT(config, *shapes), [torch.zeros(4, *shape) for shape in shapes], torch.arange(4)
        with Allocations(inputs[0].parameters()) as memory:
            step(*inputs)
        counted[device] = memory.peak
        if device == "cpu":
            for parameter in inputs[0].parameters():
                parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
            real = allocated(lambda inputs=inputs: step(*inputs))
    assert counted["meta"] == counted["cpu"]
    assert counted["cpu"] == pytest.approx(real, rel=0.005)  # checkpoints keep the state of the random numbers, too
