"""Environment of a process: variables set by its launcher, and limits of the system."""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time

from ..errors import UserError

try:
    import resource
except ImportError:  # Windows lacks these limits
    resource = None  # type: ignore[assignment]


def number(name: str, default: int) -> int:
    """Return an environment variable that a launcher sets to an integer. Raises UserError for another value."""
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UserError(
            f"the environment variable {name} is {text[:40]!r}, not a number; start processes with torchrun"
        )
    return int(text)


def place() -> tuple[int, int, int]:
    """Return rank, world size and local rank set by the launcher. Raises UserError for invalid values."""
    for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        number(name, 0)
    rank, world_size, local_rank = number("RANK", 0), max(number("WORLD_SIZE", 1), 1), number("LOCAL_RANK", 0)
    if rank >= world_size:
        raise UserError(f"RANK is {rank}, but WORLD_SIZE is {world_size}: ranks count from 0; start with torchrun")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if world_size > 1 and missing:
        raise UserError(f"WORLD_SIZE is {world_size}, but {' and '.join(missing)} are not set; start with torchrun")
    return rank, world_size, local_rank


def reports() -> bool:
    """Return whether this process reports errors that occur on all processes: the first one of a machine does.

    A value that no launcher sets, or one that was left behind in the environment of a single process, does not silence
    it.
    """
    try:
        return number("WORLD_SIZE", 1) <= 1 or number("LOCAL_RANK", 0) == 0
    except UserError:
        return True


def is_launched() -> bool:
    """Return whether a launcher has started this process and passes its own signals on."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarts() -> int:
    """Return how many times the launcher has restarted all processes."""
    return number("TORCHELASTIC_RESTART_COUNT", 0)


def share_cores() -> None:
    """Let OpenMP's threads give up their cores soon while they wait. Call before PyTorch is imported.

    libgomp, which PyTorch's packages for Linux bring, spins 300,000 times by default. On a busy machine that takes the
    cores from the threads that are waited for, and a training takes several times as long (benchmarks/README.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def die_with_launcher() -> None:
    """On Linux, end when the launcher ends, however that happens: a killed launcher leaves no orphans.

    Call it early, because a launcher that has ended already is not noticed.
    """
    if sys.platform == "linux" and os.environ.get("WORLD_SIZE", "1") != "1":
        with contextlib.suppress(OSError, AttributeError):
            pr_set_pdeathsig = 1
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def check_launcher(patience: float = 10) -> None:
    """Check that the store of torchrun, which is there before the processes, accepts connections.

    Raises:
        UserError: all connections are refused for so many seconds.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    address = os.environ["MASTER_ADDR"], number("MASTER_PORT", 0)
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise UserError(
                    f"the launcher at {address[0]}:{address[1]} has ended, so this process ends, too"
                ) from None
            time.sleep(0.5)
        except OSError:  # says nothing about the launcher; joining reports what is wrong
            return
        else:
            return


def allow_open_files() -> None:
    """Raise the limit of open files as far as the system allows without privileges."""
    if resource is not None:
        with contextlib.suppress(OSError, ValueError):
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_file_limit() -> int:
    """Return how many files this process may have open."""
    if resource is None:
        return 1 << 20
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def open_files() -> int:
    """Return how many files this process has open, if the system reports it; otherwise a typical number."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 16
