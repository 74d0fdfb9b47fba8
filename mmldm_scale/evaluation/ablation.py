"""``mmldm ladder``: an autoencoder's variants trained one after the other on one data set, and a table of them.

A ladder is a YAML file of rungs (``configs/ablation/table5.yaml``: the steps of the paper's Table 5). Each rung is a
run of its own, ``OUTPUT/NAME/``: ``mmldm train autoencoder`` with the data set's configuration and the rung's settings,
then ``mmldm reconstruct`` of its newest checkpoint. Both are started as a user would start them, so that a rung carries
on where it was stopped and what is finished is not done again. The table goes to the terminal, to
``OUTPUT/ladder.md`` and, for programs, to ``OUTPUT/ladder.json``.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from omegaconf import MISSING

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.processes import die_with_parent
from mmldm_scale.config import Reconstructing, load, presets, require
from mmldm_scale.evaluation.reconstruction import RESULTS
from mmldm_scale.models import pretrained
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining

MMLDM = (sys.executable, "-m", "mmldm_scale.cli")
FINETUNED = "kl_vae"  # the run of the fine-tuned KL-VAE, in the output folder
FINETUNE = presets.path("kl_vae/finetune")


@dataclass
class Rung:
    """One variant."""

    name: str = MISSING  # of its run folder
    title: str = MISSING  # in the table
    set: list[str] = field(default_factory=list)  # overrides of the data set's configuration
    finetuned: bool = False  # whether its KL-VAE is the one fine-tuned on the data set


@dataclass
class Ladder:
    """The variants, in order."""

    rungs: list[Rung] = MISSING

    def __post_init__(self) -> None:
        names = [rung.name for rung in self.rungs]
        require(len(names) > 0, "rungs", "at least one is needed")
        require(len(set(names)) == len(names), "rungs", "two have the same name")
        usable = all(name and Path(name).name == name and name != FINETUNED for name in names)
        require(usable, "rungs", f"a name has to be that of a folder, and not {FINETUNED!r}")


class Stopped(Exception):
    """A command ended with another status than 0, which is ``status``."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def run(args: argparse.Namespace) -> int:
    """Climb the ladder that ``args`` (of :mod:`mmldm_scale.evaluation.arguments`) describe; return the exit status.

    Raises:
        UserError: the ladder or a rung's configuration cannot work.
    """
    ladder = load(Ladder, [args.ladder])
    for rung in ladder.rungs:  # a mistake in the last one is better known before days of training
        load(AutoencoderTraining, args.config, _overrides(args, rung))
        _check_same(args, rung)
    rows = []
    for number, rung in enumerate(ladder.rungs, start=1):
        print(f"rung {number} of {len(ladder.rungs)}: {rung.name} ({rung.title})", file=sys.stderr, flush=True)
        try:
            rows.append((rung, _climb(args, rung)))
        except Stopped as stop:
            say = f"mmldm ladder: rung {rung.name} ended with {stop} (see above); the same command carries on from here"
            print(say, file=sys.stderr, flush=True)
            return stop.status
        write_whole(args.output / "ladder.md", table(rows).encode())
        found = [{"name": rung.name, "title": rung.title, "metrics": metrics} for rung, metrics in rows]
        write_whole(args.output / "ladder.json", json.dumps(found, indent=1).encode() + b"\n")
    print(table(rows), end="")
    return 0


def table(rows: Sequence[tuple[Rung, dict[str, float]]]) -> str:
    """Return a Markdown table: a line a rung, a column for each metric of the first."""
    metrics = list(rows[0][1])
    lines = [f"| | {' | '.join(metrics)} |", f"|---|{'---:|' * len(metrics)}"]
    for rung, values in rows:
        lines.append(f"| {rung.title} | {' | '.join(f'{values[metric]:.3f}' for metric in metrics)} |")
    return "\n".join(lines) + "\n"


def _climb(args: argparse.Namespace, rung: Rung) -> dict[str, float]:
    """Train and measure ``rung``, as far as that is not done; return its metrics."""
    if rung.finetuned:
        data = load(AutoencoderTraining, args.config, args.overrides)
        given = [f"shards={json.dumps(data.shards)}", f"weights={data.weights}", f"kl_vae={data.kl_vae}"]
        _train(args, "kl_vae", args.finetune or [FINETUNE], [*given, f"run={args.output / FINETUNED}"])
    _train(args, "autoencoder", args.config, _overrides(args, rung))
    weights = pretrained.find(args.output / rung.name, "autoencoder")
    results = args.output / rung.name / "reconstruction" / weights.parent.name  # step-…: of this checkpoint
    if not (results / RESULTS).exists():
        asked = ["--checkpoint", weights, "--input", args.input, "--num-samples", args.num_samples]
        _call([*MMLDM, "reconstruct", *asked, "--output", results, *_configs(args.reconstruct)])
    return json.loads((results / RESULTS).read_text())["metrics"]


def _check_same(args: argparse.Namespace, rung: Rung) -> None:
    """Hold what ``rung`` was last measured with, if it was, against what is asked for now.

    Raises:
        UserError: they differ.
    """
    measured = sorted((args.output / rung.name / "reconstruction").glob(f"*/{RESULTS}"))
    if not measured:
        return
    found = json.loads(measured[-1].read_text())
    settings = json.loads(json.dumps(asdict(load(Reconstructing, args.reconstruct))))  # tuples become lists
    asked = (args.num_samples, str(args.input.resolve()), settings)
    if (found["samples"], found["clips"]["path"], found["settings"]) != asked:
        raise UserError(f"{measured[-1]}: measured with other clips or settings than now; remove its folder")


def _overrides(args: argparse.Namespace, rung: Rung) -> list[str]:
    """Return the overrides of the training of ``rung``: the user's, then its own."""
    kl_vae = [f"kl_vae={args.output / FINETUNED}"] if rung.finetuned else []
    return [*args.overrides, *rung.set, *kl_vae, f"run={args.output / rung.name}"]


def _train(args: argparse.Namespace, model: str, files: Sequence[str], overrides: Sequence[str]) -> None:
    """Train to the end; a run that is there already does nothing."""
    how = ["--processes", args.processes] if args.processes else []
    how += ["--launch", args.launch] if args.launch else []
    _call([*MMLDM, "train", model, *_configs(files), *how, *overrides])


def _configs(files: Sequence[str]) -> list[str]:
    return [part for file in files for part in ("--config", file)]


def _call(command: Sequence[object]) -> None:
    """Run ``command`` to its end, its output going where ours goes.

    Raises:
        Stopped: it ended with another status than 0.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, preexec_fn=lambda: die_with_parent(signal.SIGTERM))
    if done.returncode != 0:
        raise Stopped(done.returncode if done.returncode > 0 else 128 - done.returncode)
