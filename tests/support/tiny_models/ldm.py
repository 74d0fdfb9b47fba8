"""The names under which Stable Diffusion was first published, made from diffusers' by rules of this file's own."""

import hashlib
import re
from collections.abc import Iterable

from torch import Tensor

# sha256 over the sorted names, one a line, of the two parts of v1-5-pruned-emaonly, without their prefixes: 248 and 686
PUBLISHED_VAE = "cc71d71c37e094ac43918c4e84f1767df338d32c5a613b52f4c2af818c134d48"
PUBLISHED_UNET = "047449c3c41359c6b1b6ee8ca822c21af031dfc7c728b7e0eecf766adb1d0093"

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def vae_weights(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Return a KL-VAE's weights under the names, and with the 1 × 1 convolutions, of latent diffusion."""
    published = {}
    for name, tensor in state.items():
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = re.sub(r"to_([qkv])", r"\1", name).replace("to_out.0", "proj_out")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        published[name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")] = tensor
    return published


def unet_weights(state: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Return the weights of a U-Net of ``blocks`` residual blocks a level under the names of latent diffusion."""
    return {_unet_name(name, blocks, state): tensor for name, tensor in state.items()}


def _unet_name(name: str, blocks: int, state: dict[str, Tensor]) -> str:
    parts = name.split(".")
    if parts[0] not in ("down_blocks", "mid_block", "up_blocks"):
        start, _, end = name.rpartition(".")
        return f"{ENDS[start]}.{end}"
    if parts[0] == "mid_block":
        kind, index, rest = parts[1], int(parts[2]), parts[3:]
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{_inside(kind, rest)}"
    level, kind, index, rest = int(parts[1]), parts[2], int(parts[3]), parts[4:]
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (blocks + 1)}.0.op.{rest[-1]}"
    if kind == "upsamplers":
        attends = any(key.startswith(f"up_blocks.{level}.attentions") for key in state)
        return f"output_blocks.{level * (blocks + 1) + blocks}.{2 if attends else 1}.conv.{rest[-1]}"
    side, first = ("input_blocks", 1) if parts[0] == "down_blocks" else ("output_blocks", 0)
    return f"{side}.{first + level * (blocks + 1) + index}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def _inside(kind: str, rest: list[str]) -> str:
    return ".".join(rest if kind == "attentions" else [RESNET[rest[0]], *rest[1:]])


def digest(names: Iterable[str]) -> str:
    """Return the sha256 (hex) over the sorted ``names``, one a line."""
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(names)).encode()).hexdigest()
