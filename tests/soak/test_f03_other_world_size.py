"""F3: resumed by another number of processes, a run reads the same samples in every step and differs by rounding.

In fp32 by at most 1e-7, relative to the weights and to the losses. In bf16 the gradients of more processes are sums of
rounded sums, 2⁻⁹ off each, in another order, and what AdamW moves the weights by differs by about as much. Where
DeepSpeed keeps and sends gradients in float32, the weights differ by less than 1e-5 in bf16 too; the losses, of weights
rounded to bf16, by a little more. The short form is tests/training/checkpoint/test_reshard.py.
"""

import itertools
import math
import shutil

import pytest

from tests.support.faults import fault_trials
from tests.support.toy_runs import BATCH, SAMPLES, Toys, resumed_from, steps_read, weights

PAIRS = [*itertools.permutations((1, 2, 4), 2)]
STAGES = (1, 2, 3)
SUMS_IN_FLOAT32 = "training.deepspeed={communication_data_type: fp32, data_types: {grad_accum_dtype: fp32}}"
PRECISIONS = {  # the settings; the most that weights and losses may differ by
    "fp32": (("training.precision=fp32",), 1e-7, 1e-7),
    "bf16, gradients summed in float32": (("training.precision=bf16", SUMS_IN_FLOAT32), 1e-5, 3e-5),
    "bf16": (("training.precision=bf16",), 1e-4, 3e-4),
}


@pytest.fixture(scope="module")
def toys(forks, tmp_path_factory) -> Toys:
    return Toys(forks, tmp_path_factory.mktemp("resized"))


def decade(difference: float) -> str:
    return f"1e{math.ceil(math.log10(difference))}" if difference else "0"


@pytest.mark.parametrize("precision", PRECISIONS)
@fault_trials.counts(full=len(PAIRS) * len(STAGES))
def test_another_number_of_processes_changes_nothing_but_rounding(count, toys, precision):
    settings, weight_limit, loss_limit = PRECISIONS[precision]

    def trial(number: int) -> str:
        (first, second), stage = PAIRS[number % len(PAIRS)], STAGES[(number + number // len(PAIRS)) % len(STAGES)]
        options = (*settings, f"training.zero_stage={stage}", "training.learning_rate=1e-4")
        whole = toys.undisturbed(*options)
        half = f"training.total_samples={SAMPLES // 2}"
        begun = toys.train(str(number), *options, half, processes=first)
        assert begun.status == 0, begun.output
        run = toys.train(str(number), *options, processes=second)
        assert (run.status, resumed_from(run)) == (0, SAMPLES // 2), run.output
        assert steps_read(run.run) == [[*range(i, i + BATCH)] for i in range(0, SAMPLES, BATCH)]
        losses, expected = run.losses(), whole.losses()
        apart = float((weights(run) - weights(whole)).norm() / weights(whole).norm())
        off = max(abs(losses[step] / expected[step] - 1) for step in expected)
        assert apart <= weight_limit, f"weights differ by {apart:.1e}"
        assert off <= loss_limit, f"losses differ by {off:.1e}"
        shutil.rmtree(run.run)
        return f"weights within {decade(apart)}, losses within {decade(off)}"

    fault_trials.run(f"F3 on other processes, {precision}", count, trial)
