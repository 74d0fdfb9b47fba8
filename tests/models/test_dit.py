import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmldm_scale.config import DiTConfig, DiTTraining, load
from mmldm_scale.models.dit import PRESETS, DiT, sincos_grid

CONFIG = DiTConfig(depth=2, width=32, heads=4, context_tokens=3, context_width=8)
AUDIO, VIDEO = (4, 2, 3), (4, 4, 4)
CONFIGS = Path(__file__).parents[2] / "configs" / "dit"


def dit(config: DiTConfig = CONFIG, opened: bool = True) -> DiT:
    """A small DiT; ``opened``: its zero-initialised layers have weights, as after training."""
    torch.manual_seed(0)
    model = DiT(config, AUDIO, VIDEO)
    if opened:
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch(size: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    audio, video = (torch.randn(size, *shape, generator=generator) for shape in (AUDIO, VIDEO))
    return [audio, video, torch.tensor([0, 400, 999])[:size]]


def test_starts_as_zero_and_every_parameter_can_learn():
    model = dit(opened=False)
    audio, video = model(*batch())
    assert audio.shape == (3, *AUDIO)
    assert video.shape == (3, *VIDEO)
    assert not audio.any()
    assert not video.any()
    model = dit()
    condition = torch.randn(3, *AUDIO), torch.randn(3, *VIDEO)
    sum(out.square().sum() for out in model(*batch(), *condition)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_a_sample_does_not_depend_on_its_batch():
    model = dit().double()
    together = model(*batch())
    for i in range(3):
        alone = model(*(x[i : i + 1] for x in batch()))
        for whole, single in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[i : i + 1], single, rtol=1e-12, atol=1e-12)


def test_each_modality_sees_the_other_its_condition_the_time_and_the_context():
    model = dit()
    audio, video, time = batch()
    before = model(audio, video, time)
    changed = {
        "other audio": model(audio + 1, video, time)[1] - before[1],
        "other video": model(audio, video + 1, time)[0] - before[0],
        "audio condition": model(audio, video, time, audio_condition=audio)[1] - before[1],
        "video condition": model(audio, video, time, video_condition=video)[0] - before[0],
        "time": model(audio, video, time // 2 + 1)[0] - before[0],
        "context": model(audio, video, time, context=torch.ones(3, 3, 8))[0] - before[0],
    }
    assert [name for name, difference in changed.items() if difference.abs().max() < 1e-4] == []


def test_null_condition_is_zeros_and_condition_embedders_start_closed():
    audio, video, time = batch()
    model = dit()
    zeros = model(audio, video, time, torch.zeros_like(audio), torch.zeros_like(video))
    for x, y in zip(model(audio, video, time), zeros, strict=True):
        assert torch.equal(x, y)
    for embed in (dit(opened=False).embed_audio, dit(opened=False).embed_video):
        assert not embed.condition.weight.any()


def test_tokens_are_read_and_written_at_their_own_position():
    """With attention closed, changing a latent at one position changes the prediction there alone."""
    model = dit()
    for block in model.blocks:
        torch.nn.init.zeros_(block.project.weight)
    audio, video, time = batch(1)
    moved = video.clone()
    moved[0, :, 1, 2] += 1
    difference = (model(audio, moved, time)[1] - model(audio, video, time)[1]).abs().amax(dim=(0, 1))
    assert (difference > 1e-6).nonzero().tolist() == [[1, 2]]


def test_positions_are_different_and_match_the_formula():
    grid = sincos_grid(2, 3, 16).numpy()
    assert len(np.unique(grid.round(5), axis=0)) == 6
    frequencies = 10_000.0 ** (-np.arange(4) / 4)
    row, column = 1, 2
    expected = [f(p * frequencies) for p in (row, column) for f in (np.cos, np.sin)]
    np.testing.assert_allclose(grid[row * 3 + column], np.concatenate(expected), atol=1e-6)


def gradients(config: DiTConfig) -> list[torch.Tensor]:
    model = dit(config)
    sum(out.square().sum() for out in model(*batch())).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_changes_nothing(mode):
    for plain, recomputed in zip(
        gradients(CONFIG), gradients(replace(CONFIG, activation_checkpointing=mode)), strict=True
    ):
        assert torch.equal(plain, recomputed)


def test_full_recomputation_runs_the_blocks_twice_and_selective_no_matrix_product():
    flops, kept = {}, {}
    for mode in ("none", "selective", "full"):
        model = dit(replace(CONFIG, activation_checkpointing=mode))
        held = {}
        keep = torch.autograd.graph.saved_tensors_hooks(partial(_remember, held), lambda tensor: tensor)
        with FlopCounterMode(display=False) as counter:
            with keep:
                out = model(*batch())
            sum(o.square().sum() for o in out).backward()
        flops[mode], kept[mode] = counter.get_total_flops(), sum(t.numel() for t in held.values())
    assert flops["none"] == flops["selective"] < flops["full"]
    assert kept["full"] < kept["none"]


def _remember(held: dict, tensor: torch.Tensor) -> torch.Tensor:
    held[tensor.data_ptr()] = tensor
    return tensor


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_a_compiled_model_learns_the_same():
    small = replace(CONFIG, depth=1)
    compiled = gradients(replace(small, compile=True, activation_checkpointing="selective"))
    for plain, fused in zip(gradients(small), compiled, strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computes_in_the_dtype_of_its_parameters(dtype):
    exact = dit()(*batch())
    for x, y in zip(dit().to(dtype)(*batch()), exact, strict=True):
        assert x.dtype == dtype
        assert (x.float() - y).abs().max() < 0.1 * y.abs().max()


def test_without_context_tokens():
    model = dit(replace(CONFIG, context_tokens=0))
    assert model(*batch())[1].shape == (3, *VIDEO)
    assert not [name for name, _ in model.named_parameters() if "context" in name]


@pytest.mark.parametrize("name", PRESETS)
def test_configuration_files_agree_with_the_presets(name):
    config = load(DiTTraining, [CONFIGS / f"{name}.yaml"], ["shards=somewhere"])
    assert config.model == PRESETS[name]
