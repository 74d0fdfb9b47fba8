"""F4: a DiT's fresh run is the same on any number of processes, with any accumulation and any number of workers.

Each sample's latents, noise, timestep and conditions are the same to the bit, and the losses to 1e-6. The short forms
are in tests/training: test_loop.py and test_dit.py.
"""

import itertools
from pathlib import Path

import pytest

from tests.support.datasets.latent_sets import write_latents
from tests.support.faults import fault_trials
from tests.support.run_results import Finished

KINDS = [*itertools.product((1, 2, 4), (1, 4), (0, 2))]  # processes, accumulation, workers
BATCH, STEPS = 16, 6
OPTIONS = (
    *("model.depth=2", "model.width=16", "model.heads=2", "model.context_tokens=2", "model.context_width=4"),
    *("training.precision=fp32", f"training.global_batch={BATCH}", f"training.total_samples={BATCH * STEPS}"),
    *(
        f"training.{name}_every={BATCH * every}"
        for name, every in (("log", 1), ("checkpoint", STEPS), ("preview", STEPS))
    ),
)


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents") / "latents", (30, 30))


def samples_of(run: Path) -> list[str]:
    """Return the digests of the samples read, each once, by position."""
    rows = sorted((int(position), digest) for position, digest in map(str.split, (run / "samples").open()))
    assert [position for position, _ in rows] == [*range(BATCH * STEPS)]
    return [digest for _, digest in rows]


@fault_trials.counts(full=len(KINDS))
def test_processes_accumulation_and_workers_change_nothing(count, forks, latents, tmp_path):
    def train(number: int) -> tuple[list[str], dict[int, float]]:
        processes, accumulation, workers = KINDS[number]
        run = tmp_path / str(number)
        micro = f"training.micro_batch={BATCH // (processes * accumulation)}"
        where = (f"shards={latents}", f"run={run}", micro, f"training.workers={workers}")
        status, said = forks(processes, "train_dit", *where, *OPTIONS)
        assert status == 0, said
        return samples_of(run), Finished(run, status, said).losses()

    expected = train(0)

    def trial(number: int) -> str:
        (samples, losses) = train(number) if number else expected
        assert samples == expected[0]
        assert losses == pytest.approx(expected[1], rel=1e-6)
        return "the same to the bit" if losses == expected[1] else "losses off by rounding"

    fault_trials.run("F4 the same run anywhere", count, trial)
