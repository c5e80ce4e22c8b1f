"""Read and write files: atomic writes, JSON, locks, and links. Needs the standard library only.

Every file of the project is written through this module: under a unique temporary name in the target's folder,
flushed to the disk, then renamed. A reader finds the earlier file or the new one, never a part of it. Text is UTF-8.
"""

import contextlib
import errno
import io
import itertools
import json
import os
import platform
import re
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no fcntl; locks are ineffective there
    fcntl = None  # type: ignore[assignment]

PREFIX = ".tmp-"  # of temporary names: PREFIX host-pid-number-name
# A path that cannot be looked at, which ``Path.is_file`` and the like raise instead of answering.
INACCESSIBLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)
ABANDONED = 24 * 3600.0  # seconds after which a temporary file of another host counts as a leftover

_numbers = itertools.count()
_cleaned: set[str] = set()
_thread_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, sync: bool = True, backup: bool = False) -> Iterator[Path]:
    """Yield a temporary path with the same suffix for a library to write to; move it to ``path`` at the end.

    The temporary file is removed if the block fails.

    Args:
        path: the file to write. Its folder must exist.
        sync: flush it to the disk before it is renamed, about 10 ms. For many files that are useless without one
            another, call ``os.sync`` once instead.
        backup: keep the previous file as ``<path>.bak``.

    Raises:
        UserError: the file cannot be written, or the block has written nothing.
    """
    path = Path(path)
    if _is_special(path):
        with write_errors(path):
            yield path
        return
    temporary = _temporary(path)
    try:
        with write_errors(path, atomic=True):
            yield temporary
            if not temporary.is_file():
                raise UserError(f"{path}: cannot be written (the encoder has written nothing)")
            if sync:
                with open(temporary, "r+b") as file:
                    os.fsync(file.fileno())
            if backup and path.is_file():
                _keep_backup(path)
            os.replace(temporary, path)
            if sync:
                _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, sync: bool = True, backup: bool = False) -> Iterator[BinaryIO]:
    """Yield a binary file to write to; it becomes ``path`` at the end. See ``atomic_path``."""
    with atomic_path(path, sync, backup) as temporary:
        file = _RecordingWriter(io.FileIO(temporary, "w"))
        try:
            with file:
                yield file
        except Exception as error:
            if file.error is None or file.error is error:
                raise
            raise file.error from error  # native writers (torch.save) replace it by another error


class _RecordingWriter(io.BufferedWriter):
    """A buffered writer that keeps its first error."""

    error: OSError | None = None

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def write_bytes(path: str | os.PathLike, content: bytes, sync: bool = True) -> None:
    """Write a file atomically. Raises UserError when it cannot be written."""
    with atomic_file(path, sync) as file:
        file.write(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file atomically. Raises UserError when it cannot be written."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: str | os.PathLike, value: Any, **options: Any) -> None:
    """Write a value as JSON atomically; ``options`` of ``json.dumps``. Raises UserError when it cannot be written."""
    write_text(path, json.dumps(value, **options))


def read_text(path: str | os.PathLike) -> str:
    """Return the content of a UTF-8 text file. Raises UserError when it cannot be read, naming the line."""
    content = _read(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8 text") from error


def read_json(path: str | os.PathLike) -> Any:
    """Return the value of a JSON file.

    Raises:
        UserError: the file is missing, cannot be read, or is not JSON; the message names the file and the line.
    """
    content = _read(path)
    try:
        return json.loads(content)  # of bytes: UTF-8, with or without a byte order mark, or UTF-16
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line}: not valid JSON (not UTF-8 text)") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise UserError(f"{path}: not valid JSON ({reason})") from error


def _read(path: str | os.PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error


@contextlib.contextmanager
def file_lock(path: str | os.PathLike, wait: bool = True) -> Iterator[BinaryIO]:
    """Hold an exclusive lock between processes, on any machine that shares the folder, while the block runs.

    The operating system releases it when the process ends, for any reason. Processes that are forked meanwhile do not
    hold it. With ``wait`` threads of one process exclude each other as well, and the lock file is removed at the end.
    The lock has no effect between processes where the platform or the file system has none.

    Args:
        path: the lock file, made if missing.
        wait: wait for the lock; otherwise fail at once if another process holds it.

    Yields:
        The open lock file, for reading and writing.

    Raises:
        BlockingIOError: without ``wait``, another process holds the lock.
        UserError: the lock file cannot be written.
    """
    path = Path(path)
    with _thread_locks[os.path.abspath(path)] if wait else contextlib.nullcontext():
        while True:
            with write_errors(path):
                file = open(path, "a+b")  # noqa: SIM115 (closed below)
            try:
                _lock(file, wait)
            except BaseException:
                file.close()
                raise
            if not wait or _is_file(file, path):
                break
            file.close()  # its last holder has removed it
        try:
            yield file
        finally:
            if wait:
                with contextlib.suppress(OSError):  # Windows does not remove open files
                    path.unlink(missing_ok=True)
            file.close()


def _lock(file: BinaryIO, wait: bool) -> None:
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(error.errno, error.strerror) from error
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _is_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


def link_or_copy(source: str | os.PathLike, target: str | os.PathLike, symbolic: bool = True) -> str | None:
    """Make ``target`` a link to or a copy of the file ``source``; an existing target is replaced atomically.

    Returns:
        ``hard link``, ``symbolic link`` or ``copy``: the first that the file system can do; None if the target is
        that file already, or a file of the same size.

    Raises:
        UserError: the target cannot be written.
        OSError: the source cannot be read.
    """
    source, target = Path(source).resolve(), Path(target)
    size = source.stat().st_size
    if target.exists() and (target.samefile(source) or target.stat().st_size == size):
        return None
    temporary = _temporary(target)
    try:
        with write_errors(target):
            how = _link(source, temporary, symbolic)
            if how == "copy":
                with open(source, "rb") as content, open(temporary, "wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):  # two names of one file: renaming did nothing
            temporary.unlink(missing_ok=True)
    return how


def _link(source: Path, target: Path, symbolic: bool) -> str:
    with contextlib.suppress(OSError):
        os.link(source, target)
        return "hard link"
    if symbolic:
        with contextlib.suppress(OSError, ValueError):  # Windows: another drive
            # Relative, so that the data folder can be moved as a whole.
            os.symlink(os.path.relpath(source, target.parent.resolve()), target)
            return "symbolic link"
    return "copy"


@contextlib.contextmanager
def write_errors(path: str | os.PathLike, atomic: bool = False) -> Iterator[None]:
    """Convert an OSError of the block, and any error on a full disk, into a UserError that names ``path``.

    ``atomic``: the message adds that an earlier file is unchanged.
    """
    unchanged = "; the earlier file is unchanged" if atomic and os.path.isfile(path) else ""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)}){unchanged}") from error
    except (RuntimeError, ValueError) as error:  # of a library
        if not is_disk_full(Path(path).parent):
            raise
        raise UserError(f"{path}: cannot be written (disk full){unchanged}") from error


def reason(error: Exception) -> str:
    """Return why a file operation failed, in a few words; ``disk full`` where it is that."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "disk full" if error.errno == errno.ENOSPC else "disk full: the quota is used up"
        return error.strerror or str(error)
    return str(error)


def inaccessible(error: OSError) -> str | None:
    """Return one line about a path that cannot be looked at; None for any other error."""
    if error.errno not in INACCESSIBLE or not error.filename:
        return None
    return f"{error.filename}: {error.strerror}"


def is_disk_full(folder: str | os.PathLike) -> bool:
    """Return whether the file system of a folder is practically full."""
    try:
        return shutil.disk_usage(folder).free < 1 << 16
    except OSError:
        return False


def _is_special(path: Path) -> bool:
    """Return whether a path is a device or a pipe, which cannot be replaced by a file."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _keep_backup(path: Path) -> None:
    """Give the file a second name, ``<path>.bak``, so that ``path`` exists at all times."""
    backup = path.with_name(f"{path.name}.bak")
    temporary = _temporary(backup)
    try:
        os.link(path, temporary)
        os.replace(temporary, backup)
    except OSError:  # a file system without hard links
        os.replace(path, backup)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):  # some file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _host() -> str:
    return re.sub(r"\W", "", platform.node())[:32] or "host"


def _temporary(path: Path) -> Path:
    """Return an unused name in the folder of ``path``, after removing what ended processes have left there."""
    folder = os.path.abspath(path.parent)
    if folder not in _cleaned:
        _cleaned.add(folder)
        remove_leftovers(folder)
    # The end of the name only: the whole may be longer than a name can be.
    return path.parent / (f"{PREFIX}{_host()}-{os.getpid()}-{next(_numbers)}-{path.name[-40:]}")


def remove_leftovers(folder: str) -> None:
    """Remove the temporary files of processes that no longer exist; of other hosts, those older than a day."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = re.match(rf"{re.escape(PREFIX)}(\w+)-(\d+)-\d+-", entry.name)
            if match is None:
                continue
            with contextlib.suppress(OSError):
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED
                if old if match[1] != _host() else not _is_running(int(match[2])):
                    os.unlink(entry.path)


def _is_running(pid: int) -> bool:
    if os.name != "posix":
        return pid == os.getpid()  # open files cannot be removed there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Return whether a process has ended without being reaped, which not every first process of a container does."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] == "Z"
        )
    except (OSError, IndexError):  # not available
        return False
