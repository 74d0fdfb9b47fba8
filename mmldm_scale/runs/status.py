"""``mmldm status``: how runs are doing, from their folders alone, without anything that takes long to import.

One run gets a page, several (named, or found below a folder) a line each. Nothing is changed, and what is missing or
damaged in a folder is left out: somebody looks because something is wrong.
"""

import argparse
import bisect
import contextlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from mmldm_scale.common import leases
from mmldm_scale.common.errors import UserError
from mmldm_scale.runs import run_log

CONFIG = "config.yaml"
PRESETS = {"12 × 768": "S", "20 × 1024": "B", "36 × 1536": "L"}  # by depth and width of the DiT
SMOOTHED = 10  # records at most, whose mean is compared with that of as many a tenth of the run before
SILENT = 5  # usual intervals between records after which a running run is suspicious


def run(args: argparse.Namespace) -> int:
    """Print how the runs ``args.runs`` are doing; return 0.

    Raises:
        UserError: a folder is no run and holds none; the others are shown first.
    """
    found = {path: find(Path(path)) for path in args.runs}
    runs = [run for runs in found.values() for run in runs]
    if len(runs) == 1:
        print("\n".join(page(read(runs[0]))))
    elif runs:
        print("\n".join(table([read(run) for run in runs])))
    sys.stdout.flush()
    for path, there in found.items():
        if not there:
            raise UserError(f"{path}: is no run and holds none (no {CONFIG} in it, nor in the folders below)")
    return 0


def find(folder: Path) -> list[Path]:
    """Return ``folder`` if it is a run, else the runs in it, up to two levels down."""
    if (folder / CONFIG).is_file():
        return [folder]
    return sorted(file.parent for pattern in ("*", "*/*") for file in folder.glob(f"{pattern}/{CONFIG}"))


class Curve:
    """The last records of a log, and those a tenth of the run before."""

    def __init__(self, lines: Sequence[bytes], total: float) -> None:
        self.now: list[run_log.Record] = _records(lines, len(lines), 1)
        self.before: list[run_log.Record] = []
        if not self.now:
            return
        wanted = self.now[0]["samples_seen"] - total / 10
        there = bisect.bisect_right(lines, wanted, key=_samples_seen)
        count = max(1, min(SMOOTHED, len(lines) - there))
        self.now, self.before = _records(lines, len(lines), count), _records(lines, there, count)

    @property
    def last(self) -> run_log.Record:
        """The last record; empty if there is none."""
        return self.now[-1] if self.now else {}

    def trend(self, tag: str) -> float | None:
        """Return by how much of itself ``tag`` changed over the last tenth of the run; None if that is not known."""
        now, before = (
            [value for value in (number(record, tag) for record in part) if value is not None]
            for part in (self.now, self.before)
        )
        return fmean(now) / fmean(before) - 1 if now and before and fmean(before) else None

    def rate(self) -> float | None:
        """Return the samples a second of wall time, all that training stands still for included, of late."""
        own = [r for r in self.now if r.get(run_log.START) == self.last.get(run_log.START)]
        seconds = own[-1]["time"] - own[0]["time"] if own else 0
        if seconds > 0:
            return (own[-1]["samples_seen"] - own[0]["samples_seen"]) / seconds
        return number(self.last, "speed/samples_per_second")


@dataclass(frozen=True)
class Checkpoint:
    """One that stands in the run's folder."""

    samples_seen: int
    age: float  # seconds
    size: int | None  # bytes, if its manifest says


@dataclass(frozen=True)
class Status:
    """What is to be known of a run."""

    run: Path
    config: dict[str, Any]
    total: float
    curve: Curve
    validation: Curve
    checkpoints: list[Checkpoint]
    holder: tuple[dict[str, Any], bool] | None  # the process whose run it is, and whether that seems alive

    @property
    def samples_seen(self) -> float:
        """How far the run is, by its log."""
        return self.curve.last.get("samples_seen", 0)

    @property
    def running(self) -> bool:
        """Whether a process seems to be at work on it."""
        return self.holder is not None and self.holder[1]

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the present rate."""
        rate = self.curve.rate()
        return (self.total - self.samples_seen) / rate if rate and self.total else None

    @property
    def silence(self) -> float | None:
        """Seconds since the last record."""
        return time.time() - self.curve.last["time"] if self.curve.last else None

    def state(self) -> str:
        """Return "running", "finished", "stopped" or "silent": running, but without records for much too long."""
        if self.running:
            times = [record["time"] for record in self.curve.now]
            usual = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else math.inf
            return "silent" if self.silence and self.silence > max(60, SILENT * usual) else "running"
        return "finished" if self.total and self.samples_seen >= self.total else "stopped"


def read(run: Path) -> Status:
    """Return what the folder ``run`` says of its run."""
    config: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
        content = yaml.safe_load((run / CONFIG).read_text())
        config = content if isinstance(content, dict) else {}
    total = number(_part(config, "training"), "total_samples") or 0.0
    lines: list[bytes] = []
    with contextlib.suppress(OSError):
        lines = (run / run_log.LOG).read_bytes().splitlines()
    last = Curve(lines, total).last
    progress = number(last, "speed/progress")
    if progress:  # the run may have been carried on to another end than it was begun with
        total = round(last["samples_seen"] / progress)
    holder = None
    with contextlib.suppress(OSError):
        holder = leases.peek(run, "run")
    return Status(
        run=run,
        config=config,
        total=total,
        curve=Curve(lines, total),
        validation=Curve([line for line in lines if b'"validation/loss"' in line], total),
        checkpoints=_checkpoints(run),
        holder=holder,
    )


def number(record: dict[str, Any], key: str) -> float | None:
    """Return the finite number that ``record`` holds under ``key``, if it does."""
    value = record.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def page(status: Status) -> list[str]:
    """Return the lines on one run."""
    last = status.curve.last
    rows = {
        "progress": _progress(status),
        "state": _state(status),
        "loss": _losses(status.curve, "loss"),
        "validation": _losses(status.validation, "validation/loss"),
        "optimizer": _values(
            last,
            ("learning rate", "training/learning_rate", "{:.3g}"),
            ("gradient norm", "training/gradient_norm", "{:.3g}"),
            ("loss scale", "training/loss_scale", "{:g}"),
        ),
        "speed": _values(
            last,
            ("samples/s while training", "speed/samples_per_second", "{:,.1f}"),
            ("MFU", "speed/mfu", "{:.1%}"),
            ("data wait", "speed/data_wait_share", "{:.1%}"),
            ("goodput", "speed/goodput", "{:.1%}"),
        ),
        "left out": _values(
            last,
            ("skipped steps", "training/skipped_steps", "{:,.0f}"),
            ("samples left out", "training/skipped_samples", "{:,.0f}"),
            ("damaged samples", "data/quarantined", "{:,.0f}"),
        ),
        "memory": _values(
            last,
            ("GPU", "memory/gpu_gib", "{:.1f} GiB"),
            ("host", "memory/host_gib", "{:.1f} GiB"),
            ("free on its node", "memory/host_free_gib", "{:.1f} GiB"),
        ),
        "checkpoints": _kept(status.checkpoints),
        "starts": _starts(status.run),
        "hangs": _hangs(status.run),
    }
    return [f"{status.run}: {_model(status)}", *(f"  {name:<12} {text}" for name, text in rows.items() if text)]


def table(found: Sequence[Status]) -> list[str]:
    """Return a line for each run, below a heading."""
    rows = [("run", "state", "samples", "", "per s", "left", "loss", "trend", "MFU", "goodput", "last record")]
    for status in found:
        last, rate, loss = status.curve.last, status.curve.rate(), number(status.curve.last, "loss")
        left = status.seconds_left if status.running else None
        rows.append(
            (
                str(status.run),
                status.state(),
                f"{status.samples_seen:,.0f}",
                f"{status.samples_seen / status.total:.1%}" if status.total else "",
                "" if rate is None else f"{rate:,.1f}",
                "" if left is None else _duration(left),
                "" if loss is None else f"{loss:.4f}",
                _change(status.curve.trend("loss")),
                _values(last, ("", "speed/mfu", "{:.1%}")),
                _values(last, ("", "speed/goodput", "{:.1%}")),
                "" if status.silence is None else f"{_duration(status.silence)} ago",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lined = ([text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(row).rstrip() for row in lined]


def _records(lines: Sequence[bytes], end: int, count: int) -> list[run_log.Record]:
    """Return the last ``count`` records before line ``end``, in order."""
    found: list[run_log.Record] = []
    while end > 0 and len(found) < count:
        end -= 1
        record = run_log.parse(lines[end].decode(errors="replace"))
        found += [record] if record else []
    return found[::-1]


def _samples_seen(line: bytes) -> float:
    record = run_log.parse(line.decode(errors="replace"))
    return record["samples_seen"] if record else -math.inf


def _checkpoints(run: Path) -> list[Checkpoint]:
    found = []
    for folder in sorted(run.glob("checkpoints/step-*")):
        name, manifest = folder.name.removeprefix("step-"), folder / "manifest.json"
        with contextlib.suppress(OSError):
            if name.isdecimal():
                found.append(Checkpoint(int(name), time.time() - manifest.stat().st_mtime, _size(manifest)))
    return found


def _size(manifest: Path) -> int | None:
    try:
        return sum(int(size) for size, _ in json.loads(manifest.read_text())["files"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _part(config: dict[str, Any], key: str) -> dict[str, Any]:
    part = config.get(key)
    return part if isinstance(part, dict) else {}


def _model(status: Status) -> str:
    """Return what is trained, and on what."""
    config, training = status.config, _part(status.config, "training")
    kinds = {"diffusion": "dit", "contrastive_weight": "autoencoder", "audio_share": "kl_vae"}
    kind = next((name for key, name in kinds.items() if key in config), "a run of an unknown kind")
    facts = [kind]
    if kind == "dit":
        model = _part(config, "model")
        size = f"{model.get('depth', '?')} × {model.get('width', '?')}"
        facts = [f"dit {PRESETS[size]}" if size in PRESETS else "dit", size]
    weights = [*status.run.glob("checkpoints/step-*[0-9]/weights/model.safetensors")]
    with contextlib.suppress(OSError):
        facts += [f"{file.stat().st_size / 4e6:,.1f} M weights" for file in weights[-1:]]  # float32
    for key, says in (("global_batch", "batch {}"), ("precision", "{}"), ("zero_stage", "ZeRO-{}")):
        facts += [says.format(training[key])] if key in training else []
    shards = config.get("shards")
    facts += [f"on {', '.join(map(str, shards))}"] if isinstance(shards, list) else []
    return ", ".join(facts)


def _progress(status: Status) -> str:
    share = f" ({status.samples_seen / status.total:.1%})" if status.total else ""
    text = f"{status.samples_seen:,.0f} of {status.total:,.0f} samples{share}"
    rate, left = status.curve.rate(), status.seconds_left
    text += f", {rate:,.1f}/s" if rate else ""
    return text + (f", {_duration(left)} left" if left and status.running else "")


def _state(status: Status) -> str:
    state, silence = status.state(), status.silence
    parts = [state]
    if status.holder:
        holder, alive = status.holder
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        who += f", SLURM job {holder['job']}" if holder.get("job") else ""
        parts.append(who if alive else f"its {who} died without a word")
    parts += [f"last record {_duration(silence)} ago"] if silence is not None else ["nothing logged"]
    return ", ".join(parts)


def _losses(curve: Curve, main: str) -> str:
    """Return the last value of ``main`` and of those below it, each with its trend."""
    shown = []
    for tag in [tag for tag in curve.last if tag == main or tag.startswith(f"{main}/")]:
        value, change = number(curve.last, tag), _change(curve.trend(tag))
        if value is not None:
            name = "" if tag == main else f"{tag.removeprefix(f'{main}/')} "
            shown.append(f"{name}{value:.4f}{f' ({change})' if change else ''}")
    count = len(curve.now)
    behind = f", over the last tenth of the run (means of {count})" if curve.before else ""
    return ", ".join(shown) + behind if shown else ""


def _change(change: float | None) -> str:
    return "" if change is None else f"{change:+.1%}"


def _values(record: run_log.Record, *shown: tuple[str, str, str]) -> str:
    """Return those of ``shown``, each (name, tag, format), that ``record`` holds."""
    values = [(name, number(record, tag), text) for name, tag, text in shown]
    return ", ".join(f"{name} {text.format(value)}".strip() for name, value, text in values if value is not None)


def _kept(checkpoints: Sequence[Checkpoint]) -> str:
    if not checkpoints:
        return "none yet"
    last, sizes = checkpoints[-1], [one.size for one in checkpoints if one.size is not None]
    size = f", {last.size / 1e9:.2f} GB" if last.size is not None else ""
    names = [f"{one.samples_seen:,}" for one in checkpoints]
    shown = names if len(names) <= 4 else [names[0], "…", *names[-3:]]
    return (
        f"last at {last.samples_seen:,} ({_duration(last.age)} ago{size}); "
        f"{len(names)} kept ({' '.join(shown)}), {sum(sizes) / 1e9:.2f} GB"
    )


def _starts(run: Path) -> str:
    with contextlib.suppress(OSError):
        records = map(_loads, (run / "starts.jsonl").read_text(errors="replace").splitlines())
        starts = [record for record in records if isinstance(record, dict)]
        if starts:
            last = starts[-1]
            return f"{len(starts)} by SLURM, the last {last.get('time', '?')} (job {last.get('job', '?')})"
    return ""


def _loads(line: str) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(line)
    return None


def _hangs(run: Path) -> str:
    folders = sorted(run.glob("hangs/*"))
    diagnosis = ""
    with contextlib.suppress(OSError, IndexError):
        diagnosis = f", the last: {(folders[-1] / 'diagnosis.txt').read_text(errors='replace').strip()[:200]}"
    return f"{len(folders)}{diagnosis}" if folders else ""


def _duration(seconds: float) -> str:
    """Return ``seconds`` in the two largest units that matter."""
    whole = max(0, round(seconds)) if math.isfinite(seconds) else 0
    for size, name, smaller, below in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {below}"
    return f"{whole} s"
