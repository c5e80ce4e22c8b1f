"""Check whether a device computes what the CPU computes.

    python src/tools/check_device.py --short
    python src/tools/check_device.py ctdet --levels operators,steps

Takes the options of main.py, and its own:

  --levels LIST        levels to run, comma-separated; default: all of settings,
                       probe, operators, layers, steps, repeat, processes
  --short              settings and probe: seconds
  --iterations N       iterations of level steps, default 20
  --nproc N            processes of level processes, default 2
  --save_failing DIR   write every failing operator call as a file and a script
  --replay FILE        run one of these files alone

Without --dataset the synthetic dataset of the task is used, without
--batch_size batches of 2 images. The tables are also written to
<run folder>/device_check.json and device_check.html. Exit status 0: sound,
1: deviations found, 2: the check could not run. docs/ACCELERATORS.md explains
the levels.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.diagnostics import check


def main(argv: list[str] | None = None) -> int:
    """Check the device and return the exit status."""
    return check.main(argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
