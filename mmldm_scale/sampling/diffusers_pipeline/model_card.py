"""The model card of an exported pipeline: ``README.md`` with the header that the Hub reads.

It says only what the weights' description, their provenance and the run's configuration say.
"""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmldm_scale.common import provenance
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.provenance import DIGITS, Provenance
from mmldm_scale.config.compose import read_yaml
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.distillation import KEY, Distillation
from mmldm_scale.sampling.description import DiTDescription
from mmldm_scale.sampling.diffusers_pipeline.parts import AUTOENCODER_PART

RUN_CONFIG = "config.yaml"
TRAINING_KEYS = (  # of the configuration's "training": what the result depends on
    *("total_samples", "global_batch", "learning_rate", "warmup_samples", "weight_decay", "gradient_clip"),
    *("ema_lengths", "precision", "seed"),
)
SETTINGS = ("diffusion", "loss_weights", "contrastive", "flip", "posterior")  # other parts of it that hold no path

TEXT = """\
---
{header}
---

# {title}

{summary}

## Example

```python
import torch
from diffusers.utils import encode_video
from mmldm_scale import MMLDMPipeline

pipe = MMLDMPipeline.from_pretrained("{name}").to("cuda" if torch.cuda.is_available() else "cpu")
output = pipe({arguments}, num_inference_steps={steps}, generator=torch.Generator().manual_seed(0))
{write}
```

Without `mmldm_scale` installed, the folder's own code does the same. diffusers runs it if you trust it:
`DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)`, with `folder` a local path
(of a repository: `huggingface_hub.snapshot_download("OWNER/NAME")`).

## Clips

{clips}

## Training

{training}

## Weights

{weights}

## Intended use and limits

For research on generative models of video with sound. The model knows nothing but the data named above, and its samples
are of the length and size named above.{known} It has no safety filter and no watermark; mark samples as
generated when you publish them.

## Licence

The code is Apache-2.0. {licence} Weights that the training began with, and the data, have licences of their own.
"""
UNKNOWN_LICENCE = "That of the weights is not stated."


def training_of(source: Path) -> dict[str, Any]:
    """Return the configuration of the run that the weights folder ``source`` is in; {} if it is in none."""
    for folder in source.parents[:3]:
        if (folder / RUN_CONFIG).is_file() and (folder / "checkpoints").is_dir():
            try:
                values: Any = OmegaConf.to_container(read_yaml(folder / RUN_CONFIG))
            except UserError:
                return {}
            return values if isinstance(values, dict) else {}
    return {}


def text(folder: Path, description: DiTDescription, configuration: dict[str, Any], licence: str, name: str) -> str:
    """Return the card of the pipeline in ``folder``, whose parts are written.

    Args:
        configuration: of the run; {} if it is not known.
        licence: of the weights, an identifier of the Hub.
        name: that the example loads: a repository, or the name of the folder.
    """
    modalities = [*description.shapes]
    made = {"audio": "sounds", "video": "videos"}[modalities[0]] if len(modalities) == 1 else "videos with their sound"
    return TEXT.format(
        header=_header(description, licence),
        title=f"MM-LDM for {made}",
        summary="A multi-modal latent diffusion transformer ([MM-LDM](https://arxiv.org/abs/2410.01594)) that makes "
        f"{made}{_tasks(description)}, trained with mmldm_scale.",
        name=name,
        arguments=f'task="svg"{_context_argument(description)}',
        steps=4 if description.diffusion.mean_flow else 50,
        write=_write_lines(modalities),
        clips=_clips(description),
        training=_training(folder, configuration),
        weights=_weights(folder, description),
        known=f" It knows the classes {', '.join(description.classes)}." if description.classes else "",
        licence=UNKNOWN_LICENCE if licence == "unknown" else f"The weights: {licence}.",
    )


def _header(description: DiTDescription, licence: str) -> str:
    tags = ["mm-ldm", "diffusers", "latent-diffusion", *description.shapes]
    tag = "any-to-any" if len(description.shapes) > 1 else None
    if description.context == "text" and tag is None:
        tag = "text-to-video" if "video" in description.shapes else "text-to-audio"
    lines = [f"license: {licence}", "library_name: diffusers", *([f"pipeline_tag: {tag}"] if tag else []), "tags:"]
    return "\n".join([*lines, *(f"- {name}" for name in tags)])


def _tasks(description: DiTDescription) -> str:
    if len(description.shapes) == 1:
        return ""
    return ", video to given sound (`a2v`) and sound to given video (`v2a`)"


def _context_argument(description: DiTDescription) -> str:
    if description.context == "class" and description.classes:
        return f', class_labels="{description.classes[0]}"'
    return ", prompt_embeds=embeddings" if description.context == "text" else ""


def _write_lines(modalities: list[Any]) -> str:
    if modalities == ["audio"]:
        return "sound, rate = output.audios[0], output.sampling_rate"
    sound = "torch.from_numpy(output.audios[0]), output.sampling_rate"
    options = f", {sound}" if "audio" in modalities else ""
    return f'encode_video(output.frames[0], round(output.fps), "sample.mp4"{options})'


def _clips(description: DiTDescription) -> str:
    media, lines = description.media, []
    if "video" in description.shapes:
        lines.append(f"- {media.frames} frames of {media.size} × {media.size} pixels at {media.fps:g} frames/s")
    if "audio" in description.shapes:
        lines.append(f"- {media.seconds:g} s of sound at {media.audio.sample_rate:,} Hz, mono")
    return "\n".join(lines)


def _training(folder: Path, configuration: dict[str, Any]) -> str:
    """Return what is known of the trainings of DiT and autoencoder."""
    lines = []
    for part in ("dit", "autoencoder"):
        origin = provenance.read(folder / part)
        lines += [f"- {part}: {line}" for line in _origin_lines(origin)] if origin else [f"- {part}: not recorded"]
    training = configuration.get("training", {})
    settings = {name: training[name] for name in TRAINING_KEYS if isinstance(training, dict) and name in training}
    others = {name: configuration[name] for name in SETTINGS if name in configuration}
    origin = provenance.read(folder / "dit")
    if origin and settings.get("global_batch"):
        lines.append(f"- dit: {origin.samples_seen // settings['global_batch']:,} optimizer steps")
    if not settings:
        return "\n".join(lines)
    shown = [f"{name}: {value}" for name, value in {**settings, **others}.items()]
    return "\n".join([*lines, "", "Settings of the DiT's training:", "", "```yaml", *shown, "```"])


def _origin_lines(origin: Provenance) -> list[str]:
    return [*origin.lines()[:2], f"the code was {origin.lines()[2].removeprefix('with ')}"]


def _weights(folder: Path, description: DiTDescription) -> str:
    model = description.model
    fingerprint = pretrained.fingerprint(folder / "dit")
    return "\n".join(
        [
            f"- dit: {model.depth} blocks of width {model.width}, {model.heads} heads, predicts "
            f"{description.diffusion.prediction}; fingerprint `{fingerprint[:DIGITS]}`",
            f"- autoencoder: fingerprint `{description.autoencoder['fingerprint'][:DIGITS]}`, as in `mmldm status`",
            *_distillation(folder),
            "- safetensors only; `weights.sha256` has the sha256 of each file",
        ]
    )


def _distillation(folder: Path) -> list[str]:
    """Return the line on a distilled signal decoder; [] if it is not distilled."""
    file = folder / "autoencoder" / pretrained.CONFIG
    distillation = Distillation.parse(pretrained.read_config(file.parent, AUTOENCODER_PART).get(KEY), file)
    if distillation is None:
        return []
    return [f"- signal decoder: distilled, for {' or '.join(map(str, distillation.steps))} steps"]
