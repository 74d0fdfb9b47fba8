"""``mmldm status``: prints the state of runs, from their folders alone.

One run gets a page; several runs, named or found below a folder, get a line each. Of exported weights it shows where
they are from.
"""

import argparse
import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmldm_scale.common import leases, provenance
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.provenance import PROVENANCE
from mmldm_scale.runs import evaluations, run_log
from mmldm_scale.runs.summary import (
    CONFIG,
    TREND_RECORDS,
    Curve,
    QueuedJob,
    RunSummary,
    SavedCheckpoint,
    find_runs,
    finite_number,
    read_summary,
)

QueuedJobs = Callable[[Sequence[str]], Mapping[str, QueuedJob] | None]


def run(args: argparse.Namespace, queued_jobs: QueuedJobs = lambda ids: None) -> int:
    """Print the state of the runs ``args.runs``, or the origin of weights among them; return 0.

    Args:
        queued_jobs: returns those of the SLURM jobs with these ids that are in the queue; None: the queue is not known.

    Raises:
        UserError: a folder is no run and contains none; the other runs are printed first.
    """
    weights = [path for path in map(Path, args.runs) if (path / PROVENANCE).is_file()]
    for folder in weights:
        origin = provenance.read(folder)
        print("\n".join([f"{folder}: weights", *(f"  {line}" for line in (origin.lines() if origin else ()))]))
    runs_by_path = {path: find_runs(Path(path)) for path in args.runs if Path(path) not in weights}
    runs = [run for runs in runs_by_path.values() for run in runs]
    summaries = [read_summary(run) for run in runs]
    jobs = [job for summary in summaries if not summary.running for job in summary.jobs]
    queue = queued_jobs(jobs) if jobs else None
    summaries = [dataclasses.replace(summary, queue=queue) for summary in summaries]
    if len(summaries) == 1:
        print("\n".join(page(summaries[0])))
    elif summaries:
        print("\n".join(table(summaries)))
    sys.stdout.flush()
    for path, runs_below in runs_by_path.items():
        if not runs_below:
            if not Path(path).is_dir():
                raise UserError(f"{path}: {'is a file, not a run' if Path(path).exists() else 'no such folder'}")
            raise UserError(
                f"{path}: is no run and contains none: no {CONFIG} or launch in it or up to two levels below"
            )
    return 0


def page(summary: RunSummary) -> list[str]:
    """Return the lines about one run."""
    last = summary.curve.last
    rows = {
        "progress": _progress(summary),
        "state": _state(summary),
        "loss": _losses(summary.curve, "loss"),
        "validation": _losses(summary.validation, "validation/loss"),
        "evaluation": evaluations.line(summary.evaluated),
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
        "skipped": _values(
            last,
            ("steps", "training/skipped_steps", "{:,.0f}"),
            ("samples", "training/skipped_samples", "{:,.0f}"),
            ("damaged samples", "data/quarantined", "{:,.0f}"),
        ),
        "memory": _values(
            last,
            ("GPU", "memory/gpu_gib", "{:.1f} GiB"),
            ("host", "memory/host_gib", "{:.1f} GiB"),
            ("available on its node", "memory/host_free_gib", "{:.1f} GiB"),
        ),
        "checkpoints": _checkpoints(summary.checkpoints),
        "starts": _starts(summary),
        "hangs": _hangs(summary.hangs),
    }
    return [f"{summary.run}: {_model(summary)}", *(f"  {name:<12} {text}" for name, text in rows.items() if text)]


def table(summaries: Sequence[RunSummary]) -> list[str]:
    """Return a heading and a line for each run."""
    rows = [
        ("run", "state", "samples", "", "per s", "left", "loss", "trend", "validation", "MFU", "goodput", "last record")
    ]
    for summary in summaries:
        last, rate, loss = summary.curve.last, summary.curve.rate(), finite_number(summary.curve.last, "loss")
        left = summary.seconds_left if summary.running else None
        rows.append(
            (
                str(summary.run),
                summary.state(),
                f"{summary.samples_seen:,.0f}",
                f"{summary.samples_seen / summary.total_samples:.1%}" if summary.total_samples else "",
                "" if rate is None else f"{rate:,.1f}",
                "" if left is None else _duration(left),
                "" if loss is None else f"{loss:.4f}",
                _percent(summary.curve.trend("loss")),
                _values(summary.validation.last, ("", "validation/loss", "{:.4f}")),
                _values(last, ("", "speed/mfu", "{:.1%}")),
                _values(last, ("", "speed/goodput", "{:.1%}")),
                "" if summary.silence is None else f"{_duration(summary.silence)} ago",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = ([text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(row).rstrip() for row in aligned]


def _model(summary: RunSummary) -> str:
    """Return what is trained, its size, its main settings and its data."""
    config, model, training = summary.config, summary.section("model"), summary.section("training")
    facts = [str(config.get("trainable", "trainable unknown (config.yaml of an older version)"))]
    if "depth" in model and "width" in model:
        facts.append(f"{model['depth']} × {model['width']}")
    if summary.weights_bytes is not None:
        facts.append(f"{summary.weights_bytes / 4e6:,.1f} M weights")
    for key, text in (("global_batch", "batch {}"), ("precision", "{}"), ("zero_stage", "ZeRO-{}")):
        facts += [text.format(training[key])] if key in training else []
    shards = config.get("shards")
    facts += [f"on {', '.join(map(str, shards))}"] if isinstance(shards, list) else []
    return ", ".join(facts)


def _progress(summary: RunSummary) -> str:
    share = f" ({summary.samples_seen / summary.total_samples:.1%})" if summary.total_samples else ""
    text = f"{summary.samples_seen:,.0f} of {summary.total_samples:,.0f} samples{share}"
    rate, left = summary.curve.rate(), summary.seconds_left
    text += f", {rate:,.1f}/s" if rate else ""
    return text + (f", {_duration(left)} left" if left and summary.running else "")


def _state(summary: RunSummary) -> str:
    parts, silence = [summary.state()], summary.silence
    if summary.holder:
        holder, alive = summary.holder
        process = leases.describe(holder)
        process += f", SLURM job {holder['job']}" if holder.get("job") else ""
        parts.append(process if alive else f"{process} died and left its lock")
    if not summary.running:
        parts += _job(summary)
    if silence is not None:
        parts.append(f"last record {_duration(silence)} ago")
    elif not summary.queued:
        parts.append("nothing logged" if summary.is_begun or summary.running else "nothing logged or saved yet")
    return ", ".join(parts)


def _job(summary: RunSummary) -> list[str]:
    """Return what is known of the job of a run that does not run, as parts of a line."""
    launch = summary.launch
    submitted = f", submitted {_duration(time.time() - launch.submitted)} ago" if launch else ""
    if summary.queued:
        job, queued = summary.queued
        where = f"on {queued.nodes}" if queued.nodes else f"({queued.reason})"
        return [f"SLURM job {job} is {queued.state} {where}{submitted if launch and launch.job == job else ''}"]
    if launch and not summary.is_begun:
        gone = " and is not in the queue any more" if summary.queue is not None else ""
        return [f"SLURM job {launch.job}{submitted}{gone}; its log is in {launch.config.parent}"]
    return []


def _losses(curve: Curve, tag: str) -> str:
    """Return the last values of ``tag`` and of the tags below it, each with its trend."""
    values = []
    for name in [name for name in curve.last if name == tag or name.startswith(f"{tag}/")]:
        value, change = finite_number(curve.last, name), _percent(curve.trend(name))
        if value is not None:
            label = "" if name == tag else f"{name.removeprefix(f'{tag}/')} "
            values.append(f"{label}{value:.4f}{f' ({change})' if change else ''}")
    if not values:
        return ""
    if curve.earlier:
        return f"{', '.join(values)}, over {curve.distance:,.0f} samples (means of {len(curve.recent)} records)"
    number = f"{curve.count} record" + ("s" if curve.count > 1 else "")
    return f"{', '.join(values)} ({number} so far; a trend takes {TREND_RECORDS})"


def _percent(change: float | None) -> str:
    return "" if change is None else f"{change:+.1%}"


def _values(record: run_log.Record, *columns: tuple[str, str, str]) -> str:
    """Return the ``columns``, each (name, tag, format), that ``record`` contains."""
    values = [(name, finite_number(record, tag), text) for name, tag, text in columns]
    return ", ".join(f"{name} {text.format(value)}".strip() for name, value, text in values if value is not None)


def _checkpoints(checkpoints: Sequence[SavedCheckpoint]) -> str:
    if not checkpoints:
        return "none yet"
    last, sizes = checkpoints[-1], [checkpoint.size for checkpoint in checkpoints if checkpoint.size is not None]
    size = f", {last.size / 1e9:.2f} GB" if last.size is not None else ""
    names = [f"{checkpoint.samples_seen:,}" for checkpoint in checkpoints]
    shown = names if len(names) <= 4 else [names[0], "…", *names[-3:]]
    return (
        f"last at {last.samples_seen:,} ({_duration(last.age)} ago{size}); "
        f"{len(names)} kept ({' '.join(shown)}), {sum(sizes) / 1e9:.2f} GB"
    )


def _starts(summary: RunSummary) -> str:
    if not summary.starts:
        return ""
    last = summary.starts[-1]
    return f"{len(summary.starts)} by SLURM, the last {last.get('time', '?')} (job {last.get('job', '?')})"


def _hangs(folders: Sequence[Path]) -> str:
    diagnosis = ""
    with contextlib.suppress(OSError, IndexError):
        diagnosis = f", the last: {(folders[-1] / 'diagnosis.txt').read_text(errors='replace').strip()[:200]}"
    return f"{len(folders)}{diagnosis}" if folders else ""


def _duration(seconds: float) -> str:
    """Return ``seconds`` in its two largest units."""
    whole = max(0, round(seconds)) if math.isfinite(seconds) else 0
    for size, name, smaller, below in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {below}"
    return f"{whole} s"
