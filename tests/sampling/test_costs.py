"""What a sample costs, against what torch counts while one is made."""

from dataclasses import replace

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmldm_scale.config import DecodingConfig, Sampling
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.decode import read_clips
from mmldm_scale.sampling.costs import sample_cost
from mmldm_scale.sampling.pipeline import Pipeline

SETTINGS = Sampling(steps=4, attention="math", decoding=DecodingConfig(steps=2))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("task", "guidance"), [("svg", 1.0), ("a2v", 2.0)])
def test_a_cost_is_what_torch_counts(model, videos, task, guidance):
    decoding = replace(SETTINGS.decoding, video_guidance=guidance)
    pipeline = Pipeline.from_pretrained(model.dit, replace(SETTINGS, decoding=decoding))
    pipeline.vocoder = None
    inputs: list[Clip] = [next(read_clips(videos / "a.mp4", [0.0], model.media))] if task == "a2v" else []
    condition = pipeline._encode(inputs, "audio") if inputs else None
    with sdpa_kernel(SDPBackend.MATH):  # the CPU's other kernel is not counted
        with FlopCounterMode(display=False) as denoising:
            latents = pipeline.latents(task, [0], inputs, condition=condition)
        with FlopCounterMode(display=False) as decoded:
            pipeline.join(task, [0], [latents])
    cost = sample_cost(pipeline.description, model.autoencoder, pipeline.settings, task)
    assert cost.denoising == pytest.approx(denoising.get_total_flops() / 2, rel=0.02)
    # Semantics and pyramids, computed once a clip, and tokens, padded to the longest, weigh more in a tiny model.
    assert cost.decoding == pytest.approx(decoded.get_total_flops() / 2, rel=0.15)
    # A given sound is not decoded.
    assert (cost.pictures, cost.steps, cost.decoding_steps) == (
        model.media.frames + (task == "svg"),
        4,
        2,
    )
