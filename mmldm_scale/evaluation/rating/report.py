"""``mmldm rate report``: figures of a study as JSON, Markdown and a page."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.evaluation.rating import checks, report_pages
from mmldm_scale.evaluation.rating import study as studies
from mmldm_scale.evaluation.rating.figures import Figures
from mmldm_scale.evaluation.rating.results import INTERVALS, Report, evaluate

JSON, MARKDOWN, PAGE = "report.json", "report.md", "report.html"


def run(args: argparse.Namespace) -> int:
    """Write the report on ``args.study`` to ``args.output`` and print it; return 0.

    Raises:
        UserError: there is no such study, or it has no votes.
    """
    report = evaluate(studies.load(args.study))
    output: Path = args.output or args.study / "report"
    output.mkdir(parents=True, exist_ok=True)
    text = report_pages.markdown(report)
    write_whole(output / JSON, json.dumps(as_json(report), indent=1).encode() + b"\n")
    write_whole(output / MARKDOWN, text.encode())
    write_whole(output / PAGE, report_pages.html(report).encode())
    print(text)
    print(f"written: {', '.join(str(output / name) for name in (JSON, MARKDOWN, PAGE))}")
    return 0


def as_json(report: Report) -> dict[str, Any]:
    """Return the content of report.json; numbers are not rounded."""
    study = report.study
    sets = {name: {"folder": str(rated.folder), "clips": len(rated.clips)} for name, rated in study.sets.items()}
    return {
        "study": {
            "mode": study.mode,
            "questions": study.questions,
            "checks": study.checks,
            "seed": study.seed,
            "sets": sets,
        },
        "intervals": INTERVALS,
        "exclusion": checks.RULE,
        "counts": dataclasses.asdict(report.counts),
        "everybody": _figures_json(report.everybody),
        "attentive": _figures_json(report.attentive),
        "raters": [dataclasses.asdict(rater) for rater in report.raters],
    }


def _figures_json(of: Figures) -> dict[str, Any]:
    result = {name: _plain(getattr(of, name)) for name in ("raters", "votes", "scores", "agreement", "preferences")}
    differences = [{"sets": pair, "scales": _plain(scales)} for pair, scales in of.differences.items()]
    return {**result, "differences": differences, "ratings_per_clip": of.ratings_per_clip}


def _plain(value: Any) -> Any:
    """Return ``value`` with dataclasses as dictionaries."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
