"""Writing files: completely or not at all, on a full disk, after a kill, and by several processes at once."""

import ast
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tests.helpers.small_disk import in_small_file_system, needs_mount

from centernet.errors import UserError
from centernet.utils import files

SOURCE = Path(files.__file__).parents[2]


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_form_writes_the_whole_file(tmp_path):
    files.write_bytes(tmp_path / "a.bin", b"\x00\xff")
    files.write_text(tmp_path / "a.txt", "方块\n")
    files.write_json(tmp_path / "a.json", {"a": [1, "ä"]}, indent=1)
    with files.atomic_path(tmp_path / "a.png") as path:
        assert path.suffix == ".png" and path.parent == tmp_path
        path.write_bytes(b"image")
    with files.atomic_file(tmp_path / "a.pth") as file:
        torch.save({"x": torch.ones(2)}, file)
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a.txt").read_bytes() == "方块\n".encode()
    assert files.read_json(tmp_path / "a.json") == {"a": [1, "ä"]}
    assert (tmp_path / "a.png").read_bytes() == b"image"
    assert torch.load(tmp_path / "a.pth")["x"].tolist() == [1, 1]
    assert names(tmp_path) == ["a.bin", "a.json", "a.png", "a.pth", "a.txt"]


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_full_disk_keeps_the_earlier_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    monkeypatch.setattr(files.os, failing, full)
    with pytest.raises(UserError) as caught:
        files.write_text(path, "new")
    assert str(caught.value) == f"{path}: cannot be written (disk full); the earlier file is unchanged"
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


@needs_mount
@pytest.mark.parametrize(
    "write",
    [
        "files.write_bytes(path, bytes(1 << 20))",
        "with files.atomic_path(path) as name: name.write_bytes(bytes(1 << 20))",
        # A native writer that reports an error of its own.
        "import torch\nwith files.atomic_file(path) as file: torch.save(torch.ones(1 << 20), file)",
        "import torch\nwith files.atomic_path(path) as name: torch.save(torch.ones(1 << 20), name)",
    ],
)
def test_a_disk_that_is_full_is_named(tmp_path, write):
    code = f'from centernet.utils import files\npath = "a.bin"\nfiles.write_text(path, "old")\n{write}'
    done = in_small_file_system(code, tmp_path, 256)
    expected = "centernet.errors.UserError: a.bin: cannot be written (disk full); the earlier file is unchanged"
    assert done.stderr.splitlines()[-1] == expected, done.stderr
    assert done.stdout.split() == ["a.bin"]


def test_an_exception_of_the_block_passes_and_leaves_nothing(tmp_path):
    for error in (KeyError("x"), KeyboardInterrupt(), RuntimeError("native")):
        with pytest.raises(type(error)), files.atomic_file(tmp_path / "a") as file:
            file.write(b"half")
            raise error
    with pytest.raises(UserError, match="the encoder has written nothing"), files.atomic_path(tmp_path / "a.mp4"):
        pass
    assert names(tmp_path) == []


def test_a_device_is_written_to_and_not_replaced():
    files.write_text(os.devnull, "text")
    assert not Path(os.devnull).is_file()
    with pytest.raises(UserError, match="cannot be written"):
        files.write_text(Path(os.sep), "text")


def test_names_of_any_length(tmp_path):
    for name in ("x" * 255, "方" * 85, "a b\n.txt"):
        files.write_text(tmp_path / name, name)
        assert (tmp_path / name).read_text(encoding="utf-8") == name


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    code = f"from centernet.utils import files\nimport os\nwith files.atomic_path('{tmp_path}/a.txt') as path:\n"
    code += "    path.write_text('half'); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(SOURCE)})
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    other_host = tmp_path / f"{files.PREFIX}elsewhere-1-0-a.txt"
    running = tmp_path / f"{files.PREFIX}{files._host()}-{os.getppid()}-0-a.txt"
    for path in (other_host, running):
        path.write_text("being written")
    files.write_text(tmp_path / "b.txt", "")
    assert not left.exists() and other_host.exists() and running.exists()
    os.utime(other_host, (0, time.time() - files.ABANDONED - 60))
    files.remove_leftovers(str(tmp_path))
    assert not other_host.exists() and running.exists()


def test_a_backup_is_kept_with_or_without_hard_links(tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    for k, content in enumerate((b"1", b"2", b"3", b"4")):
        if k == 3:
            monkeypatch.setattr(files.os, "link", full)
        with files.atomic_file(path, backup=True) as file:
            file.write(content)
        assert path.read_bytes() == content
        assert k == 0 or (tmp_path / "model.pth.bak").read_bytes() == b"%d" % k
    assert names(tmp_path) == ["model.pth", "model.pth.bak"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b" 2}', "line 2, column 6: not valid JSON"),
        (b'{"a": 1,\n "\xff": 2}', "line 2: not valid JSON (not UTF-8 text)"),
        (b"[" * 200_000, "not valid JSON (nested too deeply)"),
        (b"9" * 5000, "not valid JSON (a number is too long)"),
        (b"", "line 1, column 1: not valid JSON"),
        (None, "no such file"),
    ],
)
def test_files_that_are_not_json(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        files.read_json(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_text_and_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + '{"a": "方"}'.encode())
    assert files.read_json(tmp_path / "a") == {"a": "方"} and files.read_text(tmp_path / "a") == '{"a": "方"}'
    (tmp_path / "a").write_bytes(b"one\ntwo \xe9\n")
    with pytest.raises(UserError, match="line 2 is not UTF-8 text"):
        files.read_text(tmp_path / "a")
    with pytest.raises(UserError, match="cannot be read"):
        files.read_text(tmp_path)


def count_up(path: Path, times: int) -> None:
    for _ in range(times):
        with files.file_lock(path.with_name("lock")):
            value = int(path.read_text())
            time.sleep(0.0005)
            path.write_text(str(value + 1))


def test_a_lock_excludes_processes_and_threads(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [kind(target=count_up, args=(path, 20)) for kind in (context.Process, threading.Thread) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert path.read_text() == "120" and names(tmp_path) == ["count"]


def test_a_lock_that_is_not_waited_for(tmp_path):
    code = f"from centernet.utils import files\nwith files.file_lock('{tmp_path}/lock', wait=False) as file:\n"
    code += "    file.write(b'owner'); file.flush(); print('held', flush=True); input()"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        owner.stdout.readline()
        with pytest.raises(BlockingIOError), files.file_lock(tmp_path / "lock", wait=False):
            pass
        owner.kill()
    with files.file_lock(tmp_path / "lock", wait=False) as file:
        file.seek(0)
        assert file.read() == b"owner"
    with pytest.raises(UserError, match="cannot be written"), files.file_lock(tmp_path / "no" / "lock"):
        pass


@pytest.mark.parametrize(
    ("refused", "how"), [((), "hard link"), (("link",), "symbolic link"), (("link", "symlink"), "copy")]
)
def test_link_or_copy(tmp_path, monkeypatch, refused, how):
    (tmp_path / "from").mkdir()
    source, target = tmp_path / "from" / "a.jpg", tmp_path / "b.jpg"
    source.write_bytes(b"image")
    for name in refused:
        monkeypatch.setattr(files.os, name, full)
    target.write_bytes(b"half of an earlier one")
    assert files.link_or_copy(source, target) == how
    assert target.read_bytes() == b"image" and target.is_symlink() == (how == "symbolic link")
    assert files.link_or_copy(source, target) is None
    if how != "hard link":
        target.unlink()
        assert files.link_or_copy(source, target, symbolic=False) == "copy"
    with pytest.raises(FileNotFoundError):
        files.link_or_copy(tmp_path / "none", target)
    assert names(tmp_path) == ["b.jpg", "from"]


def test_only_the_standard_library_is_needed():
    code = "import sys; sys.modules.update(torch=None, numpy=None, cv2=None); import centernet.utils.files"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(SOURCE)}, check=True)


def test_json_of_odd_values_is_text(tmp_path):
    files.write_text(tmp_path / "a.txt", "a \udcff b")  # of a file name that is not UTF-8
    assert (tmp_path / "a.txt").read_bytes() == b"a \xff b"
    files.write_json(tmp_path / "a.json", {"name": "\udcff"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"name": "\udcff"}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system has no /proc")
def test_leftovers_of_processes_that_were_not_reaped_are_removed(tmp_path):
    """In a container without an init process a killed process remains in the table of processes."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, not reaped
    path = tmp_path / f"{files.PREFIX}{files._host()}-{process.pid}-0-a"
    path.write_text("")
    files.remove_leftovers(str(tmp_path))
    assert not path.exists()
    process.wait()


# Calls that write without the module, and why.
OTHER_WRITERS = {
    ("centernet/engine/run_directory.py", "open"): "logs are appended to",
    ("centernet/datasets/loader.py", "open"): "skipped_images.txt is appended to",
    ("centernet/utils/streams.py", "open"): "the null device",
    ("centernet/models/weights.py", "save"): "into the temporary file of atomic_file",
    ("centernet/evaluation/kitti.py", "savefig"): "into the temporary file of atomic_path",
    ("centernet/analysis/plots.py", "savefig"): "into memory",
    ("centernet/export.py", "save"): "into memory",
    ("centernet/diagnostics/operators.py", "save"): "into the temporary file of atomic_path",
    ("centernet/video.py", "write_bytes"): "the temporary file of a video",
    ("centernet/video.py", "VideoWriter"): "the temporary file of a video",
}
WRITERS = {
    *(
        "open",
        "write_text",
        "write_bytes",
        "imwrite",
        "imsave",
        "save",
        "savez",
        "savetxt",
        "tofile",
        "dump",
        "savefig",
    ),
    *("to_csv", "VideoWriter", "copyfile", "copy2"),
}


def test_all_files_are_written_by_one_module():
    """Another call that writes belongs into utils/files.py, or into the table above with its reason."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or name == "centernet/utils/files.py":
                continue
            called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if called in WRITERS and writes(called, call):
                found.add((name, called))
    assert found == OTHER_WRITERS.keys()


def writes(called: str, call: ast.Call) -> bool:
    """Return whether a call of one of ``WRITERS`` writes a file, and not through ``utils/files.py``."""
    owner = getattr(call.func, "value", None)
    if isinstance(owner, ast.Name) and owner.id in ("files", "checkpoints", "self"):
        return False
    if called == "open":
        modes = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        values = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
        return any(set(value) <= set("rwxabt+") and set(value) & set("wxa") for value in values)
    if isinstance(call.func, ast.Name):  # imported: from ..utils.files import write_text
        return called == "copyfile"
    return True
