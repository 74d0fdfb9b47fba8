"""MLflow: the server or database that MLFLOW_TRACKING_URI names (sqlite:///runs/mlflow.db needs none).

The run is found by its tag, since MLflow draws ids itself. A project is an experiment; media are artifacts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.runs.media_reader import Medium
from mmldm_scale.trackers.contract import Scalars, TrackedRun

TAG, STEP = "mmldm.run", "samples_seen"
MOST_METRICS, MOST_PARAMS, LONGEST_PARAM = 1000, 100, 6000  # in one call; characters of a value


class MlflowRun:
    """A run at MLflow."""

    def __init__(self, run: TrackedRun) -> None:
        with _translated():
            self._client = MlflowClient()
            known = self._client.get_experiment_by_name(run.project)
            experiment = known.experiment_id if known else self._client.create_experiment(run.project)
            found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.id}'")
            stored = found[0] if found else self._client.create_run(experiment, tags={TAG: run.id}, run_name=run.name)
            self._id = stored.info.run_id
            self.samples_seen = int(stored.data.metrics.get(STEP, -1))
            params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in _flat(run.config).items()]
            for first in range(0, len(params), MOST_PARAMS):
                self._client.log_batch(self._id, params=params[first : first + MOST_PARAMS])
            self._client.update_run(self._id, "RUNNING")
            self.place = f"{self._client.tracking_uri}, experiment {run.project}, run {self._id}"

    def log(self, records: Sequence[Scalars]) -> None:
        """Send ``records``; those that MLflow has already, it recognises by their times."""
        for record in records:
            when, values = int(record.time * 1000), {**record.values, STEP: float(record.samples_seen)}
            with _translated():
                metrics = [Metric(tag, value, when, record.samples_seen) for tag, value in values.items()]
                self._client.log_batch(self._id, metrics=metrics[:MOST_METRICS])

    def show(self, medium: Medium) -> None:
        """Store ``medium`` as the artifact ``TAG/SAMPLES.png``, ``.mp4`` or ``.wav``."""
        with _translated():
            file = medium.file.rename(medium.file.with_name(f"{medium.samples_seen:012d}{medium.file.suffix}"))
            try:
                self._client.log_artifact(self._id, str(file), medium.tag)
            finally:
                file.unlink()

    def flush(self) -> None:
        """Return: each call returned when its content was stored."""

    def close(self) -> None:
        """End the run."""
        with _translated():
            self._client.set_terminated(self._id)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        reason = " ".join(str(error).split())[:300]
        raise (Outage(reason) if error.get_http_status_code() >= 500 else UserError(f"--to mlflow: {reason}")) from None


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by their dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in _flat(sub, f"{prefix}.{key}" if prefix else key).items()}
