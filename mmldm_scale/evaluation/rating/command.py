"""``mmldm rate``: runs the sub-command, and imports what it needs alone."""

import argparse


def run(args: argparse.Namespace) -> int:
    """Serve a study, or report on it; return the exit status."""
    if args.action == "serve":
        from mmldm_scale.evaluation.rating import serve

        return serve.run(args)
    from mmldm_scale.evaluation.rating import report

    return report.run(args)
