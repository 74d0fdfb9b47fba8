"""ImageBind (Girdhar et al. 2023, arXiv 2305.05665): video and sound as vectors of one space, for ImageBind-AV.

Both extractors read the published state dict, ``imagebind_huge.pth``. ImageBind-AV is the cosine of a clip's two
vectors. The choice of a clip's views is ImageBind's own: several spans of 2 s, of the video each in three crops.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors.extractor import Extractor, Reads
from mmldm_scale.evaluation.extractors.frames import take_frames
from mmldm_scale.evaluation.extractors.inference import reproducible_inference

Modality = Literal["vision", "audio"]

DIMENSION = 1024  # of the common space
SPAN = 2  # seconds of a clip in a view
SIZE = 224  # pixels: height and width of a view
PIXEL_MEAN, PIXEL_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SAMPLE_RATE = 16_000  # Hz
LEAST_SAMPLES = 400  # 25 ms, the window of the spectrum
MEL_BINS, MEL_FRAMES = 128, 204  # height and width of a spectrogram
MEL_MEAN, MEL_DEVIATION = -4.268, 9.138
HEADS = {"vision": 16, "audio": 12}  # of attention
LARGEST_SCALE = 100.0  # of the vectors of sound
REASON_LENGTH = 300  # characters of torch's message that are repeated in an error


class ImageBind(Extractor):
    """What both extractors share: a clip's vector is the mean of its views' vectors.

    Args:
        path: the state dict of ImageBind-huge.
        device: where the network runs.
        spans: number of spans of 2 s, spread evenly over a clip; those of a shorter clip are all the whole clip.
    """

    modality: Modality
    dimension = DIMENSION
    weights = "imagebind"

    def __init__(self, path: Path | None, device: torch.device, *, spans: int) -> None:
        super().__init__(path, device)
        if path is None:
            raise UserError(f"{self.name}: needs pretrained weights; give their path as {self.weights}=PATH")
        if spans < 1:
            raise UserError(f"{self.name}: spans must be at least 1, not {spans}")
        self.file, self.spans = path, spans
        self.tower = load_tower(path, self.modality).to(device)
        self.dimension = self.tower.dimension

    def features(self, inputs: Tensor) -> Tensor:
        """Return the vectors of (B, views, …)."""
        with reproducible_inference():
            return torch.stack([self.tower(views.to(self.device)).mean(dim=0) for views in inputs]).cpu()

    def fingerprint(self) -> str:
        return sha256(self.file)


class ImageBindVideo(ImageBind):
    """ImageBind's vector of the frames.

    Args:
        path: the state dict of ImageBind-huge.
        device: where the network runs.
        spans: number of spans of 2 s; of each, the first and the last frame are seen.
        crops: 3 for both ends and the middle of the longer side, 1 for the middle alone. For square frames, 1 gives
            the same vector.
    """

    name = "imagebind_video"
    title = "ImageBind features of frames"
    reads: Reads = "frames"
    modality = "vision"

    def __init__(self, path: Path | None, device: torch.device, *, spans: int = 5, crops: Literal[1, 3] = 3) -> None:
        super().__init__(path, device, spans=spans)
        if crops not in (1, 3):
            raise UserError(f"imagebind_video: crops must be 1 or 3, not {crops}")
        self.crops = crops

    def prepare(self, clip: ClipRecord) -> Tensor:
        """Return the views, (spans · crops, 3, 2, 224, 224)."""
        frames = take_frames(clip, None, None, self.title)
        views = []
        for start in span_starts(len(frames) / clip.frame_rate, self.spans):
            end = min(math.ceil(clip.frame_rate * float(start + SPAN)), len(frames))
            pair = frames[[math.ceil(clip.frame_rate * float(start)), end - 1]]
            views += square_crops(_normalised(pair), self.crops)
        return torch.stack(views).transpose(1, 2).contiguous()


class ImageBindAudio(ImageBind):
    """ImageBind's vector of the sound.

    Args:
        path: the state dict of ImageBind-huge.
        device: where the network runs.
        spans: number of spans of 2 s.
    """

    name = "imagebind_audio"
    title = "ImageBind features of sound"
    reads: Reads = "waveform"
    modality = "audio"

    def __init__(self, path: Path | None, device: torch.device, *, spans: int = 3) -> None:
        super().__init__(path, device, spans=spans)

    def prepare(self, clip: ClipRecord) -> Tensor:
        """Return the spectrograms, (spans, 1, 128, 204)."""
        import torchaudio  # not above: it cannot be imported beside a build of torch for CPUs

        waveform = torch.from_numpy(clip.clip.waveform).float()
        if len(waveform) == 0:
            raise UserError(f"{clip.name}: has no sound, which {self.title} needs")
        waveform = torchaudio.functional.resample(waveform, clip.sample_rate, SAMPLE_RATE)
        if len(waveform) < LEAST_SAMPLES:
            raise UserError(f"{clip.name}: is too short, {self.title} needs 25 ms of sound")
        starts = span_starts(len(waveform) / SAMPLE_RATE, self.spans)
        spans = [waveform[int(start * SAMPLE_RATE) : int((start + SPAN) * SAMPLE_RATE)] for start in starts]
        return torch.stack([spectrogram(span) for span in spans])


def span_starts(duration: float, count: int) -> list[Fraction]:
    """Return when ``count`` spans of 2 s begin (seconds), the first at 0 and the last at the end of the clip."""
    last = Fraction(max(duration - SPAN, 0))
    return [last / max(count - 1, 1) * number for number in range(count)]


def spectrogram(waveform: Tensor) -> Tensor:
    """Return the log-mel spectrogram of at most 2 s of sound at 16 kHz, (1, 128, 204), normalised."""
    import torchaudio.compliance.kaldi  # not above: see ImageBindAudio.prepare

    bank: Tensor = torchaudio.compliance.kaldi.fbank(
        (waveform - waveform.mean())[None],
        htk_compat=True,
        sample_frequency=SAMPLE_RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=MEL_BINS,
        dither=0.0,
        frame_length=25,
        frame_shift=10,
    )  # (frames, 128)
    padded = F.pad(bank.T, (0, MEL_FRAMES - len(bank)))  # a negative amount cuts
    return (padded[None] - MEL_MEAN) / MEL_DEVIATION


def _normalised(frames: Tensor) -> Tensor:
    """Return uint8 ``frames`` (F, 3, H, W) with the shorter side scaled to 224 pixels, normalised."""
    height, width = frames.shape[-2:]
    size = (SIZE, math.floor(width / height * SIZE)) if width >= height else (math.floor(height / width * SIZE), SIZE)
    scaled = F.interpolate(frames.float() / 255, size, mode="bilinear", align_corners=False)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_DEVIATION))
    return (scaled - mean) / deviation


def square_crops(frames: Tensor, count: int) -> list[Tensor]:
    """Return squares of ``frames`` (F, 3, H, W), whose shorter side is 224: the middle, or begin, middle and end."""
    height, width = frames.shape[-2:]
    spare = max(height, width) - SIZE
    middle = math.ceil(spare / 2)
    offsets = [middle] if count == 1 else [0, middle, spare]
    return [frames.narrow(-2 if height > width else -1, offset, SIZE) for offset in offsets]


class Tower(nn.Module):
    """ImageBind's transformer of one modality: views, (V, 3, 2, 224, 224) or (V, 1, 128, 204), to (V, D).

    Its parts have the names of the published state dict. Vectors of frames have length 1, those of sound a length that
    the file states (20).
    """

    def __init__(self, modality: Modality, width: int, depth: int, tokens: int, dimension: int) -> None:
        super().__init__()
        audio = modality == "audio"
        self.dimension = dimension
        self.preprocessor = Preprocessor(audio, width, tokens)
        norm = nn.Identity() if audio else nn.LayerNorm(width, eps=1e-6)
        blocks = [Block(width, HEADS[modality], add_bias_kv=audio) for _ in range(depth)]
        self.trunk = nn.ModuleDict({"pre_transformer_layer": nn.Sequential(norm), "blocks": nn.Sequential(*blocks)})
        self.head = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Identity(), nn.Linear(width, dimension, bias=False))
        self.postprocessor = nn.ModuleList([nn.Identity(), Scale()] if audio else [])

    def forward(self, views: Tensor) -> Tensor:
        tokens = self.trunk["pre_transformer_layer"](self.preprocessor(views))
        vectors = F.normalize(self.head(self.trunk["blocks"](tokens)[:, 0]), dim=-1)
        for layer in self.postprocessor:
            vectors = layer(vectors)
        return vectors


class Preprocessor(nn.Module):
    """Patches as tokens, behind a class token, with learned positions; of sound, patches overlap and are normalised."""

    def __init__(self, audio: bool, width: int, tokens: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embedding_helper = nn.ParameterDict({"pos_embed": torch.empty(1, tokens, width)})
        self.rgbt_stem = nn.ModuleDict()
        if audio:
            self.rgbt_stem["proj"] = nn.Conv2d(1, width, 16, stride=10, bias=False)
            self.rgbt_stem["norm_layer"] = nn.LayerNorm(width)
        else:
            patch = (2, 14, 14)
            self.rgbt_stem["proj"] = nn.Sequential(nn.Identity(), nn.Conv3d(3, width, patch, patch, bias=False))

    def forward(self, views: Tensor) -> Tensor:
        tokens = self.rgbt_stem["proj"](views).flatten(2).transpose(1, 2)  # (V, patches, width)
        if "norm_layer" in self.rgbt_stem:
            tokens = self.rgbt_stem["norm_layer"](tokens)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        positioned: Tensor = tokens + self.pos_embedding_helper["pos_embed"]
        return positioned


class Block(nn.Module):
    """A layer of the transformer: attention, of sound with a learned key and value more, and an MLP."""

    def __init__(self, width: int, heads: int, add_bias_kv: bool) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.MultiheadAttention(width, heads, add_bias_kv=add_bias_kv, batch_first=True)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm_2(x))))


class Scale(nn.Module):
    """The length of the vectors of sound."""

    log_logit_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_logit_scale", torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.log_logit_scale.exp().clamp(max=LARGEST_SCALE)


def load_tower(path: Path, modality: Modality) -> Tower:
    """Return the tower of ``modality`` with the weights in ``path``, in evaluation mode; its sizes are the file's.

    Raises:
        UserError: the file cannot be read, or is not ImageBind's.
    """
    state = _tower_state(read_tensors(path, "modality_"), modality)
    try:
        depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("trunk.blocks."))
        positions, head = state["preprocessor.pos_embedding_helper.pos_embed"], state["head.2.weight"]
        with torch.device("meta"):  # elsewhere torch would draw random weights, which moves the global generator
            tower = Tower(modality, positions.shape[-1], depth, positions.shape[1], len(head))
        tower.load_state_dict(state, assign=True)
    except (KeyError, ValueError, IndexError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise UserError(f"{path}: its weights are not those of ImageBind's {modality}: {reason}") from None
    return tower.float().eval().requires_grad_(False)


def _tower_state(state: Mapping[str, Tensor], modality: Modality) -> dict[str, Tensor]:
    """Return the tensors of ``modality`` by their names in :class:`Tower`."""
    parts = ("preprocessor", "trunk", "head", "postprocessor")
    prefixes = {f"modality_{part}s.{modality}.": f"{part}." for part in parts}
    return {
        new + name.removeprefix(old): tensor
        for name, tensor in state.items()
        for old, new in prefixes.items()
        if name.startswith(old)
    }
