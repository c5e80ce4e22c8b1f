"""Several processes watch each other: which of them has died, stands still, or is late."""

import os
import platform
import sys
import threading
import time

import torch.distributed as dist

from ..errors import UserError

BEATS = 10  # signs of life within the time limit
LATE = 8  # of them may be missing


class Watchdog(threading.Thread):
    """Tells the others that this process lives, and ends it when another one does not.

    PyTorch's collective calls notice a lost companion late, some only by their time limit, and do not say which one it
    is. So each process writes a count into the store that the launcher keeps, and reads those of the others.

    Attributes:
        limit: seconds after which a process that shows no sign of life is given up.
    """

    def __init__(self, store: dist.Store, rank: int, count: int, limit: float) -> None:
        super().__init__(name="companions", daemon=True)
        self.store, self.rank, self.count, self.limit = store, rank, count, limit
        self.steps = 0  # collective calls begun, in which the processes must agree
        self.meetings = 0
        self.ended = threading.Event()
        self.guard = threading.Lock()  # the connection serves one question at a time

    def wait_for_all(self) -> None:
        """Wait for all ranks to come. Raises UserError when one does not, or when two say they are the same."""
        if self.store.add(f"rank/{self.rank}", 1) > 1:
            raise UserError(f"two processes say that they are rank {self.rank} (environment variable RANK)")
        self._tell(0)
        keys = [f"alive/{rank}" for rank in range(self.count)]
        try:
            self.store.wait(keys)
        except RuntimeError as error:
            missing = [str(rank) for rank, key in enumerate(keys) if not self.store.check([key])]
            raise UserError(
                f"rank {', '.join(missing)} of {self.count} did not come within {self.limit:g} s (--dist_timeout); "
                f"were WORLD_SIZE = {self.count} processes started?"
            ) from error

    def step(self) -> None:
        """A collective call begins."""
        self.steps += 1

    def meet(self) -> None:
        """Wait until all processes have come here; not limited, as long as they show signs of life."""
        self.meetings += 1
        key, pause = f"meeting/{self.meetings}", 0.001
        with self.guard:
            here = self.store.add(key, 1)
        while here < self.count:
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
            with self.guard:
                here = self.store.add(key, 0)

    def leave(self) -> None:
        """The run is complete: stop watching. Rank 0 goes last, for it may keep the store."""
        self.ended.set()
        with self.guard:
            gone = self.store.add("gone", 1)
        while self.rank == 0 and gone < self.count:
            time.sleep(0.01)
            with self.guard:
                gone = self.store.add("gone", 0)

    def first_to_fail(self) -> bool:
        """Whether this process is the first one that has something to report."""
        self.ended.set()
        try:
            with self.guard:
                return self.store.add("failed", 1) == 1
        except (RuntimeError, OSError):  # the process that kept the store is gone
            return True

    def late(self, error: Exception) -> str | None:
        """If ``error`` says that a collective call took too long: what to report."""
        if "imed out" not in str(error) and "imeout" not in str(error):
            return None
        behind = [rank for rank, (_, steps) in self._others().items() if steps < self.steps]
        who = f"rank {', '.join(map(str, behind))}" if behind else "another process"
        return f"error: waited {self.limit:g} s for {who} (--dist_timeout): {self._where(behind)} hangs or is too slow"

    def run(self) -> None:
        """Once in a while: a sign of life, and a look at the others."""
        pause = self.limit / BEATS
        seen: dict[int, tuple[int, int]] = {}
        missed = dict.fromkeys(range(self.count), 0)
        beat = 0
        while not self.ended.wait(pause):
            beat += 1
            try:
                self._tell(beat)
                now = self._others()
            except (RuntimeError, OSError):
                self._end("error: the launcher cannot be reached any more, or its machine is gone")
                return
            for rank, value in now.items():
                # Counted in own beats, not in seconds: a machine that slept does not accuse the others.
                missed[rank] = missed[rank] + 1 if seen.get(rank, (-1, -1))[0] == value[0] else 0
            seen = now
            silent = [rank for rank in now if missed[rank] >= LATE]
            if silent:
                self._end(
                    f"error: rank {', '.join(map(str, silent))} ({self._where(silent)}) shows no sign of life for "
                    f"{LATE * pause:g} s (--dist_timeout {self.limit:g}): stopped, or its machine is gone"
                )
                return

    def _tell(self, beat: int) -> None:
        with self.guard:
            self.store.set(f"alive/{self.rank}", f"{beat} {self.steps} {os.getpid()} {platform.node()}")

    def _others(self) -> dict[int, tuple[int, int]]:
        """Rank to beats and steps of the other processes."""
        ranks = [rank for rank in range(self.count) if rank != self.rank]
        with self.guard:
            values = self.store.multi_get([f"alive/{rank}" for rank in ranks])
        return {rank: tuple(map(int, value.split()[:2])) for rank, value in zip(ranks, values, strict=True)}

    def _where(self, ranks: list[int]) -> str:
        """Process ids and machines of ranks."""
        with self.guard:
            values = self.store.multi_get([f"alive/{rank}" for rank in ranks]) if ranks else []
        places = (value.decode().split(" ", 3)[2:] for value in values)
        return ", ".join(f"pid {pid} on {host}" for pid, host in places) or "it"

    def _end(self, report: str) -> None:
        """Report and end the process, whose main thread may wait inside a collective call for ever."""
        if self.ended.is_set():  # it is ending already
            return
        if self.first_to_fail():
            print(f"[rank {self.rank}] {report}", file=sys.stderr, flush=True)
        os._exit(3)
