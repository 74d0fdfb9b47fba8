"""What PyTorch's own allocator for the CPU hands out, for the tests of counted memory."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def allocated(work: Callable[[], None]) -> int:
    """Return the bytes that PyTorch's allocator had handed out at most while ``work()`` ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as events:
        work()
    now = peak = 0
    for event in events.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
