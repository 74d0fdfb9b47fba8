"""Reads the commands of a recipe, and makes a world for them in which everything is small.

The small world is a folder like the project's: the same scripts and programs, configurations of the same names with
small models, a few videos where the recipe says they lie, and published weights of the shapes that fit.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from omegaconf import OmegaConf

from data_tools.demo.corpus import make_corpus
from tests.support.run_results import Forks
from tests.support.tiny_models import tiny_autoencoder
from tests.support.tiny_models.backbones import random_features

ROOT = Path(__file__).parents[2]
DOWNLOADERS = ("hf", "curl")
FEWER = {"--num-samples": "3"}  # in place of what a recipe gives with these options
MEDIA = {
    "media": {
        "frames": 4,
        "fps": 10,
        "size": 32,
        "audio": {"sample_rate": 8000, "n_fft": 256, "win_length": 256, "hop_length": 100, "n_mels": 32, "f_max": 4000},
    },
    "stride": 4,
    "samples_per_shard": 4,
}
LENGTHS = {"total_samples": 16, "global_batch": 4, "micro_batch": 2, "log_every": 4, "checkpoint_every": 16}
TRAINING = {"training": LENGTHS | {"preview_every": 16, "ema_snapshot_every": 0, "workers": 0}}
AUTOENCODER = TRAINING | {
    "model": {
        "latent_channels": 4,
        "audio_encoder": {"width": 8, "multipliers": [1, 1], "blocks": 1, "heads": 2},
        "video_encoder": {"width": 8, "multipliers": [1], "blocks": 1, "heads": 2},
        "semantic_width": 16,
        "decoder": {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [False, True], "heads": 2},
    },
    "discriminator": {"width": 8, "multipliers": [1, 1], "attention": 1, "heads": 2},
    "adversarial": {"after": 4, "ramp": 8},
    "contrastive_batch": 4,
    "preview": {"steps": 2},
}
SMALL: dict[str, dict[str, Any]] = {  # by file or folder of configs/: what is small in it
    "data/audioset_select.yaml": {"limits": {}, "held_out": {"share": 0.0, "count": 2}},
    "data": MEDIA,
    "kl_vae": TRAINING | {"discriminator": {"width": 8, "layers": 2}, "adversarial": {"after": 4, "ramp": 8}},
    "autoencoder": AUTOENCODER,
    "dit/landscape.yaml": TRAINING,
    "dit": TRAINING
    | {
        "model": {"depth": 1, "width": 16, "heads": 2, "context_tokens": 2, "context_width": 4},
        "preview": {"steps": 2, "decoding_steps": 2},
    },
    "cluster": {"training": {"workers": 0}},
    "sample": {"steps": 2, "decoding": {"steps": 2}, "batch_size": 2},
}


def commands(page: Path) -> list[list[str]]:
    """Return the words of each command in the bash blocks of ``page``, in order, with fewer samples.

    Those that download, and the doctor's look at what was downloaded, are left out.
    """
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            left_out = not words or words[0] in DOWNLOADERS or words[:2] == ["mmldm", "doctor"]
            found += [] if left_out else [_fewer(words)]
    return found


def costs(page: Path) -> list[tuple[str, str]]:
    """Return `mmldm plan`'s arguments and the GPU-hours of each row of ``page`` that tells a cost."""
    rows = [[cell.strip() for cell in row.split("|")] for row in page.read_text().splitlines() if "`--model" in row]
    return [(row[5].strip("`"), row[3].removesuffix(" GPU-hours")) for row in rows]


def job(project: Path, words: list[str]) -> tuple[list[str], str, list[str]]:
    """Return sbatch's options, the script and its arguments, of the words of an sbatch command."""
    place = next(position for position, word in enumerate(words) if word.endswith(".sh"))
    assert (project / words[place]).is_file(), words
    return words[1:place], words[place], words[place + 1 :]


def inner(project: Path, words: list[str]) -> list[str]:
    """Return the words of the command that an sbatch command has each task of its job run."""
    _, script, arguments = job(project, words)
    text = (project / script).read_text().replace("\\\n", " ")
    line = shlex.split(re.search(r"^exec (.*)$", text, re.MULTILINE)[1].replace("$project/", ""))
    if line[0] == "${launcher[@]}":
        line = line[1:]
    if "--under" in line:
        place = line.index("--under")
        line = line[:place] + line[place + 2 :]
    assert line[-1] == "$@"
    return line[:-1] + arguments


def carry_out(forks: Forks, project: Path, words: list[str]) -> str:
    """Run a command, of an sbatch command what each task of its job runs; return what it said. It has to succeed."""
    command = inner(project, words) if words[0] == "sbatch" else words
    if command[0] == "python" and "latents" not in command:  # without torch, a process of its own begins faster
        program = [sys.executable, *command[1:]]
        done = subprocess.run(program, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        status, output = done.returncode, done.stdout
    else:
        status, output = forks(2 if command[:2] == ["mmldm", "train"] else 1, "command", str(project), *command)
    assert status == 0, f"{' '.join(words)}\n{output}"
    return output


def small_world(folder: Path) -> Path:
    """Make ``folder`` a project with everything but its videos."""
    for name in ("mmldm_scale", "data_tools", "slurm"):
        (folder / name).symlink_to(ROOT / name)
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        place = file.relative_to(ROOT / "configs")
        target = folder / "configs" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        small = SMALL.get(str(place), SMALL.get(place.parts[0], {}))
        _write_smaller(file, small, target)
    torch.manual_seed(0)
    model = tiny_autoencoder.build()
    published = model.decoder.unets["shared"].config | {"class_embed_type": None}
    UNet2DConditionModel.from_config(published).save_pretrained(folder / "weights/sd15/unet")
    model.kl_vae.save_pretrained(folder / "weights/sd15/vae")
    torch.save(random_features("vgg16"), folder / "weights/vgg16.pth")
    return folder


def put_videos(folder: Path, names: Sequence[str]) -> None:
    """Make a small video at each of ``names`` in ``folder``."""
    corpus = folder / "corpus"
    make_corpus(corpus, videos=len(names), seconds=1.2, size=32, fps=10)
    for name, video in zip(names, sorted(corpus.rglob("*.mp4")), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        video.rename(folder / name)
    shutil.rmtree(corpus)


def _fewer(words: list[str]) -> list[str]:
    return [FEWER.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def _write_smaller(file: Path, small: dict[str, Any], target: Path) -> None:
    """Write ``file`` with the values of ``small`` to ``target``; a mapping that is empty there is empty then."""
    content = OmegaConf.to_container(OmegaConf.load(file)) or {}
    for key, value in small.items():
        known = content.get(key)
        content[key] = _joined(known, value) if isinstance(known, dict) and value else value
    OmegaConf.save(OmegaConf.create(content), target)


def _joined(known: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.merge(known, small))
