"""Makes WebDataset shards to train on: videos with sound -> clips -> latents.

  # cut every video below videos/ into clips (frames + waveform)
  python data_tools/shard.py clips --source folder --input videos --output sets/clips --preset landscape

  # the same with another stride and shards of 64 clips: trailing key=value wins over presets and files
  python data_tools/shard.py clips --input videos --output sets/dense --preset landscape stride=1 \\
      samples_per_shard=64

  # encode the clips with a trained autoencoder (a run, a checkpoint, or its weights folder)
  python data_tools/shard.py latents --input sets/clips --output sets/latents --autoencoder runs/autoencoder \\
      --device cuda

  # both in one go, into sets/clips and sets/latents
  python data_tools/shard.py all --input videos --output sets --autoencoder runs/autoencoder --preset landscape

  # latents that you have already (cat_1.audio.npy, cat_1.video.npy, cat_1.mirrored.npy, …), of the same autoencoder
  python data_tools/shard.py import-latents --input theirs --output sets/latents --autoencoder runs/autoencoder

  # choose segments of AudioSet: measure all of them once, then select, as often as you like
  python data_tools/shard.py measure --source audioset --list unbalanced_train_segments.csv --input videos \\
      --output sets/measures
  python data_tools/shard.py select --input sets/measures --output sets/selection --preset audioset_select
  python data_tools/shard.py clips --list sets/selection/train.parquet --input videos --output sets/clips \\
      --preset audioset

  # eight processes on this node, or eight SLURM jobs, that share one output
  python data_tools/shard.py latents --launcher local --jobs 8 --input sets/clips --output sets/latents …
  python data_tools/shard.py latents --launcher slurm --jobs 8 --slurm partition=gpu --slurm gpus=1 --input …

  # into an object store; data/clips is made first, and keeps a copy
  python data_tools/shard.py clips --input videos --output s3://bucket/clips --work data/clips --preset landscape

  # read everything again (checksums, members, shapes, counts); make faulty shards again; show what the set holds
  python data_tools/shard.py verify --input sets/latents
  python data_tools/shard.py repair --input sets/latents
  python data_tools/shard.py stats --input sets/clips --output sets/clips-stats

Stopped at any moment, the same command resumes and ends with the same files. Every video and every window that gives
no sample is a line of dropped.jsonl in the output, with its reason. Exit status: 0 done; 1 verify or repair found
faults that remain; 2 the command or its input is wrong (one line says what); 130 stopped by Ctrl-C.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

if not __package__:  # `python data_tools/shard.py`: relative imports need the package that the file lies in (PEP 366)
    _PACKAGE = Path(__file__).resolve().parent
    if str(_PACKAGE.parent) not in sys.path:
        sys.path.insert(0, str(_PACKAGE.parent))
        paths = [str(_PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # the processes that this one starts find the package, too
    __package__ = _PACKAGE.name
    importlib.import_module(__package__)

from mmldm_scale.common.addresses import add_path, path_or_url
from mmldm_scale.common.errors import UserError, refused_paths
from mmldm_scale.common.processes import READER_GONE, end_quietly_without_reader, flushed_output, prepare_command
from mmldm_scale.config import arguments, dump, load
from mmldm_scale.shards.manifest import DROPPED, Manifest
from mmldm_scale.shards.remote.remote_folder import RemoteFolder
from mmldm_scale.shards.verify import Findings

from . import COMMAND, PROGRAM
from .config import Preparation
from .launching import launch
from .launching.process_pool import default_workers
from .reports.summary import counted, describe
from .sources import open_source
from .sources.registry import SOURCES
from .stages.clips import make_clips
from .stages.repair import repair, verify
from .stages.upload import Upload

Schema = TypeVar("Schema")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` (default: those of the process) describe; return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with flushed_output():
            prepare_command()
            args = _parser().parse_args(arguments)
            _check_numbers(args)
            with refused_paths():
                return _run(args, arguments)
    except UserError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        if not end_quietly_without_reader():
            raise
        return READER_GONE
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; run the same command again to resume", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run the command here, or in the processes that --launcher names; upload what it made; return its exit status."""
    only_checks = getattr(args, "check", False)
    uploads = _uploads(args)
    if getattr(args, "launcher", None) and not only_checks:
        options = launch.Options(args.output, args.slurm, wait=not args.no_wait)
        return launch.launch(launch.command_of(arguments), args.launcher, args.jobs, options)
    status: int = args.run(args)
    for upload in () if only_checks else uploads:
        upload.run()
    return status


# --- the command line ------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    description = (__doc__ or "").replace("python data_tools/shard.py", COMMAND)
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(
        required=True, metavar="all|measure|select|clips|latents|import-latents|verify|repair|stats", title="commands"
    )

    def command(name: str, run: Callable, content: str, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=run)
        add_path(added, "--input", required=True, metavar="DIR", help=content)
        return added

    both = command("all", _all, "folder of videos", "clips, then latents, into OUTPUT/clips and OUTPUT/latents")
    measure = command("measure", _measure, "folder of videos", "measure every video: one row of a table each")
    select = command("select", _select, "folder of measures", "select among measured videos")
    text = "candidates dropped, and kept, that the report shows for each filter; 0: none (default: %(default)s)"
    select.add_argument("--examples", type=int, default=4, metavar="N", help=text)
    clips = command("clips", _clips, "folder of videos", "cut videos into clip shards")
    latents = command("latents", _latents, "clip set", "encode clip shards into latent shards")
    imports = command("import-latents", _import, "folder of tensors", "make a latent set of latents that there are")
    verify = command("verify", _verify, "shard set", "read a set and report every fault")
    repair = command("repair", _repair, "shard set", "verify a set and make its faulty shards again")
    stats = command("stats", _stats, "shard set", "count what a set holds, and show samples")
    _add_import_options(imports)
    for sub in (measure, select):
        add_path(sub, "--output", required=True, metavar="DIR", help="new, or begun by the same command")
    for sub in (both, clips, latents, imports):
        text = "new, or begun by the same command; a URL (s3://…) takes --work"
        sub.add_argument("--output", type=path_or_url, required=True, metavar="DIR", help=text)
        text = "folder on a shared disk in which what goes to a URL is made; it keeps a copy"
        add_path(sub, "--work", metavar="DIR", help=text)
    add_path(stats, "--output", metavar="DIR", help="folder for index.html, a contact sheet")
    for sub in (both, measure, clips):
        text = f"kind of collection: {', '.join(SOURCES)} (source.kind; default: folder)"
        sub.add_argument("--source", metavar="KIND", help=text)
        add_path(sub, "--list", metavar="FILE", help="which parts of the input to take (source.list)")
    for sub in (both, measure, select, clips):
        sub.add_argument("--print-config", action="store_true", help="print the composed configuration and stop")
        arguments.add_configuration(sub, "stride=1 media.fps=4", preset="landscape")
    text = "check clips and autoencoder and exit, e.g. before submitting a job"
    latents.add_argument("--check", action="store_true", help=text)
    for sub in (both, latents, imports):
        add_path(sub, "--autoencoder", required=True, metavar="DIR", help="run or checkpoint")
    for sub in (both, latents, repair):
        sub.add_argument("--batch-size", type=int, default=8, help="clips encoded at once (default: %(default)s)")
        sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    for sub in (both, measure, select, clips, latents, verify, repair):
        cores = default_workers()
        sub.add_argument("--workers", type=int, default=cores, help="decoding processes of each (default: %(default)s)")
    for sub in (both, measure, select, clips, repair):
        text = "seconds until a decoder counts as hung (default: %(default)s)"
        sub.add_argument("--timeout", type=float, default=60, help=text)
    for sub in (both, measure, clips, latents, imports):
        launch.add_arguments(sub)
    return parser


def _add_import_options(parser: argparse.ArgumentParser) -> None:
    for part in ("audio", "video", "mirrored"):
        text = "its files, without suffix; :NAME at the end: that tensor of each (default: %(default)s)"
        parser.add_argument(f"--{part}", metavar="PATTERN", default=f"{{key}}.{part}", help=text)
    text = 'JSON with their mean and std per channel: {"audio": {"mean": […], "std": […]}, "video": {…}}'
    add_path(parser, "--statistics", metavar="FILE", help=text)
    text = "undo the normalisation by --statistics (default: only compare these)"
    parser.add_argument("--normalised", action="store_true", help=text)
    text = "let the latents of the videos stand in for those of mirrored videos"
    parser.add_argument("--without-mirrored", action="store_true", help=text)
    parser.add_argument("--samples-per-shard", type=int, default=256, metavar="N", help="(default: %(default)s)")


def _check_numbers(args: argparse.Namespace) -> None:
    if getattr(args, "workers", 0) < 0:
        raise UserError(f"--workers {args.workers}: must be 0 (decode in this process) or more")
    if getattr(args, "timeout", 1) <= 0:
        raise UserError(f"--timeout {args.timeout:g}: must be more than 0 seconds")
    if getattr(args, "examples", 0) < 0:
        raise UserError(f"--examples {args.examples}: must be 0 (none) or more")
    if getattr(args, "batch_size", 1) < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")


def _uploads(args: argparse.Namespace) -> list[Upload]:
    """Return what is to be uploaded when the command is done; then ``args.output`` becomes the folder ``args.work``.

    Raises:
        UserError: only one of a URL and --work was given, or the URL cannot be written or holds something else.
    """
    url, work = getattr(args, "output", None), getattr(args, "work", None)
    if not isinstance(url, str):
        if work:
            raise UserError(f"--work {work}: only with a URL as --output, not with {args.output}")
        return []
    if not work:
        raise UserError(f"--output {url}: needs --work DIR, a folder in which the set is made before it is uploaded")
    args.output = work
    if getattr(args, "print_config", False):
        return []
    parts = ("clips", "latents") if args.run is _all else ("",)
    uploads = [Upload(work / part, RemoteFolder(f"{url.rstrip('/')}/{part}".rstrip("/"))) for part in parts]
    for upload in uploads:
        upload.check()
    return uploads


def _config(args: argparse.Namespace, schema: type[Schema]) -> Schema | None:
    """Return the configuration of the command line; None if it was printed (``--print-config``)."""
    flags = {"kind": getattr(args, "source", None), "list": getattr(args, "list", None)}
    shorthand = [f"source.{key}={json.dumps(str(value))}" for key, value in flags.items() if value]
    config = load(schema, arguments.files(args, "data"), [*shorthand, *args.overrides])
    if not args.print_config:
        return config
    print(dump(config), end="")
    return None


# --- the commands; slow modules are imported where they are needed ---------------------------------------------------


def _measure(args: argparse.Namespace) -> int:
    from .config import MeasureConfig
    from .stages.measure import measure

    if config := _config(args, MeasureConfig):
        source = open_source(config.source, args.input)
        summary = measure(source, args.output, config, args.workers, args.timeout)
        others = sum(summary.others.values())
        print(
            f"{args.output}: {summary.rows + others} entries found = {summary.rows} candidates + {others} others"
            f"{counted(summary.others)}; {summary.rows} candidates, {summary.measured} measured"
            f"{counted(summary.reasons)}"
        )
    return 0


def _select(args: argparse.Namespace) -> int:
    from .config import Selection
    from .stages.select import select

    if config := _config(args, Selection):
        report = select(args.input, args.output, config, args.examples, args.workers, args.timeout)
        print(
            f"{args.output}: {report.rows} candidates: {report.train} to train on, {report.heldout} held out, "
            f"{report.dropped} dropped{counted(report.reasons)}; {args.output / 'report.html'} shows them"
        )
    return 0


def _clips(args: argparse.Namespace) -> int:
    if preparation := _config(args, Preparation):
        _cut(args, args.output, preparation)
    return 0


def _latents(args: argparse.Namespace) -> int:
    if args.check:
        from .stages.latents import check_inputs

        source = check_inputs(args.input, args.output, args.autoencoder)
        print(f"{args.output}: {len(source):,} clips of {args.input} can be encoded with {args.autoencoder}")
        return 0
    _encode(args, args.input, args.output)
    return 0


def _import(args: argparse.Namespace) -> int:
    from .stages.import_latents import ImportOptions, import_latents
    from .stages.latent_files import LatentNames

    start = time.monotonic()
    names = LatentNames(args.audio, args.video, args.mirrored)
    statistics = str(args.statistics or "")
    options = ImportOptions(names, statistics, args.normalised, args.without_mirrored, args.samples_per_shard)
    manifest = import_latents(args.input, args.output, args.autoencoder, options)
    _summarise(args.output, manifest, time.monotonic() - start)
    return 0


def _all(args: argparse.Namespace) -> int:
    from .stages.latents import check_autoencoder

    if preparation := _config(args, Preparation):
        check_autoencoder(args.autoencoder, preparation.media, "the configuration")
        _cut(args, args.output / "clips", preparation)
        _encode(args, args.output / "clips", args.output / "latents")
    return 0


def _verify(args: argparse.Namespace) -> int:
    return _report(args.input, verify(args.input, args.workers))


def _repair(args: argparse.Namespace) -> int:
    before, after = repair(args.input, args.workers, args.timeout, args.batch_size, args.device)
    for fault in before.faults if before.shards else []:
        print(f"{args.input}: was {fault}")
    print(f"{args.input}: {len(before.shards)} shards made again")
    return _report(args.input, after)


def _stats(args: argparse.Namespace) -> int:
    from .reports import stats

    print(stats.describe(stats.stats(args.input, args.output)))
    if args.output:
        print(f"{args.output / 'index.html'} shows samples")
    return 0


def _report(folder: Path, findings: Findings) -> int:
    manifest = Manifest.read(folder)
    for fault in findings.faults:
        print(f"{folder}: {fault}")
    print(
        f"{folder}: {manifest.samples} {manifest.kind} in {len(manifest.shards)} shards, {len(findings.faults)} faults"
    )
    return 1 if findings.faults else 0


def _cut(args: argparse.Namespace, output: Path, preparation: Preparation) -> None:
    for warning in preparation.media.audio_image_warnings:
        print(f"{PROGRAM}: warning: {warning}", file=sys.stderr, flush=True)
    start = time.monotonic()
    manifest = make_clips(open_source(preparation.source, args.input), output, preparation, args.workers, args.timeout)
    _summarise(output, manifest, time.monotonic() - start)


def _encode(args: argparse.Namespace, clips: Path, output: Path) -> None:
    from .stages.latents import make_latents

    start = time.monotonic()
    manifest = make_latents(clips, output, args.autoencoder, args.batch_size, args.device, args.workers)
    _summarise(output, manifest, time.monotonic() - start)


def _summarise(output: Path, manifest: Manifest, seconds: float) -> None:
    """Print what was made; raise UserError if the set holds nothing."""
    print(describe(output, manifest, seconds))
    if not manifest.samples:
        raise UserError(f"{output}: holds no clip of {manifest.videos} entries; see {output / DROPPED} for the reasons")


if __name__ == "__main__":
    sys.exit(main())
