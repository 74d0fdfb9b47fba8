"""The layout of TensorBoard's page "Custom scalars": the curves to compare with one another share a chart.

The charts are grouped by the questions to ask of a run (docs/monitor.md). TensorBoard colours a line by its run and not
by its tag, so the lines of one run in a chart have one colour and differ only by the marks on them. A chart therefore
has one value, with that of the held-out samples if there is one, or the few parts of one whole; and values of different
size, such as the terms of a loss, have a chart each, with an axis of its own.
"""

import re
from collections.abc import Collection, Iterator, Sequence

Layout = dict[str, dict[str, Sequence[str | list[str]]]]

# page: pattern of a tag, title of its chart; a group of the pattern that the title names as \1 makes a chart of its own
# for each of its values. A tag's chart has the same tag of the held-out samples, too.
CHARTS = {
    "Does it learn?": {
        r"loss": "loss",
        r"loss/(.+)": r"loss, \1",
        r"weighted/(.+)": r"term of the loss, times its weight: \1",
        r"discriminator/logit_(?:real|fake)": "discriminator's logits",
        r"discriminator/accuracy": "discriminator's accuracy",
    },
    "At which noise, and by which term?": {
        r"loss_by_time/(.+)/(.+)": r"loss, \1, at timesteps \2",
        r"gradient_norm/(.+)/(.+)": r"gradient of a term, times its weight: \2 at \1",
    },
    "Is it stable?": {
        r"training/gradient_norm": "gradient norm",
        r"training/learning_rate": "learning rate",
        r"training/loss_scale": "loss scale",
        r"training/skipped_(?:steps|samples)|data/quarantined": "left out",
    },
    "Is it quick?": {
        r"speed/samples_per_second": "samples per second",
        r"speed/mfu": "model FLOPs utilisation (MFU)",
        r"speed/data_wait_share": "share of the time that waits for data",
        r"speed/goodput": "goodput",
        r"time/(.+)": r"seconds of pauses: \1",
        r"memory/(gpu|host)_.+": r"memory of the \1, GiB",
    },
}
VALIDATION = "validation/"  # prefix of the tags of the held-out samples


def layout(tags: Collection[str]) -> Layout:
    """Return the charts that have at least one curve among ``tags``, in TensorBoard's format."""
    pages: Layout = {page: dict(_charts(patterns, tags)) for page, patterns in CHARTS.items()}
    return {page: charts for page, charts in pages.items() if charts}


def _charts(patterns: dict[str, str], tags: Collection[str]) -> Iterator[tuple[str, Sequence[str | list[str]]]]:
    """Yield the title of each chart and its lines, as patterns that match whole tags."""
    for pattern, title in patterns.items():
        lines: dict[str, list[str]] = {}
        for tag in sorted(tags):
            match = re.fullmatch(pattern, tag.removeprefix(VALIDATION))
            if match:
                lines.setdefault(match.expand(title), []).append(f"^{re.escape(tag)}$")
        for name, group in lines.items():
            yield name, ["Multiline", group]
