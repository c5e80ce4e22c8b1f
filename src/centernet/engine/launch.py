"""Start one process a device as ``torchrun`` does, with its arguments, but end with one line when a process fails."""

import contextlib
import os
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run


def main(args: list[str] | None = None) -> int:
    """Run ``torchrun`` with ``args`` and return the exit status: that of the process that failed first, or 0."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, _hand_on)
    try:
        run(parse_args(args))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(
                f"error: process {rank} (pid {failure.pid}) was ended by {name}; all others are stopped",
                file=sys.stderr,
            )
            return 128 - failure.exitcode
        print(f"error: process {rank} ended with status {failure.exitcode}; all others are stopped", file=sys.stderr)
        return failure.exitcode
    except SignalException as error:
        print(f"error: ended by {error.sigval.name}; all processes are stopped", file=sys.stderr)
        return 128 + error.sigval
    except RuntimeError as error:  # DistError is one
        text = str(error).splitlines()[0]
        if "EADDRINUSE" in str(error):
            text = "the port is in use already; choose another --master_port or --rdzv_endpoint, or use --standalone"
        print(f"error: the processes cannot be started: {text}", file=sys.stderr)
        return 2
    return 0


def _hand_on(number: int, frame) -> None:
    """SIGUSR1 asks for a checkpoint: every process is told."""
    for path in Path("/proc/self/task").glob("*/children"):
        for child in path.read_text(encoding="utf-8").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)


if __name__ == "__main__":
    sys.exit(main())
