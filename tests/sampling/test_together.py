"""How many clips are computed together; a GPU's memory is made up."""

import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.sampling.together import CPU_TOGETHER, Together, measure

GPU = torch.device("cuda", 0)


class Memory:
    """A GPU of ``size`` bytes, of which ``weights`` are taken; a stage takes ``each`` for every clip."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int, weights: int, each: int) -> None:
        self.size, self.weights, self.each, self.peak = size, weights, each, weights
        self.trials: list[int] = []
        for name, value in {
            "memory_allocated": lambda _: self.weights,
            "memory_reserved": lambda _: self.weights + 5,
            "mem_get_info": lambda _: (self.size - self.weights - 5, self.size),
            "max_memory_allocated": lambda _: self.peak,
            "reset_peak_memory_stats": self._reset,
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(f"torch.cuda.{name}", value)

    def _reset(self, _: torch.device) -> None:
        self.peak = self.weights

    def stage(self, clips: range) -> None:
        self.trials.append(len(clips))
        self.peak = self.weights + self.each * len(clips)
        if self.peak > self.size:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [
        (1000, 32, 4),  # two stages take 200 a clip: 4 take 800 of the 900 that are free
        (990, 32, 4),
        (980, 32, 2),  # 90 % of 880 are less than 800
        (10_000, 12, 12),
        (150, 32, 1),
    ],
)
def test_the_number_is_doubled_while_memory_for_twice_as_many_is_free(monkeypatch, size, most, expected):
    memory = Memory(monkeypatch, size=size, weights=100, each=100)
    assert measure([memory.stage, memory.stage], most, GPU) == expected
    assert max(memory.trials) <= expected


def test_a_cpu_has_a_fixed_number():
    assert measure([], 8, torch.device("cpu")) == CPU_TOGETHER
    assert measure([], 1, torch.device("cpu")) == 1


def test_used_up_memory_halves_the_number_for_all_that_follows(capsys):
    together, computed = Together(8, "svg"), []

    def compute(part: range) -> list[int]:
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        computed.append(part)
        return list(part)

    results = together.compute(range(100, 112), range(100, 112), compute)
    assert [clip for _, clips in results for clip in clips] == list(range(100, 112))
    assert {len(part) for part in computed} == {2}
    assert capsys.readouterr().err == (
        "svg: the GPU's memory is used up by 8 clips computed together; it goes on with clips_together=4\n"
        "svg: the GPU's memory is used up by 4 clips computed together; it goes on with clips_together=2\n"
    )


def test_what_is_computed_together_depends_on_places_alone_and_the_rest_is_left_out():
    results = Together(3, "svg").compute(range(10, 18), [13, 17], lambda part: part)
    assert [part for part, _ in results] == [range(13, 16), range(16, 18)]


def test_an_odd_last_clip_is_tried_again_alone(capsys):
    """The other stage may hold the memory of four clips at that moment."""
    failed = []

    def compute(part: range) -> range:
        if len(part) == 1 and not failed:
            failed.append(part)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return part

    together = Together(4, "svg")
    assert [part for part, _ in together.compute(range(9), range(9), compute)] == [range(4), range(4, 8), range(8, 9)]
    assert together.count == 1
    assert capsys.readouterr().err.endswith("used up by 1 clip computed together; it goes on with clips_together=1\n")


def test_one_clip_too_many_is_a_users_error():
    def compute(part: range) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="too small for one clip: decoding.pictures=4 .* precision=bf16"):
        Together(2, "svg").compute(range(4), range(4), compute)
