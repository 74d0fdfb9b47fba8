import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch._inductor.config
from torch.utils.flop_counter import FlopCounterMode

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DiTConfig, load, presets
from mmldm_scale.models.dit import PRESETS, DiT
from mmldm_scale.models.dit_layers import FREQUENCIES, sincos_grid
from mmldm_scale.trainables.dit.config import DiTTraining

CONFIG = DiTConfig(depth=2, width=32, heads=4, context_tokens=3, context_width=8)
AUDIO, VIDEO = (4, 2, 3), (4, 4, 4)


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
    flops, kept_elements = {}, {}
    for mode in ("none", "selective", "full"):
        model = dit(replace(CONFIG, activation_checkpointing=mode))
        held = {}
        keep = torch.autograd.graph.saved_tensors_hooks(partial(_remember, held), lambda tensor: tensor)
        with FlopCounterMode(display=False) as counter:
            with keep:
                out = model(*batch())
            sum(o.square().sum() for o in out).backward()
        flops[mode], kept_elements[mode] = counter.get_total_flops(), sum(t.numel() for t in held.values())
    assert flops["none"] == flops["selective"] < flops["full"]
    assert kept_elements["full"] < kept_elements["none"]


def _remember(held: dict, tensor: torch.Tensor) -> torch.Tensor:
    held[tensor.data_ptr()] = tensor
    return tensor


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_a_compiled_model_learns_the_same():
    """Compiled without vector instructions, which takes half the time."""
    small = replace(CONFIG, depth=1)
    with torch._inductor.config.patch({"cpp.simdlen": 1, "cpp.vec_isa_ok": True}):
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


CONTINUING = replace(CONFIG, depth=5, continuation=True)


def previous(size: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = {"audio": AUDIO, "video": VIDEO}
    return {f"previous_{name}": torch.randn(size, *shape, generator=generator) for name, shape in shapes.items()}


def context_tokens(model: DiT, latents: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the null context and, behind it, a token of each position of the previous ``latents``: (B, T, W)."""
    tokens = [model.null_context.expand(3, -1, -1)] if model.config.context_tokens else []
    for name in ("audio", "video"):
        layer, latent = getattr(model, f"embed_previous_{name}"), latents[f"previous_{name}"]
        tokens.append(torch.einsum("bchw,dc->bhwd", latent, layer.weight).flatten(1, 2) + layer.bias)
    return torch.cat(tokens, dim=1)


def test_the_branch_starts_without_effect_so_that_the_model_is_its_trunk():
    """The trunk alone is a model of another number of context tokens, which reads the previous clip as its context."""
    model, latents = dit(CONTINUING), previous()
    assert len(model.control) == 2
    for control in model.control:  # as at the start
        torch.nn.init.zeros_(control.out.weight)
        assert control.out.bias is None
    tokens = context_tokens(model, latents)
    trunk = DiT(replace(CONTINUING, continuation=False, context_tokens=tokens.shape[1]), AUDIO, VIDEO)
    state = {name: value for name, value in model.state_dict().items() if name in trunk.state_dict()}
    trunk.load_state_dict({**state, "null_context": tokens[0]})
    before = model(*batch(), **latents)
    for ours, expected in zip(before, trunk(*batch(), context=tokens), strict=True):
        torch.testing.assert_close(ours, expected)
    for parameter in model.control[0].block.parameters():
        torch.nn.init.normal_(parameter)
    assert all(torch.equal(x, y) for x, y in zip(model(*batch(), **latents), before, strict=True))
    torch.nn.init.normal_(model.control[1].out.weight, std=0.3)
    assert not torch.allclose(model(*batch(), **latents)[0], before[0], atol=1e-3)
    fresh = dit(CONTINUING, opened=False)
    assert not any(control.out.weight.any() for control in fresh.control)


def test_every_parameter_of_the_branch_learns_within_three_steps():
    """Its way out opens once the trunk's has, and its blocks once its own has."""
    model = dit(CONTINUING, opened=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        sum((out - 1).square().sum() for out in model(*batch(), **previous())).backward()
        optimizer.step()
    silent = [n for n, p in model.named_parameters() if ("control" in n or "previous" in n) and not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("tokens", [3, 0])
def test_the_branch_corrects_the_trunk_block_by_block(tokens):
    """Against the same written out: the branch has a beginning of its own, and each correction goes into a block."""
    model = dit(replace(CONTINUING, context_tokens=tokens))
    (audio, video, time), latents = batch(), previous()
    predicted = model(audio, video, time, **latents)
    context = context_tokens(model, latents)
    angles = time[:, None] * 10_000.0 ** (-torch.arange(FREQUENCIES // 2) / (FREQUENCIES // 2))
    sinusoids = torch.cat([angles.cos(), angles.sin()], dim=1)

    def embedded(layers: torch.nn.Sequential) -> torch.Tensor:
        silu = torch.nn.functional.silu
        return silu(layers[2](silu(layers[0](sinusoids))))[:, None]

    def tokens_of(layer: torch.nn.Module, latent: torch.Tensor) -> torch.Tensor:
        x = layer.latent(latent.flatten(2).mT) + sincos_grid(*latent.shape[2:], 32) + layer.modality
        return torch.cat([layer.start.expand(3, 1, -1), x], dim=1)

    own, start = model.embed_control, []
    for layer, name, noisy in ((own.audio, "audio", audio), (own.video, "video", video)):
        start.append(tokens_of(layer, torch.cat([latents[f"previous_{name}"], noisy], dim=1)))
    branch = torch.cat([context @ own.context.weight.T + own.context.bias, *start], dim=1)
    x = [model.embed_context(context), model.embed_audio(audio, None), model.embed_video(video, None)]
    x = torch.cat(x, dim=1)
    for i, block in enumerate(model.blocks):
        x = block(x, embedded(model.time), "math")
        if i < 2:
            branch = model.control[i].block(branch, embedded(own.time), "math")
            x = x + branch @ model.control[i].out.weight.T
    count = model.embed_video.count
    torch.testing.assert_close(
        predicted[1], model.final_video(x[:, -count:], embedded(model.time)), atol=1e-4, rtol=1e-4
    )


def test_a_previous_clip_that_is_missing_is_one_of_zeros():
    model, inputs, latents = dit(CONTINUING), batch(), previous()
    nothing = model(*inputs)
    missing = {name: torch.zeros_like(value) for name, value in latents.items()}
    assert all(torch.equal(x, y) for x, y in zip(model(*inputs, **missing), nothing, strict=True))
    for name in latents:
        changed = model(*inputs, **{name: latents[name]})
        assert all((x - y).abs().max() > 1e-4 for x, y in zip(changed, nothing, strict=True))


def test_a_class_moves_all_context_tokens_and_none_is_the_null_context():
    torch.manual_seed(0)
    model = DiT(CONFIG, AUDIO, VIDEO, classes=4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    predicted = model(*batch(), label=torch.tensor([2, -1, 0]))
    classes = model.embed_class.weight
    by_hand = model.null_context + torch.stack([classes[2], torch.zeros(8), classes[0]])[:, None]
    for x, y in zip(predicted, model(*batch(), context=by_hand), strict=True):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(predicted[0][1], model(*batch())[0][1])
    sum(out.square().sum() for out in predicted).backward()
    assert model.embed_class.weight.grad.any(dim=1).tolist() == [True, False, True, False]


def test_null_tokens_stand_for_what_a_context_lacks():
    model = dit()
    context = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(3))
    predicted = model(*batch(), context=context, context_length=torch.tensor([2, 0, 3]))
    filled = context.clone()
    filled[0, 2:], filled[1] = model.null_context[2:], model.null_context
    for x, y in zip(predicted, model(*batch(), context=filled), strict=True):
        torch.testing.assert_close(x, y)


def test_conditions_that_the_model_was_not_built_for_are_refused():
    without_context = dit(replace(CONFIG, context_tokens=0))
    for model, conditions, message in (
        (dit(), {"label": torch.zeros(3, dtype=torch.long)}, "this one has classes=0"),
        (without_context, {"context": torch.zeros(3, 0, 8)}, "needs model.context_tokens of at least 1"),
        (dit(), previous(), "needs model.continuation=true"),
    ):
        with pytest.raises(ValueError, match=message):
            model(*batch(), **conditions)


def test_parameters_are_there_only_where_they_are_used():
    names = {name for name, _ in dit().named_parameters()}
    assert not [name for name in names if "class" in name or "control" in name or "previous" in name]
    with pytest.raises(UserError, match="model.depth: 1: must be at least 2"):
        replace(CONFIG, depth=1, continuation=True)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_model_that_its_file_trains(name):
    config = load(DiTTraining, [presets.path(name, "dit")], ["shards=somewhere"])
    assert config.model == PRESETS[name]


def test_the_papers_presets_are_there():
    sizes = {name: (PRESETS[name].depth, PRESETS[name].width, PRESETS[name].heads) for name in "SBL"}
    assert sizes == {"S": (12, 768, 12), "B": (20, 1024, 16), "L": (36, 1536, 24)}
    assert list(PRESETS)[-3:] == ["S", "B", "L"]  # the smallest first
