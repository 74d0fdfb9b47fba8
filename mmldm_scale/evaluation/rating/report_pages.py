"""A report as Markdown and as a page with charts."""

from collections.abc import Sequence
from pathlib import Path

from mmldm_scale.common.pages import render
from mmldm_scale.evaluation.rating import checks
from mmldm_scale.evaluation.rating.figures import Estimate, Figures, Interval
from mmldm_scale.evaluation.rating.results import INTERVALS, Report
from mmldm_scale.evaluation.rating.store import SCALES

TITLES = dict(zip(SCALES, ("Audio quality", "Video quality", "Audio-video match"), strict=True))
PAPER = ("MM-LDM minus MM-Diffusion, the paper's section 4.3 (single clips of Landscape)", ("+0.52", "+1.58", "+0.30"))

Table = Sequence[Sequence[str]]  # rows of cells, the head first


def markdown(report: Report) -> str:
    """Return the report as Markdown."""
    lines = [f"# Ratings of {', '.join(report.study.sets)}", "", *_facts(report)]
    for heading, shown in _parts(report):
        lines += ["", f"## {heading}", "", _summary(shown)]
        for title, table in _tables(shown):
            lines += ["", f"**{title}**", "", *_markdown_table(table)]
    lines += ["", "## Raters", "", *_markdown_table(_rater_table(report)), ""]
    return "\n".join(lines)


def html(report: Report) -> str:
    """Return the report as a page, which needs no other file."""
    parts = [
        {"heading": heading, "summary": _summary(shown), "charts": _charts(shown), "tables": _tables(shown)}
        for heading, shown in _parts(report)
    ]
    title = f"Ratings of {', '.join(report.study.sets)}"
    template = Path(__file__).with_name("report.html")
    return render(template, title=title, facts=_facts(report), parts=parts, raters=_rater_table(report))


def _parts(report: Report) -> list[tuple[str, Figures]]:
    if not report.counts.excluded:
        return [("All raters (none is excluded)", report.everybody)]
    return [("Without the excluded raters", report.attentive), ("All raters", report.everybody)]


def _facts(report: Report) -> list[str]:
    counts, study = report.counts, report.study
    shown = "Pairs of clips side by side" if study.mode == "pairs" else "Single clips"
    return [
        f"{shown}, blinded, in another order for each rater; scores from 1 (bad) to 5 (excellent).",
        "",
        f"{counts.started} raters began, {counts.voted} voted, {counts.finished} finished, {counts.excluded} excluded. "
        f"{counts.votes:,} votes: {counts.counted:,} counted, {counts.excluded_votes:,} of excluded raters, "
        f"{counts.on_checks:,} on attention checks. {counts.changed:,} were changed by their rater; "
        f"{counts.not_played:,} were given before all clips had been played to the end.",
        "",
        checks.RULE,
        "",
        f"Intervals: {INTERVALS}.",
    ]


def _summary(shown: Figures) -> str:
    spread = ", ".join(f"{clips:,} clips {ratings} times" for ratings, clips in shown.ratings_per_clip.items())
    return f"{shown.raters} raters, {shown.votes:,} votes. Rated: {spread}."


def _tables(shown: Figures) -> list[tuple[str, Table]]:
    head = [TITLES[scale] for scale in SCALES]
    ratings = {name: sum(scores[SCALES[0]].counts) for name, scores in shown.scores.items()}
    means = [
        [name, *(_estimate(scores[scale].mean) for scale in SCALES), f"{ratings[name]:,}"]
        for name, scores in shown.scores.items()
    ]
    tables: list[tuple[str, Table]] = [("Mean scores", [["set", *head, "ratings"], *means])]
    if shown.differences:
        rows = [
            [f"{a} minus {b}", *(_estimate(scales[scale], "+.2f") for scale in SCALES)]
            for (a, b), scales in shown.differences.items()
        ]
        tables.append(("Differences", [["sets", *head], *rows, [PAPER[0], *PAPER[1]]]))
    if shown.preferences:
        rows = [
            [f"{part.sets[0]} or {part.sets[1]}"]
            + [
                _share(count, part.votes, part.intervals[i])
                for i, count in enumerate((part.first, part.none, part.second))
            ]
            + [f"{part.votes:,}"]
            for part in shown.preferences
        ]
        tables.append(("Preferences", [["sets", "the first", "none", "the second", "votes"], *rows]))
    alpha = [_alpha(shown.agreement[scale]) for scale in SCALES]
    tables.append(("Agreement between raters", [["", *head], ["Krippendorff's alpha, ordinal", *alpha]]))
    return tables


def _rater_table(report: Report) -> Table:
    rows = [
        [
            f"rater {rater.rater + 1}",
            f"{rater.votes}",
            f"{rater.failed} of {rater.checks}",
            f"{rater.seconds:.0f} s",
            "excluded" if rater.excluded else "",
        ]
        for rater in report.raters
    ]
    return [["", "votes", "checks failed", "median time on a page", ""], *rows]


def _markdown_table(table: Table) -> list[str]:
    head, *rows = ([cell.replace("|", "\\|") for cell in row] for row in table)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(row)} |" for row in lines]


def _estimate(estimate: Estimate, form: str = ".2f") -> str:
    if estimate.interval is None:
        return f"{estimate.value:{form}}"
    low, high = estimate.interval
    return f"{estimate.value:{form}} ({low:{form}} to {high:{form}})"


def _share(count: int, total: int, interval: Interval) -> str:
    low, high = interval or (0.0, 1.0)
    return f"{count / total:.0%} ({low:.0%} to {high:.0%})"


def _alpha(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _charts(shown: Figures) -> list[dict[str, object]]:
    """Return, for each scale, each set's mean and interval, and its ratings with scores 1 to 5 in percent."""
    charts: list[dict[str, object]] = []
    for scale in SCALES:
        rows: list[dict[str, object]] = []
        for name, scores in shown.scores.items():
            mean, counts = scores[scale].mean, scores[scale].counts
            low, high = mean.interval or (mean.value, mean.value)
            shares = [100 * count / sum(counts) for count in counts]
            rows.append({"name": name, "mean": mean.value, "low": low, "high": high, "shares": shares})
        charts.append({"title": TITLES[scale], "rows": rows})
    return charts
