"""Makes the faulty shards of a set again, and nothing else, as the set's own plan describes them.

``repair(folder, workers, timeout, …)`` finishes the set if it is unfinished, reads everything again, removes the shards
that have a fault and makes them again as the run that began the set did: same input, same configuration, same
autoencoder. The set is the only argument.
"""

import functools
from pathlib import Path

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import restore
from mmldm_scale.shards.index import shard_name
from mmldm_scale.shards.json_files import read_json
from mmldm_scale.shards.manifest import MANIFEST, PLAN, Manifest
from mmldm_scale.shards.verify import Findings, verify_set

from ..config import Preparation
from ..launching import process_pool
from ..launching.progress import Progress
from ..sources import open_source
from .clip_plan import ClipPlan
from .clips import make_clips

VERIFY_SECONDS = 3600.0  # until verifying one shard counts as hung


def verify(folder: Path, workers: int) -> Findings:
    """Return what is wrong with the finished set in ``folder``; see :func:`mmldm_scale.shards.verify.verify_set`."""
    with Progress(Manifest.read(folder).samples, "verifying", "samples") as bar:
        return verify_set(
            folder, bar.update, functools.partial(process_pool.map, workers=workers, timeout=VERIFY_SECONDS)
        )


def repair(folder: Path, workers: int, timeout: float, batch_size: int, device: str) -> tuple[Findings, Findings]:
    """Make what is faulty in the set ``folder`` again; return the findings before and after.

    Args:
        workers, timeout: of the decoding processes.
        batch_size, device: of the encoder, for latents.

    Raises:
        UserError: no set was begun in ``folder``, or what it was made of is gone or has changed.
    """
    _finish(folder, workers, timeout, batch_size, device)
    before = verify(folder, workers)
    if not before.shards:
        return before, before
    (folder / MANIFEST).unlink()
    for number in before.shards:
        for suffix in (".json", ".tar"):  # the index first: without it there is no shard
            (folder / f"{shard_name(number)}{suffix}").unlink(missing_ok=True)
    _finish(folder, workers, timeout, batch_size, device)
    return before, verify(folder, workers)


def _finish(folder: Path, workers: int, timeout: float, batch_size: int, device: str) -> None:
    """Make whatever is missing of the set in ``folder``, and its manifest."""
    if not (folder / PLAN).is_file():
        raise UserError(f"{folder}: no shard set was begun here (it has no {PLAN}); give a clip or latent set")
    stored = read_json(folder / PLAN)
    if stored.get("kind") == "clips":
        plan = ClipPlan.parse(stored, folder / PLAN)
        preparation = restore(Preparation, plan.preparation, str(folder / PLAN))
        make_clips(open_source(preparation.source, Path(plan.folder)), folder, preparation, workers, timeout)
        return
    if stored.get("kind") == "samples":
        raise UserError(f"{folder}: contains samples; `mmldm sample --lossless --verify` makes damaged ones again")
    from .latents import make_latents  # takes seconds to import, and clips need none of it

    try:
        clips, autoencoder = folder / stored["source"]["path"], Path(stored["autoencoder"]["path"])
    except (KeyError, TypeError):
        raise UserError(f"{folder / PLAN}: no plan of a latent set; run the command that made this set again") from None
    make_latents(clips, folder, autoencoder, batch_size, device, workers)
