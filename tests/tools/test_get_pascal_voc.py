"""get_pascal_voc.sh against a local server with a tiny VOC.

The official host is reached through a proxy variable that points at the same server, so no test leaves the machine
and each can check whether the official host was asked.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.helpers.downloads import CLOSED, DOWNLOADERS, Handler, error_line, only
from tests.helpers.voc import make_devkit

TESTS = Path(__file__).resolve().parents[1]
TOOLS = TESTS.parent / "src" / "tools"
SCRIPT = TOOLS / "get_pascal_voc.sh"


OFFICIAL = "http://host.robots.ox.ac.uk/pascal/VOC"


pytestmark = pytest.mark.skipif(not (shutil.which("bash") and DOWNLOADERS), reason="needs bash, and curl or wget")

ARCHIVES = {
    "voc2007/VOCtrainval_06-Nov-2007.tar": {
        ("2007", "train"): {"000005": [("dog", 2, 3, 11, 8, 0)], "000007": []},
        ("2007", "val"): {"000009": [("cat", 1, 1, 16, 12, 1), ("person", 4, 4, 4, 4, 0)]},
    },
    "voc2007/VOCtest_06-Nov-2007.tar": {("2007", "test"): {"000001": [("dog", 5, 5, 9, 9, 0)]}},
    "voc2012/VOCtrainval_11-May-2012.tar": {
        ("2012", "train"): {"2008_000002": [("person", 1, 2, 3, 4, 0)]},
        ("2012", "val"): {"2008_000003": [("cat", 1, 2, 3, 4, 0)], "2011_000010": []},
    },
}
FIRST, SECOND, THIRD = ARCHIVES
ANNOTATIONS = {
    f"pascal_{name}.json" for name in ("train2007", "val2007", "train2012", "val2012", "trainval0712", "test2007")
}


@pytest.fixture(scope="session")
def tiny_voc(tmp_path_factory):
    """``{sub-path: bytes}`` of the three archives."""
    archives = {}
    for number, (sub_path, image_sets) in enumerate(ARCHIVES.items()):
        folder = tmp_path_factory.mktemp(f"archive{number}")
        archives[sub_path] = pack(make_devkit(folder / "VOCdevkit", image_sets))
    return archives


def pack(devkit):
    """A devkit as the bytes of a tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(devkit, "VOCdevkit")
    return buffer.getvalue()


@pytest.fixture
def server(tiny_voc):
    """A running server: ``url``, ``files``, ``requests`` so far, ``cuts`` {name: bytes of each next answer}."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.files, server.requests, server.cuts, server.ranges = dict(tiny_voc), [], {}, True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def checksums(tmp_path, tiny_voc):
    """The file for --checksums that fits the tiny archives."""
    path = tmp_path / "sums.txt"
    write_checksums(path, tiny_voc)
    return path


def checksum_line(sub_path, data, size=None):
    return f"{hashlib.md5(data).hexdigest()}  {Path(sub_path).name}  {len(data) if size is None else size}\n"


def write_checksums(path, archives):
    path.write_text("# repacked\n\n" + "".join(checksum_line(name, data) for name, data in archives.items()))


def run(cwd, *argv, proxy=CLOSED, path=None):
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    env |= {"http_proxy": proxy, "no_proxy": "127.0.0.1", "PYTHON": sys.executable, "PATH": path or env["PATH"]}
    command = [shutil.which("bash"), str(SCRIPT), *map(str, argv)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def assert_complete(voc):
    assert {path.name for path in (voc / "annotations").glob("*.json")} == ANNOTATIONS
    merged = json.loads((voc / "annotations" / "pascal_trainval0712.json").read_text())
    assert [image["id"] for image in merged["images"]] == [2008000002, 2008000003, 2011000010, 5, 7, 9]
    assert [item["id"] for item in merged["annotations"]] == [1, 2, 3, 4, 5]
    names = [category["name"] for category in merged["categories"]]
    assert (len(names), names[0], names[7], names[19]) == (20, "aeroplane", "cat", "tvmonitor")
    assert len(list((voc / "images").iterdir())) == 7
    assert (voc / "VOCdevkit" / "VOC2007" / "Annotations" / "000001.xml").is_file()


@pytest.mark.parametrize("downloader", DOWNLOADERS)
def test_whole_run_then_nothing_to_do(tmp_path, server, checksums, downloader):
    path = only(tmp_path / "bin", downloader)
    out = tmp_path / "my data"
    arguments = ["--out", "my data", f"--mirror={server.url}/", "--checksums", checksums]
    result = run(tmp_path, *arguments, path=path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_complete(out / "voc")
    assert [request for request, _ in server.requests] == [f"/{name}" for name in ARCHIVES]
    assert not (out / "voc" / "archives").exists()
    tail = result.stdout.splitlines()[-4:]
    assert tail[:2] == [
        "trainval0712: 6 images (the full set has 16551)",
        "test2007: 1 images (the full set has 4952)",
    ]
    assert tail[2] == f"The data is in {out}/voc. Next:"
    assert tail[3].strip() == f"bash train_full_4p.sh --data_path={out}".replace("my data", "my\\ data")

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = run(tmp_path, *arguments, path=path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines() == tail
    assert len(server.requests) == 3
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def start(cwd, *argv):
    """The script as a process group of its own."""
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    env |= {"http_proxy": CLOSED, "no_proxy": "127.0.0.1", "PYTHON": sys.executable}
    command = [shutil.which("sh"), str(SCRIPT), *map(str, argv)]
    return subprocess.Popen(
        command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def test_three_runs_at_once_download_once(tmp_path, server, checksums):
    """Started with plain sh, as people do; the second and third wait for the first."""
    arguments = ["--out", tmp_path, "--mirror", server.url, "--checksums", checksums]
    processes = [start(tmp_path, *arguments) for _ in range(3)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert_complete(tmp_path / "voc")
    assert sorted(request for request, _ in server.requests) == sorted(f"/{name}" for name in ARCHIVES)
    assert sum("waiting for it" in output for output, _ in outputs) <= 2


@pytest.mark.parametrize("word", ["Downloading", "Unpacking", "Converting", "pascal_val2012.json"])
def test_a_killed_run_is_completed(tmp_path, server, checksums, word):
    """Everything that the script has started is killed when it prints a word."""
    arguments = ["--out", tmp_path, "--mirror", server.url, "--checksums", checksums]
    process = start(tmp_path, *arguments)
    for line in process.stdout:
        if word in line:
            os.killpg(process.pid, signal.SIGKILL)
            break
    else:
        raise AssertionError(f"nothing printed {word}")
    process.communicate()
    result = run(tmp_path, *arguments)
    assert result.returncode == 0, result.stderr
    assert_complete(tmp_path / "voc")
    assert not list((tmp_path / "voc").rglob(".tmp-*"))
    assert not list((tmp_path / "voc").glob(".pascal*"))


@pytest.mark.parametrize("downloader", DOWNLOADERS)
def test_interrupted_download_is_resumed(tmp_path, server, tiny_voc, checksums, downloader):
    path = only(tmp_path / "bin", downloader)
    server.cuts[SECOND] = [4096, 0]
    arguments = ["--out", tmp_path, "--mirror", server.url, "--checksums", checksums]
    line = error_line(run(tmp_path, *arguments, path=path))
    assert f"{server.url}/{SECOND}" in line
    assert (tmp_path / "voc" / "archives" / "VOCtest_06-Nov-2007.tar.part").read_bytes() == tiny_voc[SECOND][:4096]
    # The first run continued, because its first attempt had received something.
    assert server.requests[1:] == [(f"/{SECOND}", None), (f"/{SECOND}", "bytes=4096-")]

    server.requests.clear()
    result = run(tmp_path, *arguments, path=path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert server.requests == [(f"/{SECOND}", "bytes=4096-"), (f"/{THIRD}", None)]
    assert_complete(tmp_path / "voc")


@pytest.mark.parametrize("downloader", DOWNLOADERS)
def test_interrupted_transfer_continues_in_the_same_run(tmp_path, server, checksums, downloader):
    server.cuts[FIRST] = [4096]
    result = run(
        tmp_path,
        *["--out", tmp_path, "--mirror", server.url, "--checksums", checksums],
        path=only(tmp_path / "bin", downloader),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert server.requests[:2] == [(f"/{FIRST}", None), (f"/{FIRST}", "bytes=4096-")]


@pytest.mark.parametrize("downloader", DOWNLOADERS)
@pytest.mark.parametrize(("part", "ranges"), [("whole", True), ("foreign", True), ("longer", True), ("foreign", False)])
def test_part_from_before(tmp_path, server, tiny_voc, checksums, downloader, part, ranges):
    """With any content of the .part file of an earlier run, the result is right."""
    data = {"whole": tiny_voc[FIRST], "foreign": b"x" * 4096, "longer": tiny_voc[FIRST] + b"x"}[part]
    server.ranges = ranges
    archives = tmp_path / "voc" / "archives"
    archives.mkdir(parents=True)
    (archives / "VOCtrainval_06-Nov-2007.tar.part").write_bytes(data)
    result = run(
        tmp_path,
        *["--out", tmp_path, "--mirror", server.url, "--checksums", checksums],
        path=only(tmp_path / "bin", downloader),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert_complete(tmp_path / "voc")


def test_interrupted_unpacking_and_conversion(tmp_path, server, checksums):
    arguments = ["--out", tmp_path, "--mirror", server.url, "--checksums", checksums]
    assert run(tmp_path, *arguments).returncode == 0
    voc = tmp_path / "voc"
    (voc / "VOCdevkit" / "VOC2012" / ".unpacked_VOCtrainval_11-May-2012").unlink()
    (voc / "VOCdevkit" / "VOC2012" / "Annotations" / "2008_000002.xml").write_text("<annota")
    (voc / "annotations" / "pascal_val2007.json").unlink()
    server.requests.clear()
    result = run(tmp_path, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert server.requests == [(f"/{THIRD}", None)]
    assert_complete(voc)


def test_corrupted_archive_is_removed(tmp_path, server, checksums):
    server.files[FIRST] = server.files[FIRST][:-1] + b"x"
    arguments = ["--out", tmp_path, "--mirror", server.url, "--checksums", checksums]
    line = error_line(run(tmp_path, *arguments, proxy=server.url))
    assert f"{server.url}/{FIRST}: MD5 sum " in line
    assert list((tmp_path / "voc").rglob("*.tar*")) == []
    assert server.requests[-1] == (f"{OFFICIAL}/{FIRST}", None)  # after the mirror, the official host


def test_next_mirror_after_a_corrupted_archive(tmp_path, server, checksums):
    server.files |= {f"good/{Path(name).name}": data for name, data in server.files.items()}  # flat
    server.files |= {f"bad/{name}": b"something else" for name in ARCHIVES}
    mirrors = f"{CLOSED},{server.url}/bad"
    arguments = ["--out", tmp_path, "--mirror", mirrors, "--mirror", f"{server.url}/good", "--checksums", checksums]
    result = run(tmp_path, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    first = [request for request, _ in server.requests[:3]]
    assert first == [f"/bad/{FIRST}", f"/good/{FIRST}", f"/good/{Path(FIRST).name}"]
    assert_complete(tmp_path / "voc")


def test_official_host_is_the_last_resort(tmp_path, server, checksums):
    server.files = {f"{OFFICIAL}/{name}": data for name, data in server.files.items()}
    result = run(tmp_path, "--out", tmp_path, "--checksums", checksums, proxy=server.url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_complete(tmp_path / "voc")


def test_official_sums_hold_without_checksums(tmp_path, server):
    line = error_line(run(tmp_path, "--out", tmp_path, "--mirror", server.url))
    assert "instead of c52e279531787c972589f7e41ab4ae64" in line or "not enough space" in line


def test_keep_and_existing_archives(tmp_path, server, tiny_voc, checksums):
    archives = tmp_path / "voc" / "archives"
    archives.mkdir(parents=True)
    (archives / Path(FIRST).name).write_bytes(tiny_voc[FIRST])
    (archives / Path(SECOND).name).write_bytes(b"damaged")
    result = run(tmp_path, "--out", tmp_path, "--mirror", server.url, "--checksums", checksums, "--keep")
    assert result.returncode == 0, result.stdout + result.stderr
    assert [request for request, _ in server.requests] == [f"/{SECOND}", f"/{THIRD}"]
    assert {path.name: path.read_bytes() for path in archives.iterdir()} == {
        Path(name).name: data for name, data in tiny_voc.items()
    }


def test_archives_that_exist_need_no_downloader(tmp_path, tiny_voc, checksums):
    archives = tmp_path / "voc" / "archives"
    archives.mkdir(parents=True)
    for name, data in tiny_voc.items():
        (archives / Path(name).name).write_bytes(data)
    result = run(tmp_path, "--out", tmp_path, "--checksums", checksums, path=only(tmp_path / "bin"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert_complete(tmp_path / "voc")


def replace_archive(server, checksums, sub_path, members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, link in members.items():
            member = tarfile.TarInfo(name)
            if link == "device":
                member.type = tarfile.CHRTYPE
            elif link:
                member.type, member.linkname = tarfile.SYMTYPE, link
            tar.addfile(member)
    server.files[sub_path] = buffer.getvalue()
    write_checksums(checksums, server.files)


@pytest.mark.parametrize(
    "evil",
    [
        {"../evil": None},
        {"VOCdevkit/../../evil": None},
        {"annotations/evil": None},
        {"/evil": None},
        {"VOCdevkit/link": "../../..", "VOCdevkit/link/evil": None},
        {"VOCdevkit/evil": "/etc/hostname"},
        {"VOCdevkit/evil": "device"},
    ],
)
def test_member_outside_the_folder_is_refused(tmp_path, server, checksums, evil):
    replace_archive(server, checksums, FIRST, {"VOCdevkit/VOC2007/innocent": None, **evil})
    out = tmp_path / "a" / "b"
    line = error_line(run(tmp_path, "--out", out, "--mirror", server.url, "--checksums", checksums))
    assert "VOCtrainval_06-Nov-2007.tar: refused to unpack" in line
    assert list(tmp_path.rglob("evil")) == []
    assert not (out / "voc" / "VOCdevkit").exists()


def test_archive_without_its_image_sets(tmp_path, server, checksums):
    replace_archive(server, checksums, FIRST, {"VOCdevkit/VOC2007/readme": None})
    line = error_line(run(tmp_path, "--out", tmp_path, "--mirror", server.url, "--checksums", checksums))
    assert "does not contain VOCdevkit/VOC2007/ImageSets/Main/train.txt" in line


def test_file_that_is_not_an_archive(tmp_path, server, checksums):
    server.files[FIRST] = b"not a tar file"
    write_checksums(checksums, server.files)
    line = error_line(run(tmp_path, "--out", tmp_path, "--mirror", server.url, "--checksums", checksums))
    assert "cannot be unpacked" in line


def test_bad_annotation_is_named_and_fixed_by_another_archive(tmp_path, server, checksums, tiny_voc):
    devkit = make_devkit(tmp_path / "VOCdevkit", {("2007", "test"): {"000001": [("dragon", 5, 5, 9, 9, 0)]}})
    server.files[SECOND] = pack(devkit)
    arguments = ["--out", tmp_path / "out", "--mirror", server.url, "--checksums", checksums]
    write_checksums(checksums, server.files)
    line = error_line(run(tmp_path, *arguments))
    assert "VOC2007/Annotations/000001.xml: the class 'dragon'" in line

    server.files[SECOND] = tiny_voc[SECOND]
    write_checksums(checksums, server.files)
    server.requests.clear()
    result = run(tmp_path, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert server.requests == [(f"/{SECOND}", None)]
    assert_complete(tmp_path / "out" / "voc")


def test_convert_voc_needs_no_package(tmp_path):
    """Conversion runs before anything is installed: Python without its site-packages."""
    make_devkit(tmp_path / "VOCdevkit", {key: value for sets in ARCHIVES.values() for key, value in sets.items()})
    command = [sys.executable, "-I", "-S", str(TOOLS / "convert_voc.py"), "VOCdevkit"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert_complete(tmp_path)
    (tmp_path / "VOCdevkit" / "VOC2007" / "Annotations" / "000001.xml").unlink()
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    path = Path("VOCdevkit", "VOC2007", "Annotations", "000001.xml")
    assert (result.returncode, result.stderr) == (2, f"error: {path}: no such annotation file\n")


@pytest.mark.parametrize("downloader", DOWNLOADERS)
def test_all_places_down(tmp_path, checksums, downloader):
    arguments = ["--out", tmp_path, "--mirror", CLOSED, "--checksums", checksums]
    line = error_line(run(tmp_path, *arguments, path=only(tmp_path / "bin", downloader)))
    assert f"{CLOSED}/{FIRST}: no connection" in line
    assert f"{OFFICIAL}/{FIRST}: no connection" in line
    assert "--mirror" in line


def test_no_downloader(tmp_path, checksums):
    line = error_line(run(tmp_path, "--out", tmp_path, "--checksums", checksums, path=only(tmp_path / "bin")))
    assert "neither curl nor wget" in line


def test_disk_space(tmp_path, server, checksums, tiny_voc):
    checksums.write_text(checksum_line(FIRST, tiny_voc[FIRST], size=10**16))
    line = error_line(run(tmp_path, "--out", tmp_path, "--mirror", server.url, "--checksums", checksums))
    assert f"not enough space in {tmp_path}/voc" in line
    assert server.requests == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--nonsense"], "unknown option '--nonsense'"),
        (["out"], "unknown option 'out'"),
        (["--out"], "--out needs a value"),
        (["--out="], "--out needs a value"),
        (["--mirror", "somewhere"], "--mirror 'somewhere' is not a URL"),
        (["--checksums", "absent.txt"], "cannot read 'absent.txt'"),
    ],
)
def test_bad_option(tmp_path, arguments, reason):
    assert reason in error_line(run(tmp_path, *arguments), status=2)


@pytest.mark.parametrize(
    "text", ["abc  VOCtest_06-Nov-2007.tar", "0" * 32 + "  other.tar", "0" * 32 + "  VOCtest_06-Nov-2007.tar  big"]
)
def test_bad_checksums(tmp_path, text):
    (tmp_path / "sums.txt").write_text(text)
    assert "sums.txt" in error_line(run(tmp_path, "--checksums", "sums.txt"), status=2)


def test_out_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot make the folder file/voc" in error_line(run(tmp_path, "--out", "file"))


def test_help_names_the_default_folder(tmp_path):
    result = run(tmp_path, "--help")
    assert result.returncode == 0
    assert f"{SCRIPT.parents[2]}/data" in result.stdout
    for option in ("--out", "--mirror", "--keep", "--checksums", OFFICIAL):
        assert option in result.stdout
