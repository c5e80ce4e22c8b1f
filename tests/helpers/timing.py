"""How the time of a computation grows with its input: what tests assert in place of times, which machines vary."""

import time
from collections.abc import Callable


def growth(prepare: Callable[[int], Callable[[], object]], sizes: tuple[int, int]) -> float:
    """Return how many times as long, in CPU time, a computation takes for the second size as for the first.

    Args:
        prepare: makes the input of a size and returns the computation, whose time alone is measured.
        sizes: the smaller and the larger size.
    """
    times = []
    for size in sizes:
        compute = prepare(size)
        started = time.process_time()
        compute()
        times.append(time.process_time() - started)
    return times[1] / max(times[0], 0.05)
