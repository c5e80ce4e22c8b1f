"""Start one process a device as ``torchrun`` does, with its arguments, but end with one line when a process fails."""

import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run


def main(args: list[str] | None = None) -> int:
    """Run ``torchrun`` with ``args`` and return the exit status: that of the process that failed first, or 0."""
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
