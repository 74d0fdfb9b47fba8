"""The layout of TensorBoard's page "Custom scalars": curves that belong together share a chart.

The charts are grouped by the questions to ask of a run (docs/monitor.md).
"""

import re
from collections.abc import Collection, Sequence

Layout = dict[str, dict[str, Sequence[str | list[str]]]]

CHARTS = {  # page: chart: patterns of tags, matched from a tag's beginning
    "Does it learn?": {
        "loss": ["loss$", "validation/loss$"],
        "loss, audio": ["loss/audio$", "validation/loss/audio$"],
        "loss, video": ["loss/video$", "validation/loss/video$"],
        "loss by timestep, audio": ["loss_by_time/audio/"],
        "loss by timestep, video": ["loss_by_time/video/"],
        "held-out loss by timestep, audio": ["validation/loss_by_time/audio/"],
        "held-out loss by timestep, video": ["validation/loss_by_time/video/"],
        "terms of the loss": ["term/"],
        "held-out terms of the loss": ["validation/term/"],
        "how strongly each term pulls": ["gradient_norm/"],
        "discriminator's logits": ["discriminator/logit_"],
        "discriminator's accuracy": ["discriminator/accuracy$"],
    },
    "Is it stable?": {
        "gradient norm": ["training/gradient_norm$"],
        "learning rate": ["training/learning_rate$"],
        "loss scale": ["training/loss_scale$"],
        "left out": ["training/skipped_steps$", "training/skipped_samples$", "data/quarantined$"],
    },
    "Is it quick?": {
        "samples per second": ["speed/samples_per_second$"],
        "shares": ["speed/mfu$", "speed/data_wait_share$", "speed/goodput$"],
        "seconds of pauses, by cause": ["time/"],
        "memory, GiB": ["memory/"],
    },
}


def layout(tags: Collection[str]) -> Layout:
    """Return the charts that have at least one curve among ``tags``, in TensorBoard's format."""
    pages: Layout = {
        page: {title: ["Multiline", patterns] for title, patterns in charts.items() if _matches_any(patterns, tags)}
        for page, charts in CHARTS.items()
    }
    return {page: charts for page, charts in pages.items() if charts}


def _matches_any(patterns: Collection[str], tags: Collection[str]) -> bool:
    return any(re.match(pattern, tag) for pattern in patterns for tag in tags)
