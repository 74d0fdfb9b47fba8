"""``mmldm table``: makes one of the paper's tables, or a table of one's own, with one command.

It samples, trains and measures what is missing in the output folder (:mod:`~mmldm_scale.evaluation.tables.sampled_rows`
and :mod:`~mmldm_scale.evaluation.tables.ablation_rows`) by the commands that a user would give, each of which resumes
where it was. Then it writes ``table.html``, ``table.md`` and, last, ``table.json``. A second run finds everything made
and writes the same digits.
"""

import argparse
import json

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.config import load
from mmldm_scale.config.evaluating import Evaluating, MakingTables
from mmldm_scale.evaluation import tables
from mmldm_scale.evaluation.commands import CommandFailed
from mmldm_scale.evaluation.measures import check_count, find_measures
from mmldm_scale.evaluation.tables import ablation_rows, sampled_rows, text
from mmldm_scale.evaluation.tables.content import content
from mmldm_scale.evaluation.tables.request import Measured, Request

JSON, MARKDOWN, HTML = "table.json", "table.md", "table.html"


def run(args: argparse.Namespace) -> int:
    """Make the table that ``args`` (of :mod:`mmldm_scale.evaluation.arguments`) describe; return the exit status.

    Raises:
        UserError: the table, the settings, the data or the weights cannot be used.
    """
    request = _request(args)
    part = ablation_rows if request.definition.ablation else sampled_rows
    if args.check:
        part.check(request)
        return 0
    try:
        measured: Measured | None = part.make(request)
    except CommandFailed as failure:
        return failure.status  # it has said why
    if measured is not None:
        _write(request, measured)
    return 0


def _request(args: argparse.Namespace) -> Request:
    """Return what ``args`` ask for; raise UserError if nothing can be measured."""
    definition = tables.load(args.table)
    settings = load(MakingTables, args.config, args.overrides)
    if args.num_samples is not None:
        check_count(args.num_samples)
    names = args.protocol or definition.protocols
    measures = find_measures(names, Evaluating(weights=settings.weights))
    for each in measures:
        if not each.metrics:
            needed = ", ".join(f"{setting}=PATH" for setting in dict.fromkeys(each.left_out.values()))
            raise UserError(f"protocol {each.label}: no network has weights; give at least one of {needed}")
    return Request(args, definition, settings, measures)


def _write(request: Request, measured: Measured) -> None:
    """Write the table and print it; raise UserError if the disk is full."""
    output, made = request.output, content(request, measured)
    files = {
        HTML: text.page(made),
        MARKDOWN: text.markdown(made),
        JSON: json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    with Leases(output) as leases:
        for name, written in files.items():
            with leases.writing(output / name):
                write_whole(output / name, written.encode())
    print(text.terminal(made))
    print(f"the table is in {output / HTML}, {MARKDOWN} and {JSON}")
