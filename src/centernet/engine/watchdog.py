"""Detection of ranks that died, are suspended, hang, or cannot be reached over the network."""

import contextlib
import datetime
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist

from ..errors import UserError
from ..utils.text import print_line
from ..utils.tool import error_line

UNLIMITED = datetime.timedelta(days=20)  # of calls that the watchdog limits; more is too much for 32 bits of ms
HEARTBEATS = 10  # within the time limit
MISSED = 8  # consecutive heartbeats after which a rank is given up
STORE_PATIENCE = 5  # seconds to wait for the store while the process ends
STATUS = 3  # exit status of a process that ends because of another one


class Watchdog:
    """Publish that this rank is alive, and end it when another one stops responding or keeps it waiting too long.

    PyTorch's collective operations detect a lost peer late, and do not name it. So each rank writes a heartbeat to the
    store of the launcher and reads those of its peers.

    Two threads do this: one talks to the store, the other judges what the first has read. Over a network that has been
    cut a call of the store may block indefinitely despite its timeout; the second thread never makes one. Delays are
    counted in own heartbeats, not in seconds: processes that were all suspended and continued do not accuse each other.

    Attributes:
        limit: seconds after which a rank that does not respond, or that the others wait for, ends the run.
        address: where the store is, for messages.
    """

    def __init__(
        self, store: dist.Store, rank: int, world_size: int, limit: float, local_rank: int = 0, address: str = ""
    ) -> None:
        store.set_timeout(UNLIMITED)  # the second thread keeps the time
        self.store, self.rank, self.world_size, self.limit = store, rank, world_size, limit
        self.local_rank, self.address = local_rank, address
        self.steps = 0  # collective operations begun
        self.waiting = 0  # nested collective operations that this rank is in
        self.barriers = 0
        self.places: list[str] = []  # of each rank, once all have joined
        self.stopped = threading.Event()
        self.guard = threading.Lock()  # a connection to the store serves one call at a time
        self.beats, self.exchanges = 0, 0
        self.peers: dict[int, tuple[int, ...]] = {}
        self.store_lost = False

    def join(self, facts: Any) -> list[Any]:
        """Wait for all ranks and return what each gave as ``facts`` (JSON values), in the order of ranks.

        Raises:
            UserError: A rank does not join within the limit, or two processes have the same rank.
        """
        threading.Thread(target=self._exchange, name="heartbeat", daemon=True).start()
        threading.Thread(target=self._monitor, name="watchdog", daemon=True).start()
        if self._call("add", f"rank/{self.rank}", 1) > 1:
            raise UserError(f"two processes have rank {self.rank} (environment variable RANK)")
        place = f"pid {os.getpid()} on {platform.node()}"
        self._call("set", f"joined/{self.rank}", json.dumps([place, facts]))
        missing = list(range(self.world_size))
        deadline, pause = self.beats + HEARTBEATS, 0.001
        while missing := [rank for rank in missing if not self._call("check", [f"joined/{rank}"])]:
            if self.beats > deadline:
                raise UserError(
                    f"rank {', '.join(map(str, missing))} of {self.world_size} did not join within {self.limit:g} s "
                    f"(--dist_timeout); were WORLD_SIZE = {self.world_size} processes started?"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        joined = [json.loads(self._call("get", f"joined/{rank}")) for rank in range(self.world_size)]
        self.places = [place for place, _ in joined]
        return [facts for _, facts in joined]

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """Mark a section in which this rank waits for all others, each of which must come to it as well."""
        self.steps += 1
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1
            self.steps += 1

    def barrier(self) -> None:
        """Wait until all ranks have come here, without a limit, as long as they are alive."""
        self.barriers += 1
        key, pause = f"barrier/{self.barriers}", 0.001
        arrived = self._call("add", key, 1)
        while arrived < self.world_size:
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
            arrived = self._call("add", key, 0)

    def leave(self) -> None:
        """Stop watching at the end of a run, together with all others. Rank 0 leaves last; it may keep the store."""
        self.barrier()
        self.stopped.set()
        gone = self._call("add", "gone", 1)
        while self.rank == 0 and gone < self.world_size:
            time.sleep(0.01)
            gone = self._call("add", "gone", 0)

    def first_to_fail(self, otherwise: bool = True) -> bool:
        """Stop watching, and return whether this is the first rank that has something to report.

        ``otherwise`` is the answer where the store cannot be reached.
        """
        self.stopped.set()
        answer = within(STORE_PATIENCE, lambda: self._call("add", "failed", 1))
        return otherwise if answer is None else answer == 1

    def _call(self, name: str, *arguments: Any) -> Any:
        with self.guard:
            return getattr(self.store, name)(*arguments)

    # The first thread.

    def _exchange(self) -> None:
        """Write a heartbeat and read those of the others, again and again."""
        while True:
            self.beats += 1
            try:
                self._call("set", f"alive/{self.rank}", f"{self.beats} {self.steps}")
                if self.places:
                    others = [rank for rank in range(self.world_size) if rank != self.rank]
                    values = self._call("multi_get", [f"alive/{rank}" for rank in others])
                    self.peers = {
                        rank: tuple(map(int, value.split())) for rank, value in zip(others, values, strict=True)
                    }
                else:
                    self._call("add", "answer", 0)  # to write does not wait for an answer
            except (RuntimeError, OSError):
                self.store_lost = True
                return
            self.exchanges += 1
            if self.stopped.wait(self.limit / HEARTBEATS):
                return

    # The second thread, which must not call the store except through ``within``.

    def _monitor(self) -> None:
        """Judge what the first thread has read, once per heartbeat."""
        pause, where = self.limit / HEARTBEATS, f" at {self.address}" if self.address else ""
        store, position = Stall(), Stall()
        peers: dict[int, Stall] = {}
        while not self.stopped.wait(pause):
            if self.store_lost:
                self._end(f"the store{where} is unreachable: its process or machine was lost")
            elif store.count(self.exchanges) >= MISSED:
                self._end(
                    f"the store{where} has not responded for {MISSED * pause:g} s (--dist_timeout "
                    f"{self.limit:g}): its process may be suspended, or the network to its machine cut"
                )
            if store.stalled:
                continue  # nothing new is known of the others
            seen = self.peers
            silent = [rank for rank in seen if peers.setdefault(rank, Stall()).count(seen[rank][0]) >= MISSED]
            if silent:
                self._end(
                    f"{self._describe(silent)} has not responded for {MISSED * pause:g} s (--dist_timeout "
                    f"{self.limit:g}): it may be suspended, or its machine unreachable"
                )
            if position.count(self.steps if self.waiting else object()) >= HEARTBEATS:
                behind = [rank for rank, (_, steps) in seen.items() if steps < self.steps]
                reason = (
                    f"{self._describe(behind)} hangs or is too slow"
                    if behind
                    else "all ranks are in the same collective operation; is the network between them all right?"
                )
                self._end(f"waited {self.limit:g} s (--dist_timeout): {reason}")

    def _describe(self, ranks: list[int]) -> str:
        return ", ".join(f"rank {rank} ({self.places[rank]})" for rank in ranks)

    def _end(self, error: str) -> None:
        """Report an error and end the process, whose main thread may be blocked in a collective operation."""
        if self.stopped.is_set():  # it is ending already
            return
        if self.first_to_fail(otherwise=self.local_rank == 0):
            with contextlib.suppress(OSError):
                print_line(f"[rank {self.rank}] {error_line(error)}", file=sys.stderr)
        os._exit(STATUS)


class Stall:
    """Counts how many times in a row a value was the same as before."""

    def __init__(self) -> None:
        self.value: Any = None
        self.stalled = 0

    def count(self, value: Any) -> int:
        """Take the current value; return the count."""
        self.stalled = self.stalled + 1 if value == self.value else 0
        self.value = value
        return self.stalled


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return the result of a call that may block or fail, or None if it does not return in time."""
    results: list[Any] = []

    def run() -> None:
        with contextlib.suppress(RuntimeError, OSError):
            results.append(call())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
