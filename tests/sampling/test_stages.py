import threading
import time
from collections.abc import Iterator

import pytest

from mmldm_scale.sampling.stages import Stages


def test_stages_work_at_the_same_time_and_keep_the_order():
    """The first stage waits in item 2 until the last one has begun item 0, and so on: one after another would hang."""
    begun, done = [threading.Event() for _ in range(6)], []

    def first(item: int) -> int:
        if item >= 2:
            assert begun[item - 2].wait(60)
        return item

    def last(item: int) -> None:
        begun[item].set()
        done.append(item)

    Stages().run(range(6), [first, lambda item: item, last])
    assert done == list(range(6))


def test_a_slow_stage_holds_up_those_before_it():
    taken: list[int] = []
    ahead: list[int] = []

    def items() -> Iterator[int]:
        for item in range(30):
            taken.append(item)
            yield item

    def slow(item: int) -> None:
        time.sleep(0.002)
        ahead.append(len(taken) - item)

    Stages().run(items(), [lambda item: item, slow])
    assert len(ahead) == 30
    assert max(ahead) <= 4  # this one, one that waits, one in the hand of the stage before, and one that it has taken


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_in_a_stage_ends_all_and_is_raised(failing):
    finished: list[int] = []

    def stage(number: int, item: int) -> int:
        if number == failing and item == 2:
            raise ValueError(f"item {item}")
        if number == 2:
            finished.append(item)
        return item

    before = threading.active_count()
    with pytest.raises(ValueError, match="item 2"):
        Stages().run(range(1000), [lambda item, n=n: stage(n, item) for n in range(3)])
    assert threading.active_count() == before
    assert finished in ([], [0], [0, 1])


def test_an_exception_in_the_waiting_thread_ends_a_stage_at_its_next_check():
    stages, begun = Stages(), threading.Event()

    def endless(item: int) -> None:
        begun.set()
        while True:
            stages.check()

    def interrupt() -> None:
        if begun.is_set():
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        stages.run([0], [endless], interrupt, 0.01)
    assert threading.active_count() == before
