"""get_kitti.sh against a local server with a tiny KITTI.

The official places are reached through proxy variables that point at a closed port, so no test leaves the machine.
"""

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.helpers.downloads import CLOSED, DOWNLOADERS, Handler, error_line, only
from tests.helpers.kitti import make_kitti

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = TESTS.parent / "src" / "tools" / "get_kitti.sh"
OFFICIAL = "https://s3.eu-central-1.amazonaws.com/avg-kitti"

pytestmark = pytest.mark.skipif(not (shutil.which("bash") and DOWNLOADERS), reason="needs bash, and curl or wget")

IMAGES, LABELS, CALIB = (f"data_object_{name}.zip" for name in ("image_2", "label_2", "calib"))
DOP, SUBCNN = "imagesets.tar.gz", "kitti_ids_val.txt"
ARCHIVES = {IMAGES: "image_2", LABELS: "label_2", CALIB: "calib"}
ANNOTATIONS = {f"kitti_{split}_{part}.json" for split in ("3dop", "subcnn") for part in ("train", "val")}
ANNOTATIONS |= {"kitti_trainval.json", "kitti_test.json"}


def pack_zip(root, folder):
    """The files of ``training/folder`` and ``testing/folder`` as the bytes of a zip file, stored as they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for home in ("training", "testing"):
            if (root / home / folder).is_dir():
                archive.write(root / home / folder, f"{home}/{folder}/")
                for path in sorted((root / home / folder).iterdir()):
                    archive.write(path, f"{home}/{folder}/{path.name}")
    return buffer.getvalue()


def pack_image_sets(sets):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in {"._train.txt": "\x00\x05", **{f"{part}.txt": text for part, text in sets.items()}}.items():
            member = tarfile.TarInfo(f"ImageSets/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tiny_kitti(tmp_path_factory):
    """``{name: bytes}`` of the five files."""
    root = make_kitti(tmp_path_factory.mktemp("kitti_files") / "kitti")
    # The list of SubCNN is the number of names, then the numbers; 3DOP's are those of make_kitti.
    files = {name: pack_zip(root, folder) for name, folder in ARCHIVES.items()}
    files[DOP] = pack_image_sets({path.stem: path.read_text() for path in (root / "ImageSets_3dop").iterdir()})
    files[SUBCNN] = b"2\n0\n1\n"
    return files


@pytest.fixture
def server(tiny_kitti):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.files, server.requests, server.cuts, server.ranges = dict(tiny_kitti), [], {}, True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def checksums(tmp_path, tiny_kitti):
    """The file for --checksums that fits the tiny archives; the camera archive and the lists have no sum."""
    path = tmp_path / "sums.txt"
    write_checksums(path, tiny_kitti)
    return path


def write_checksums(path, files, names=(IMAGES, LABELS)):
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}  {len(files[name])}\n" for name in names]
    path.write_text("# repacked\n\n" + "".join(lines))


def run(cwd, *argv, path=None):
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    env |= {"http_proxy": CLOSED, "https_proxy": CLOSED, "no_proxy": "127.0.0.1", "PYTHON": sys.executable}
    env["PATH"] = path or env["PATH"]
    command = [shutil.which("bash"), str(SCRIPT), *map(str, argv)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def assert_complete(folder):
    assert {path.name for path in (folder / "annotations").glob("*.json")} == ANNOTATIONS
    numbers = {}
    for name in ANNOTATIONS:
        data = json.loads((folder / "annotations" / name).read_text())
        numbers[name] = ([image["id"] for image in data["images"]], len(data["annotations"]))
    assert numbers["kitti_3dop_train.json"] == ([1, 0], 4) and numbers["kitti_3dop_val.json"] == ([2], 0)
    assert numbers["kitti_subcnn_train.json"] == ([2], 0) and numbers["kitti_subcnn_val.json"] == ([0, 1], 4)
    assert numbers["kitti_trainval.json"] == ([0, 1, 2], 4) and numbers["kitti_test.json"] == ([5], 0)
    for part, count in (("trainval", 3), ("test", 1)):
        assert len(list((folder / "images" / part).glob("*.png"))) == count
    assert sorted(path.stem for path in (folder / "training" / "label_val").iterdir()) == ["000000", "000001", "000002"]
    assert (folder / "ImageSets_subcnn" / "trainval.txt").read_text() == "000000\n000001\n000002\n"


@pytest.mark.parametrize("downloader", DOWNLOADERS)
def test_whole_run_then_nothing_to_do(tmp_path, server, checksums, downloader):
    path = only(tmp_path / "bin", downloader)
    out = tmp_path / "my data"
    arguments = ["--out", "my data", f"--mirror={server.url}/", "--checksums", checksums]
    result = run(tmp_path, *arguments, path=path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_complete(out / "kitti")
    assert [request for request, _ in server.requests] == [f"/{name}" for name in (*ARCHIVES, DOP, SUBCNN)]
    assert not (out / "kitti" / "archives").exists()
    tail = result.stdout.splitlines()[-6:]
    assert tail[:2] == [
        "3dop_train: 2 images (the full set has 3712)",
        "3dop_val: 1 images (the full set has 3769)",
    ]
    assert tail[4] == f"The data is in {out}/kitti. Next:"
    assert tail[5].strip().endswith(f"--data_path={out}".replace("my data", "my\\ data"))

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = run(tmp_path, *arguments, path=path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines() == tail
    assert len(server.requests) == 5
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("downloader", DOWNLOADERS)
def test_interrupted_download_is_resumed(tmp_path, server, tiny_kitti, checksums, downloader):
    path = only(tmp_path / "bin", downloader)
    server.cuts[LABELS] = [200, 0]
    arguments = ["--out", tmp_path, "--mirror", server.url, "--checksums", checksums]
    line = error_line(run(tmp_path, *arguments, path=path))
    assert f"could not download {LABELS} ({server.url}/{LABELS}: " in line and f"; {OFFICIAL}/{LABELS}: " in line
    part = tmp_path / "kitti" / "archives" / f"{LABELS}.part"
    assert part.read_bytes() == tiny_kitti[LABELS][:200]
    server.requests.clear()
    result = run(tmp_path, *arguments, path=path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert server.requests[:2] == [(f"/{LABELS}", "bytes=200-"), (f"/{CALIB}", None)]
    assert_complete(tmp_path / "kitti")


@pytest.mark.parametrize("name", [LABELS, CALIB, DOP, SUBCNN])
def test_foreign_part_from_before(tmp_path, server, checksums, name):
    """With a sum or without one: what an earlier run or another mirror left does no harm."""
    archives = tmp_path / "kitti" / "archives"
    archives.mkdir(parents=True)
    (archives / f"{name}.part").write_bytes(b"x" * 3)
    result = run(tmp_path, "--out", tmp_path, "--mirror", server.url, "--checksums", checksums)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_complete(tmp_path / "kitti")


def test_interrupted_unpacking_and_conversion(tmp_path, server, checksums):
    arguments = ["--out", tmp_path, "--mirror", server.url, "--checksums", checksums]
    assert run(tmp_path, *arguments).returncode == 0
    folder = tmp_path / "kitti"
    (folder / ".unpacked_data_object_label_2").unlink()
    (folder / "training" / "label_2" / "000001.txt").write_text("Car 0.0")
    (folder / "annotations" / "kitti_subcnn_val.json").unlink()
    (folder / "ImageSets_subcnn" / "val.txt").unlink()
    server.requests.clear()
    result = run(tmp_path, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [request for request, _ in server.requests] == [f"/{LABELS}", f"/{SUBCNN}"]
    assert_complete(folder)


def test_changed_image_set_is_converted_again(tmp_path, server, checksums):
    arguments = ["--out", tmp_path, "--mirror", server.url, "--checksums", checksums]
    assert run(tmp_path, *arguments).returncode == 0
    (tmp_path / "kitti" / "ImageSets_3dop" / "val.txt").write_text("000001\n000002\n")
    assert run(tmp_path, *arguments).returncode == 0
    data = json.loads((tmp_path / "kitti" / "annotations" / "kitti_3dop_val.json").read_text())
    assert [image["id"] for image in data["images"]] == [1, 2]


def test_damaged_files(tmp_path, server, tiny_kitti, checksums):
    """With a sum, and without one by the sums that are inside."""
    middle = tiny_kitti[CALIB].index(b"P2: ")
    for name, data, reason in (
        (LABELS, tiny_kitti[LABELS][:-1] + b"x", "SHA-256 sum "),
        (CALIB, tiny_kitti[CALIB][:middle] + b"X" + tiny_kitti[CALIB][middle + 1 :], "damaged at 'training/calib/"),
        (CALIB, b"not a zip file", f"not a complete {CALIB}"),
    ):
        server.files = {**tiny_kitti, name: data}
        arguments = ["--out", tmp_path, "--mirror", server.url, "--checksums", checksums]
        line = error_line(run(tmp_path, *arguments))
        assert f"{server.url}/{name}: {reason}" in line
        assert not (tmp_path / "kitti" / "archives" / name).exists()


def test_without_a_list(tmp_path, server, checksums):
    """An unavailable split is left out; without any split the script fails; an existing one is used."""
    del server.files[SUBCNN]
    server.files[DOP] = b"damaged"
    arguments = ["--out", tmp_path, "--mirror", server.url, "--checksums", checksums]
    result = run(tmp_path, *arguments)
    assert "no list of the training images" in error_line(result)
    assert f"Continuing without the split subcnn ({server.url}/{SUBCNN}: HTTP status 404;" in result.stdout
    own = tmp_path / "kitti" / "ImageSets_3dop"
    own.mkdir()
    (own / "train.txt").write_text("000001\n")
    (own / "val.txt").write_text("000000\n")
    result = run(tmp_path, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    names = {path.name for path in (tmp_path / "kitti" / "annotations").glob("*.json")}
    assert names == {"kitti_3dop_train.json", "kitti_3dop_val.json"}


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (SUBCNN, b"2\n0\n", "states 2 numbers, and has 1"),
        (SUBCNN, b"2\n0\n9\n", "label_2: 000009, 1 in all"),
        (DOP, pack_image_sets({"train": "000000\n"}), "names no images for val"),
        (DOP, pack_image_sets({"train": "000000\n", "val": "../../evil\n"}), "cannot be read"),
        (DOP, pack_image_sets({"train": "000000\n", "val": "000007\n"}), "label_2: 000007, 1 in all"),
    ],
)
def test_bad_list(tmp_path, server, checksums, name, data, reason):
    server.files[name] = data
    line = error_line(run(tmp_path, "--out", tmp_path, "--mirror", server.url, "--checksums", checksums))
    assert line.startswith(f"error: {tmp_path}/kitti/archives/{name}: ") and reason in line


def with_member(data, name, mode=stat.S_IFREG | 0o644, content=b"x"):
    """A zip file with one member more."""
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        archive.writestr(member, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("../evil", None),
        ("/evil", None),
        ("training/image_2/../../../evil", None),
        ("training/label_2/..", None),
        ("training/label_2/a/evil", None),
        ("training/calib/evil", None),
        ("training/label_2/..\\..\\evil", None),
        ("training/label_2/evil", stat.S_IFLNK | 0o777),
    ],
)
def test_member_outside_its_folder_is_refused(tmp_path, server, tiny_kitti, checksums, name, mode):
    server.files[LABELS] = with_member(tiny_kitti[LABELS], name, mode or stat.S_IFREG | 0o644, b"../../..")
    write_checksums(checksums, server.files)
    out = tmp_path / "a" / "b"
    line = error_line(run(tmp_path, "--out", out, "--mirror", server.url, "--checksums", checksums))
    assert f"{LABELS}: refused to unpack '" in line
    assert list(tmp_path.rglob("*evil*")) == []
    assert not (out / "kitti" / "training" / "label_2").exists()


def test_archive_of_something_else(tmp_path, server, tiny_kitti, checksums):
    server.files[CALIB] = pack_zip(tmp_path, "calib")
    line = error_line(run(tmp_path, "--out", tmp_path, "--mirror", server.url, "--checksums", checksums))
    assert f"{CALIB}: does not contain training/calib" in line
    server.files = {**tiny_kitti, LABELS: b"no zip file"}
    write_checksums(checksums, server.files)
    line = error_line(run(tmp_path, "--out", tmp_path / "b", "--mirror", server.url, "--checksums", checksums))
    assert f"{LABELS}: cannot be unpacked" in line


def test_missing_image_is_named(tmp_path, server, tiny_kitti, checksums):
    root = make_kitti(tmp_path / "source")
    (root / "training" / "image_2" / "000001.png").unlink()
    server.files[IMAGES] = pack_zip(root, "image_2")
    write_checksums(checksums, server.files)
    arguments = ["--out", tmp_path, "--mirror", server.url, "--checksums", checksums]
    result = run(tmp_path, *arguments)
    assert "000001.png, 1 in all" in error_line(result)
    # Other archives repair it: the marker holds the checksum.
    server.files[IMAGES] = tiny_kitti[IMAGES]
    write_checksums(checksums, server.files)
    assert run(tmp_path, *arguments).returncode == 0
    assert_complete(tmp_path / "kitti")


def test_next_mirror(tmp_path, server, checksums):
    server.files |= {f"good/{name}": data for name, data in server.files.items()}
    server.files |= {f"bad/{name}": b"something else" for name in (*ARCHIVES, DOP, SUBCNN)}
    arguments = ["--mirror", f"{CLOSED},{server.url}/bad", "--mirror", f"{server.url}/good", "--checksums", checksums]
    result = run(tmp_path, "--out", tmp_path, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [request for request, _ in server.requests[:2]] == [f"/bad/{IMAGES}", f"/good/{IMAGES}"]
    assert_complete(tmp_path / "kitti")


def test_keep_and_files_that_exist_need_no_downloader(tmp_path, tiny_kitti, checksums):
    archives = tmp_path / "kitti" / "archives"
    archives.mkdir(parents=True)
    for name, data in tiny_kitti.items():
        (archives / name).write_bytes(data)
    path = only(tmp_path / "bin")
    result = run(tmp_path, "--out", tmp_path, "--checksums", checksums, "--keep", path=path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_complete(tmp_path / "kitti")
    assert {path.name: path.read_bytes() for path in archives.iterdir()} == tiny_kitti
    (archives / LABELS).write_bytes(b"damaged")
    (tmp_path / "kitti" / ".unpacked_data_object_label_2").unlink()
    line = error_line(run(tmp_path, "--out", tmp_path, "--checksums", checksums, path=path))
    assert "neither curl nor wget" in line


def test_known_sums_hold_without_checksums(tmp_path, server):
    line = error_line(run(tmp_path, "--out", tmp_path, "--mirror", server.url))
    assert "instead of 351c5a2aa0cd9238b50174a3a62b846bc5855da256b82a196431d60ff8d43617" in line or "not enough" in line


def test_disk_space(tmp_path, server, checksums):
    checksums.write_text(f"{'0' * 64}  {IMAGES}  {10**16}\n")
    line = error_line(run(tmp_path, "--out", tmp_path, "--mirror", server.url, "--checksums", checksums))
    assert f"not enough space in {tmp_path}/kitti" in line
    assert server.requests == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--nonsense"], "unknown option '--nonsense'"),
        (["out"], "unknown option 'out'"),
        (["--out"], "--out needs a value"),
        (["--mirror="], "--mirror needs a value"),
        (["--mirror", "somewhere"], "--mirror 'somewhere' is not a URL"),
        (["--checksums", "absent.txt"], "cannot read 'absent.txt'"),
    ],
)
def test_bad_option(tmp_path, arguments, reason):
    assert reason in error_line(run(tmp_path, *arguments), status=2)


@pytest.mark.parametrize("text", [f"abc  {LABELS}", f"{'0' * 64}  other.zip", f"{'0' * 64}  {LABELS}  big"])
def test_bad_checksums(tmp_path, text):
    (tmp_path / "sums.txt").write_text(text)
    assert "sums.txt" in error_line(run(tmp_path, "--checksums", "sums.txt"), status=2)


def test_out_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot make the folder file/kitti" in error_line(run(tmp_path, "--out", "file"))


def test_help_names_the_default_folder(tmp_path):
    result = run(tmp_path, "--help")
    assert result.returncode == 0
    assert f"{SCRIPT.parents[2]}/data" in result.stdout
    for text in ("--out", "--mirror", "--keep", "--checksums", OFFICIAL, IMAGES, DOP, SUBCNN):
        assert text in result.stdout
