"""Run code on a small file system that fills up."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def may_mount() -> bool:
    """Return whether this user may mount a file system in a namespace of its own."""
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_mount = pytest.mark.skipif(not may_mount(), reason="no right to mount a file system")


def in_small_file_system(code: str, folder: Path, kib: int) -> subprocess.CompletedProcess:
    """Run Python code in ``folder``, on a file system of so many KiB; its output ends with the names left there."""
    script = f'mount -t tmpfs -o size={kib}k none "$1" && cd "$1" && "$2" -c "$3"; status=$?; ls -A; exit $status'
    command = ["unshare", "-Urm", "sh", "-c", script, "sh", str(folder), sys.executable, code]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
