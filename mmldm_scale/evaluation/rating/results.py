"""What a study's votes amount to, of all raters and of those who are not excluded, with counts that add up."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.rating import store
from mmldm_scale.evaluation.rating.figures import Figures, RaterFigures, figures, rater_figures
from mmldm_scale.evaluation.rating.statistics import LEVEL, REPLICATES
from mmldm_scale.evaluation.rating.store import StoredVote
from mmldm_scale.evaluation.rating.study import Study

INTERVALS = (
    f"{LEVEL} % percentile bootstrap, {REPLICATES:,} draws of raters and clips, both with replacement; of shares: "
    "Wilson's, which takes the votes as independent"
)


@dataclass(frozen=True)
class Counts:
    """How many there are. votes = counted + excluded + on_checks.

    Attributes:
        started: raters who opened their first question.
        voted: raters with at least one vote.
        finished: raters who answered everything.
        excluded: raters who failed too many attention checks.
        votes: all of them.
        counted: votes on questions of raters who are not excluded.
        excluded_votes: votes on questions of excluded raters.
        on_checks: votes on attention checks.
        changed: votes that were changed later; the last one counts.
        not_played: votes before all clips of the page had been played to the end.
    """

    started: int
    voted: int
    finished: int
    excluded: int
    votes: int
    counted: int
    excluded_votes: int
    on_checks: int
    changed: int
    not_played: int


@dataclass(frozen=True)
class Report:
    """A report: of all raters (``everybody``), and of those who are not excluded (``attentive``)."""

    study: Study
    counts: Counts
    everybody: Figures
    attentive: Figures
    raters: Sequence[RaterFigures]


def evaluate(study: Study) -> Report:
    """Return the report on the votes of ``study`` so far.

    Raises:
        UserError: there are none.
    """
    started, votes = store.read(study.folder)
    if not any(not vote.question.check for vote in votes):
        raise UserError(f"{study.folder}: no votes yet; {started} raters have begun")
    raters = rater_figures(votes)
    excluded = {rater.rater for rater in raters if rater.excluded}
    everybody = figures(study, votes)
    attentive = figures(study, votes, excluded) if excluded else everybody
    return Report(study, _counts(study, started, votes, raters), everybody, attentive, raters)


def _counts(study: Study, started: int, votes: Sequence[StoredVote], raters: Sequence[RaterFigures]) -> Counts:
    total = study.questions + study.checks
    return Counts(
        started=started,
        voted=len(raters),
        finished=sum(rater.votes + rater.checks == total for rater in raters),
        excluded=sum(rater.excluded for rater in raters),
        votes=len(votes),
        counted=sum(rater.votes for rater in raters if not rater.excluded),
        excluded_votes=sum(rater.votes for rater in raters if rater.excluded),
        on_checks=sum(rater.checks for rater in raters),
        changed=sum(vote.revision > 0 for vote in votes),
        not_played=sum(not vote.vote.played for vote in votes),
    )
