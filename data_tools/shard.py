"""Make WebDataset shards to train on: videos with sound -> clips -> latents.

  # cut every video below videos/ into clips (frames + waveform)
  python data_tools/shard.py clips --source folder --input videos --output sets/clips \\
      --config configs/data/landscape.yaml

  # the same with another stride and shards of 64 clips: trailing key=value wins over the files
  python data_tools/shard.py clips --input videos --output sets/dense --config configs/data/landscape.yaml stride=1 \\
      samples_per_shard=64

  # encode the clips with a trained autoencoder (a run, a checkpoint, or its weights folder)
  python data_tools/shard.py latents --input sets/clips --output sets/latents --autoencoder runs/autoencoder \\
      --device cuda

  # both in one go, into sets/clips and sets/latents
  python data_tools/shard.py all --input videos --output sets --autoencoder runs/autoencoder \\
      --config configs/data/landscape.yaml

  # read everything again: checksums, members, shapes, counts; make the faulty shards anew
  python data_tools/shard.py verify --input sets/latents
  python data_tools/shard.py repair --input sets/latents

Stopped at any moment, the same command carries on and ends with the same files. Every video and every window that
gives no sample is a line of dropped.jsonl in the output, with its reason. The label of a video is the name of the
first folder below --input that it lies in. Exit status: 0 done, 1 verify found faults, 2 something about the command
or its input does not fit (one line says what), 130 stopped by Ctrl-C.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_tools.clips import make_clips
from data_tools.repair import repair, verify
from data_tools.sources import SOURCES, open_source
from data_tools.workers import default_workers
from mmldm_scale.config import Preparation, dump, load
from mmldm_scale.errors import UserError
from mmldm_scale.shards.manifest import DROPPED, Manifest
from mmldm_scale.shards.verify import Findings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` (default: the process's) spell; return its exit status."""
    args = _parser().parse_args(arguments)
    try:
        return args.run(args)
    except UserError as error:
        print(f"shard.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("shard.py: stopped; the same command carries on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="shard.py", description=__doc__, formatter_class=text)
    commands = parser.add_subparsers(required=True, metavar="clips|latents|all|verify|repair")
    clips = commands.add_parser("clips", help="cut videos into clip shards")
    latents = commands.add_parser("latents", help="encode clip shards into latent shards")
    both = commands.add_parser("all", help="clips, then latents, into OUTPUT/clips and OUTPUT/latents")
    verify = commands.add_parser("verify", help="read a set again and name every fault")
    repair = commands.add_parser("repair", help="verify, and make the faulty shards again")
    for command, run, content in (
        (clips, _clips, "folder of videos"),
        (latents, _latents, "clip set"),
        (both, _all, "folder of videos"),
        (verify, _verify, "shard set"),
        (repair, _repair, "shard set"),
    ):
        command.set_defaults(run=run)
        command.add_argument("--input", type=Path, required=True, metavar="DIR", help=content)
        if command not in (verify, repair):
            command.add_argument("--output", type=Path, required=True, metavar="DIR", help="new, or begun before")
        cores = default_workers()
        command.add_argument("--workers", type=int, default=cores, help="decoding processes (default: %(default)s)")
    for command in (clips, both, repair):
        command.add_argument(
            "--timeout", type=float, default=60, help="seconds until a decoder counts as hung (default: %(default)s)"
        )
    for command in (clips, both):
        command.add_argument(
            "--source", choices=SOURCES, help="what kind of input it is (source.kind; default: folder)"
        )
        command.add_argument("--list", metavar="FILE", help="what of the input is meant (source.list)")
        command.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML; later files win")
        command.add_argument("--print-config", action="store_true", help="show the configuration and stop")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="such as stride=1 media.fps=4")
    for command in (latents, both):
        command.add_argument("--autoencoder", type=Path, required=True, metavar="DIR", help="run or checkpoint")
    for command in (latents, both, repair):
        command.add_argument("--batch-size", type=int, default=8, help="clips encoded at once (default %(default)s)")
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def _clips(args: argparse.Namespace) -> int:
    preparation = _preparation(args)
    if args.print_config:
        print(dump(preparation), end="")
        return 0
    _cut(args, args.output, preparation)
    return 0


def _latents(args: argparse.Namespace) -> int:
    _encode(args, args.input, args.output)
    return 0


def _all(args: argparse.Namespace) -> int:
    from data_tools.latents import check_autoencoder  # takes seconds to import, and `clips` needs none of it

    preparation = _preparation(args)
    if args.print_config:
        print(dump(preparation), end="")
        return 0
    check_autoencoder(args.autoencoder, preparation.media, "the configuration")
    _cut(args, args.output / "clips", preparation)
    _encode(args, args.output / "clips", args.output / "latents")
    return 0


def _preparation(args: argparse.Namespace) -> Preparation:
    flags = {"kind": args.source, "list": args.list}
    shorthand = [f"source.{key}={json.dumps(value)}" for key, value in flags.items() if value]
    return load(Preparation, args.config, [*shorthand, *args.overrides])


def _verify(args: argparse.Namespace) -> int:
    _check_numbers(args)
    return _report(args.input, verify(args.input, args.workers))


def _repair(args: argparse.Namespace) -> int:
    _check_numbers(args)
    before, after = repair(args.input, args.workers, args.timeout, args.batch_size, args.device)
    for fault in before.faults if before.shards else []:
        print(f"{args.input}: was {fault}")
    print(f"{args.input}: {len(before.shards)} shards made again")
    return _report(args.input, after)


def _report(folder: Path, findings: Findings) -> int:
    manifest = Manifest.read(folder)
    for fault in findings.faults:
        print(f"{folder}: {fault}")
    print(
        f"{folder}: {manifest.samples} {manifest.kind} in {len(manifest.shards)} shards, {len(findings.faults)} faults"
    )
    return 1 if findings.faults else 0


def _cut(args: argparse.Namespace, output: Path, preparation: Preparation) -> None:
    start = time.monotonic()
    _check_numbers(args)
    manifest = make_clips(open_source(preparation.source, args.input), output, preparation, args.workers, args.timeout)
    _summarise(output, manifest, time.monotonic() - start)


def _encode(args: argparse.Namespace, clips: Path, output: Path) -> None:
    from data_tools.latents import make_latents  # as above

    start = time.monotonic()
    _check_numbers(args)
    manifest = make_latents(clips, output, args.autoencoder, args.batch_size, args.device, args.workers)
    _summarise(output, manifest, time.monotonic() - start)


def _check_numbers(args: argparse.Namespace) -> None:
    if args.workers < 0:
        raise UserError(f"--workers {args.workers}: 0 (decode in this process) or more fits")
    if getattr(args, "timeout", 1) <= 0:
        raise UserError(f"--timeout {args.timeout:g}: more than 0 seconds fits")
    if getattr(args, "batch_size", 1) < 1:
        raise UserError(f"--batch-size {args.batch_size}: 1 or more fits")


def _summarise(output: Path, manifest: Manifest, seconds: float) -> None:
    """Print what was made; raise UserError if nothing was left to make it of."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.reasons.items())
    size = sum(shard.bytes for shard in manifest.shards)
    print(
        f"{output}: {manifest.videos} videos, {manifest.candidates} candidates: {manifest.samples} {manifest.kind} in "
        f"{len(manifest.shards)} shards ({size / 1e6:.1f} MB), {manifest.dropped} dropped"
        f"{f' ({reasons})' if reasons else ''}; {seconds:.1f} s"
    )
    if not manifest.samples:
        raise UserError(f"{output}: no clip is left of {manifest.videos} videos; {output / DROPPED} says why")


if __name__ == "__main__":
    sys.exit(main())
