"""ImageBind's two towers against a calculation by hand, with small weights of the published names."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors.imagebind import ImageBindAudio, ImageBindVideo, Tower, span_starts
from mmldm_scale.evaluation.extractors.imagebind_av import ImageBindAV
from mmldm_scale.media.clip import NO_FRAMES, Clip
from tests.support.datasets.clip_records import of_frames, random_clip

CPU = torch.device("cpu")
WIDTH, DEPTH, DIMENSION = 48, 2, 20
HEADS, TOKENS = {"vision": 16, "audio": 12}, {"vision": 257, "audio": 229}


def random_weights() -> dict[str, Tensor]:
    """Both towers under the names of imagebind_huge.pth, and a tensor of a third, of text."""
    shapes: dict[str, tuple[int, ...]] = {"modality_preprocessors.text.pos_embed": (1, 77, 8)}
    for modality, tokens in TOKENS.items():
        front, trunk = f"modality_preprocessors.{modality}", f"modality_trunks.{modality}"
        shapes |= {f"{front}.cls_token": (1, 1, WIDTH)}
        shapes |= {f"{front}.pos_embedding_helper.pos_embed": (1, tokens, WIDTH)}
        for block in (f"{trunk}.blocks.{number}" for number in range(DEPTH)):
            shapes |= {f"{block}.attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{block}.attn.in_proj_bias": (3 * WIDTH,)}
            shapes |= {f"{block}.attn.out_proj.weight": (WIDTH, WIDTH), f"{block}.attn.out_proj.bias": (WIDTH,)}
            shapes |= {f"{block}.norm_{n}.{kind}": (WIDTH,) for n in (1, 2) for kind in ("weight", "bias")}
            shapes |= {f"{block}.mlp.fc1.weight": (4 * WIDTH, WIDTH), f"{block}.mlp.fc1.bias": (4 * WIDTH,)}
            shapes |= {f"{block}.mlp.fc2.weight": (WIDTH, 4 * WIDTH), f"{block}.mlp.fc2.bias": (WIDTH,)}
            if modality == "audio":
                shapes |= {f"{block}.attn.bias_k": (1, 1, WIDTH), f"{block}.attn.bias_v": (1, 1, WIDTH)}
        head = f"modality_heads.{modality}"
        shapes |= {f"{head}.0.weight": (WIDTH,), f"{head}.0.bias": (WIDTH,), f"{head}.2.weight": (DIMENSION, WIDTH)}
    shapes["modality_preprocessors.vision.rgbt_stem.proj.1.weight"] = (WIDTH, 3, 2, 14, 14)
    shapes["modality_preprocessors.audio.rgbt_stem.proj.weight"] = (WIDTH, 1, 16, 16)
    norms = ("modality_trunks.vision.pre_transformer_layer.0", "modality_preprocessors.audio.rgbt_stem.norm_layer")
    shapes |= {f"{norm}.{kind}": (WIDTH,) for norm in norms for kind in ("weight", "bias")}
    random = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=random) / math.sqrt(math.prod(shape[1:]) or 1)
        for name, shape in shapes.items()
    }
    state["modality_postprocessors.audio.1.log_logit_scale"] = torch.tensor(math.log(20.0))
    return state


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("imagebind") / "imagebind_huge.pth"
    torch.save(weights, path)
    return path


def layer_norm(x: Tensor, weights: Mapping[str, Tensor], name: str, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return (
        centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weights[f"{name}.weight"]
        + weights[f"{name}.bias"]
    )


def attention(x: Tensor, weights: Mapping[str, Tensor], name: str, heads: int) -> Tensor:
    """Attention of (L, D) to itself and, of sound, to one more key."""
    q, k, v = (x @ weights[f"{name}.in_proj_weight"].T + weights[f"{name}.in_proj_bias"]).chunk(3, dim=1)
    if f"{name}.bias_k" in weights:
        k, v = torch.cat([k, weights[f"{name}.bias_k"][0]]), torch.cat([v, weights[f"{name}.bias_v"][0]])
    size = WIDTH // heads
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        shares = (q[:, part] @ k[:, part].T / math.sqrt(size)).softmax(dim=1)
        outputs.append(shares @ v[:, part])
    return torch.cat(outputs, dim=1) @ weights[f"{name}.out_proj.weight"].T + weights[f"{name}.out_proj.bias"]


def expected_vector(weights: Mapping[str, Tensor], modality: str, view: Tensor) -> Tensor:
    """The vector of one view in float64."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    front, trunk, head = (f"modality_{part}.{modality}" for part in ("preprocessors", "trunks", "heads"))
    if modality == "vision":
        patches = view.double().unfold(2, 14, 14).unfold(3, 14, 14)  # (3, 2, 16, 16, 14, 14)
        kernel = weights[f"{front}.rgbt_stem.proj.1.weight"]
        tokens = torch.einsum("cthwij,dctij->hwd", patches, kernel).flatten(0, 1)
    else:
        patches = view[0].double().unfold(0, 16, 10).unfold(1, 16, 10)  # (12, 19, 16, 16)
        tokens = torch.einsum("hwij,dij->hwd", patches, weights[f"{front}.rgbt_stem.proj.weight"][:, 0]).flatten(0, 1)
        tokens = layer_norm(tokens, weights, f"{front}.rgbt_stem.norm_layer", eps=1e-5)
    x = torch.cat([weights[f"{front}.cls_token"][0], tokens]) + weights[f"{front}.pos_embedding_helper.pos_embed"][0]
    if modality == "vision":
        x = layer_norm(x, weights, f"{trunk}.pre_transformer_layer.0")
    for block in (f"{trunk}.blocks.{number}" for number in range(DEPTH)):
        x = x + attention(layer_norm(x, weights, f"{block}.norm_1"), weights, f"{block}.attn", HEADS[modality])
        hidden = layer_norm(x, weights, f"{block}.norm_2") @ weights[f"{block}.mlp.fc1.weight"].T
        hidden = hidden + weights[f"{block}.mlp.fc1.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + hidden @ weights[f"{block}.mlp.fc2.weight"].T + weights[f"{block}.mlp.fc2.bias"]
    vector = weights[f"{head}.2.weight"] @ layer_norm(x[0], weights, f"{head}.0")
    return vector / vector.norm() * (20 if modality == "audio" else 1)


def sound(seconds: float, pitch: float = 440.0, rate: int = 16_000) -> ClipRecord:
    times = np.arange(round(seconds * rate)) / rate
    return ClipRecord("sound", Clip(NO_FRAMES, np.sin(2 * np.pi * pitch * times).astype(np.float32)), 0.0, rate)


def test_frames_by_hand(file, weights) -> None:
    extractor = ImageBindVideo(file, CPU, spans=2)
    clips = [random_clip(30, 64, 96, seed) for seed in range(2)]
    inputs = torch.stack([extractor.prepare(clip) for clip in clips])

    vectors = extractor.features(inputs)

    assert vectors.shape == (2, extractor.dimension) == (2, DIMENSION)
    expected = torch.stack([expected_vector(weights, "vision", view) for view in inputs[1]]).mean(dim=0)
    torch.testing.assert_close(vectors[1].double(), expected, rtol=1e-4, atol=1e-5)
    assert (vectors[0] - vectors[1]).norm() > 0.01 * vectors[0].norm()
    assert extractor.fingerprint() == sha256(file)


def test_sound_by_hand(file, weights) -> None:
    extractor = ImageBindAudio(file, CPU, spans=2)
    inputs = torch.stack([extractor.prepare(sound(2.5, pitch)) for pitch in (440, 880)])

    vectors = extractor.features(inputs)

    expected = torch.stack([expected_vector(weights, "audio", view) for view in inputs[1]]).mean(dim=0)
    torch.testing.assert_close(vectors[1].double(), expected, rtol=1e-4, atol=1e-4)
    assert (vectors[0] - vectors[1]).norm() > 0.01 * vectors[0].norm()


def test_views_of_frames(file) -> None:
    """First and last frame of each span of 2 s, in three crops along the longer side."""
    levels = np.arange(48, dtype=np.uint8)[:, None, None, None] * np.ones((1, 224, 236, 3), np.uint8)
    levels += np.linspace(0, 100, 236).astype(np.uint8)[:, None]
    clip = of_frames(levels, frame_rate=12)  # 4 s
    mean, deviation = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )

    views = ImageBindVideo(file, CPU, spans=3).prepare(clip)

    assert views.shape == (9, 3, 2, 224, 224)
    pixels = (views * deviation[:, None, None, None] + mean[:, None, None, None]) * 255
    for number, (span, offset) in enumerate((span, offset) for span in (0, 12, 24) for offset in (0, 6, 12)):
        expected = torch.from_numpy(levels[[span, span + 23], :, offset : offset + 224]).permute(3, 0, 1, 2)
        torch.testing.assert_close(pixels[number], expected.float(), rtol=0, atol=1e-3)
    one = ImageBindVideo(file, CPU, spans=3, crops=1).prepare(clip)
    assert torch.equal(one, views[1::3])


def test_views_of_sound(file) -> None:
    """Spans of 2 s; a shorter sound is followed by zeros before it is normalised."""
    short, long = (ImageBindAudio(file, CPU).prepare(sound(seconds, rate=44_100)) for seconds in (1.6, 5.0))

    assert short.shape == long.shape == (3, 1, 128, 204)
    assert torch.equal(short[0], short[2])
    frames = 158  # of 25 ms every 10 ms in 1.6 s
    assert short[0, 0, :, frames:].unique().tolist() == pytest.approx([4.268 / 9.138])
    assert short[0, 0, :, frames - 1].unique().numel() > 40
    pitch = short[0, 0, :, 50].argmax().item()
    assert pitch == long[1, 0, :, 50].argmax().item()
    assert 20 <= pitch <= 26  # of 128 bins between 20 Hz and 8 kHz on the mel scale: 440 Hz
    assert [float(start) for start in span_starts(5.0, 3)] == [0, 1.5, 3]


def test_sizes_of_the_published_model() -> None:
    """ImageBind-huge: the vision tower is OpenCLIP's ViT-H/14 with patches of two frames, sound's is a ViT-B/16."""
    with torch.device("meta"):
        vision, audio = Tower("vision", 1280, 32, 257, 1024), Tower("audio", 768, 12, 229, 1024)

    assert sum(parameter.numel() for parameter in vision.parameters()) == 632_076_800 + 3 * 14 * 14 * 1280
    assert 85e6 < sum(parameter.numel() for parameter in audio.parameters()) < 88e6


def test_other_weights_and_clips_are_refused(file, weights, tmp_path) -> None:
    other = {name: tensor for name, tensor in weights.items() if ".blocks.1.mlp" not in name}
    torch.save(other, tmp_path / "other.pth")
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "alexnet.pth")

    for name in ("other", "alexnet"):
        with pytest.raises(UserError, match=rf"{name}.pth: its weights are not those of ImageBind's vision") as raised:
            ImageBindVideo(tmp_path / f"{name}.pth", CPU)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="clip: has no sound, which ImageBind features of sound needs"):
        ImageBindAudio(file, CPU).prepare(random_clip(3))
    with pytest.raises(UserError, match="sound: is too short, ImageBind features of sound needs 25 ms"):
        ImageBindAudio(file, CPU).prepare(sound(0.02))
    with pytest.raises(UserError, match="imagebind_video: crops must be 1 or 3, not 2"):
        ImageBindVideo(file, CPU, crops=2)


def test_imagebind_av_is_the_cosine_of_both_vectors(file) -> None:
    random = np.random.default_rng(3)
    frames = [random_clip(20, 48, 64, seed).clip.frames for seed in (0, 1)]
    clips = [ClipRecord("a", Clip(part, random.standard_normal(30_000) / 9), 10.0, 16_000) for part in frames]
    both = ImageBindAV(file, CPU, video_spans=2, crops=1, audio_spans=2)
    video, audio = ImageBindVideo(file, CPU, spans=2, crops=1), ImageBindAudio(file, CPU, spans=2)

    found = both.features(torch.stack([both.prepare(clip) for clip in clips]))

    vectors = [
        torch.stack([part.features(part.prepare(clip)[None])[0] for clip in clips]).double() for part in (video, audio)
    ]
    expected = (vectors[0] * vectors[1]).sum(dim=1) / (vectors[0].norm(dim=1) * vectors[1].norm(dim=1))
    assert found.shape == (2, 1)
    torch.testing.assert_close(found[:, 0].double(), expected, rtol=1e-4, atol=1e-5)
