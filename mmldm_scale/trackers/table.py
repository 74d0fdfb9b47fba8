"""Which trackers there are: ``tracker("wandb")`` returns the function that opens a run there.

A tracker's own package is imported when its adapter is, so that nobody needs the packages of the others. To add one,
write its adapter beside this file and its line in :data:`TRACKERS`. Another package adds one as an entry point of the
group :data:`ENTRY_POINTS`, whose name is the tracker's and whose object is its function.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

from mmldm_scale.common.errors import UserError

if TYPE_CHECKING:  # a command line that is only parsed does not import it
    from mmldm_scale.trackers.contract import OpenRun

ENTRY_POINTS = "mmldm_scale.trackers"  # group of the entry points of other packages
TRACKERS: dict[str, str] = {  # name, also of the extra of setup.cfg: "module:function" of the adapter
    "wandb": "mmldm_scale.trackers.wandb:WandbRun",
    "swanlab": "mmldm_scale.trackers.swanlab:SwanLabRun",
    "trackio": "mmldm_scale.trackers.trackio:TrackioRun",
    "mlflow": "mmldm_scale.trackers.mlflow:MlflowRun",
}


def names() -> list[str]:
    """Return the names of all trackers: those here, then those of other packages."""
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return [*TRACKERS, *sorted(points.names - TRACKERS.keys())]


def tracker(name: str) -> "OpenRun":
    """Return the function that opens a run at the tracker ``name``.

    Raises:
        UserError: there is no such tracker, or its package is not installed.
    """
    module, _, attribute = TRACKERS.get(name, "").partition(":")
    try:
        if module:
            own: OpenRun = getattr(importlib.import_module(module), attribute)
            return own
        for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
            other: OpenRun = point.load()
            return other
    except ModuleNotFoundError as error:
        install = f"pip install 'mmldm_scale[{name}]'" if module else f"install {error.name}"
        raise UserError(f"--to {name}: its package {error.name} is not installed: {install}") from None
    raise UserError(f"--to {name!r:.80}: must be one of {', '.join(names())}")
