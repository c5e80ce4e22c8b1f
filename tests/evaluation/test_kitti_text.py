"""KITTI's text files: result files as the reference writes them, and clear errors for bad ones."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from centernet.errors import UserError
from centernet.evaluation import kitti, kitti_text

SHARED = Path(__file__).parents[2].parent / "shared"
CONFORMANCE = SHARED / "conformance" / "kitti_results.json"
HARD_CASES = SHARED / "data" / "hard_cases" / "kitti"
NAMES = ("Pedestrian", "Car", "Cyclist")

CAR = "Car 0.00 0 -1.56 564.62 174.59 616.43 224.74 1.61 1.66 3.20 -0.69 1.69 25.01 -1.59"
AREA = "DontCare -1 -1 -10 753.33 164.32 798.00 186.74 -1 -1 -1 -1000 -1000 -1000 -10"


def rows(results):
    """``{class: float32 array}`` of JSON's lists."""
    return {int(k): np.array(v, dtype=np.float32).reshape(-1, 13) for k, v in results.items()}


@pytest.fixture(scope="module")
def reference():
    if not CONFORMANCE.exists():
        pytest.skip("no conformance data")
    return json.loads(CONFORMANCE.read_text())


@pytest.mark.parametrize("which", ["all", "peak_thresh_0.2"])
def test_result_files_of_the_reference(reference, tmp_path, which):
    results = {int(i): rows(of_image) for i, of_image in reference["detections"].items()}
    if which != "all":
        results = {i: {k: r[r[:, 12] > 0.2] for k, r in of_image.items()} for i, of_image in results.items()}
    kitti.write_results(results, tmp_path / "results", NAMES)
    written = {path.name: path.read_text() for path in (tmp_path / "results").iterdir()}
    assert written == reference["files"][which]
    # What is read again is what from_rows gives without a file.
    for image_id, of_image in results.items():
        again = kitti.read_labels(tmp_path / "results" / f"{image_id:06d}.txt", with_scores=True)
        direct = kitti.from_rows(of_image, NAMES, decimals=2)
        assert again.names.tolist() == direct.names.tolist()
        np.testing.assert_array_equal(again.rows, direct.rows)


def test_result_text_by_hand(tmp_path):
    row = [-0.001, 10, 20.126, 30.5, 40.004, 1.5, 1.625, 3.875, -5.555, 1, 20.25, 3.14159, 0.987]
    text = kitti_text.result_text({1: [], 2: [row, row], 3: [row]}, NAMES)
    line = "0.0 0 -0.00 10.00 20.13 30.50 40.00 1.50 1.62 3.88 -5.55 1.00 20.25 3.14 0.99\n"
    assert text == f"Car {line}Car {line}Cyclist {line}"
    assert kitti_text.result_text({1: [], 2: [], 3: []}, NAMES) == ""
    with pytest.raises(UserError, match="13 numbers, not 12"):
        kitti_text.result_text({1: [row[:-1]]}, NAMES)
    with pytest.raises(UserError, match=r"not of shape \(1, 12\)"):
        kitti.from_rows({1: [row[:-1]]}, NAMES)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        kitti.write_results({7: {2: [row]}}, tmp_path / "file", NAMES)


def test_label_file(tmp_path):
    path = tmp_path / "000007.txt"
    path.write_bytes(f"{CAR}\r\n\r\n{AREA.replace('DontCare', 'DONTCARE')}".encode())
    found = kitti.read_labels(path)
    assert found.names.tolist() == ["Car", "DontCare"]
    assert found.truncated.tolist() == [0, -1] and found.occluded.tolist() == [0, -1]
    car = [-1.56, 564.62, 174.59, 616.43, 224.74, 1.61, 1.66, 3.20, -0.69, 1.69, 25.01, -1.59]
    assert found.rows[0, :12].tolist() == car and math.isnan(found.score[0])
    assert found.bbox.shape == (2, 4) and found.dimensions[0].tolist() == [1.61, 1.66, 3.2]
    path.write_text("")
    assert len(kitti.read_labels(path)) == 0


def test_folder(tmp_path):
    for name, text in (("000010", f"{CAR}\n"), ("000002", ""), ("readme", "nothing")):
        (tmp_path / f"{name}.txt").write_text(text)
    assert kitti.names_in(tmp_path) == ["000002", "000010"]
    assert [len(one) for one in kitti.read_folder(tmp_path)] == [0, 1]
    assert [len(one) for one in kitti.read_folder(tmp_path, [10, "000002", 10])] == [1, 0, 1]
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / '000003.txt'}: no such label file")):
        kitti.read_folder(tmp_path, [3])
    with pytest.raises(UserError, match="absent: no such folder"):
        kitti.read_folder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no files 000000.txt"):
        kitti.read_folder(tmp_path / "empty")


def test_annotations_give_the_label_file_again(tmp_path):
    path = tmp_path / "000007.txt"
    path.write_text(f"{CAR}\n{AREA}\n")
    expected = kitti.read_labels(path)
    annotations = [
        {
            "category_id": code,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "dim": row[5:8].tolist(),
            "location": row[8:11].tolist(),
            "depth": row[10],
            "alpha": row[0],
            "rotation_y": row[11],
            "truncated": truncated,
            "occluded": occluded,
        }
        for code, row, box, truncated, occluded in zip(
            (2, 9), expected.rows, expected.bbox, expected.truncated, expected.occluded, strict=True
        )
    ]
    found = kitti.from_annotations(annotations, {2: "Car", 9: "DontCare"})
    assert found.names.tolist() == expected.names.tolist()
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.truncated, expected.truncated)
    np.testing.assert_array_equal(found.occluded, expected.occluded)


@pytest.mark.parametrize(
    ("line", "with_scores", "reason"),
    [
        (CAR.rsplit(" ", 1)[0], False, "it has 14 fields instead of 15"),
        (f"{CAR} 0.9", False, "it has 16 fields instead of 15"),
        (CAR, True, "result file: it has 15 fields instead of 16"),
        (CAR.replace("Car", "Spaceship"), False, "'Spaceship' is none of the classes Pedestrian, Car,"),
        (CAR.replace("25.01", "nan"), False, "'nan' (field 14) is not a finite number"),
        (CAR.replace("25.01", "inf"), False, "'inf' (field 14) is not a finite number"),
        (CAR.replace("-1.56", "x"), False, "'x' (field 4) is not a finite number"),
        (f"{CAR} 1e999", True, "'1e999' (field 16) is not a finite number"),
        (CAR.replace("0.00 0", "0.00 0.5"), False, "occlusion '0.5' (field 3) is not an integer"),
        (CAR.replace("616.43", "500"), False, "its box ends before it begins: 564.62 174.59 500 224.74"),
    ],
)
def test_bad_line(tmp_path, line, with_scores, reason):
    path = tmp_path / "000001.txt"
    path.write_text(f"{CAR}{' 0.5' if with_scores else ''}\n\n{line}\n")
    with pytest.raises(UserError) as error:
        kitti.read_labels(path, with_scores)
    text = str(error.value)
    assert text.startswith(f"{path}: line 3 is not a line of a KITTI ") and reason in text and "\n" not in text


def test_unreadable_files(tmp_path):
    path = tmp_path / "000001.txt"
    path.write_bytes(b"\xff\xfe\x00")
    for read in (kitti.read_labels, kitti_text.read_calib, kitti_text.read_camera, kitti_text.read_image_names):
        with pytest.raises(UserError, match="000001.txt: this .* is not a text file"):
            read(path)
        with pytest.raises(UserError, match="000002.txt: no such"):
            read(tmp_path / "000002.txt")
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path)


def test_calib(tmp_path):
    path = tmp_path / "000001.txt"
    numbers = "700 0 600 45.5 0 710 180 -0.5 0 0 1 5e-3"
    path.write_text(f"P3: 1 2 3\n\nP2: {numbers}\nP0:\n")
    assert kitti_text.read_calib(path) == [[700, 0, 600, 45.5], [0, 710, 180, -0.5], [0, 0, 1, 0.005]]
    for text, reason in (
        ("", "it has no line P2"),
        (f"P3: {numbers}", "it has no line P2"),
        (f"P1: 0\nP2: {numbers} 7", "line 2: P2 has to be 12 finite numbers, it has 13"),
        (f"P2: {numbers.replace('45.5', 'nan')}", "line 1: P2 has to be 12 finite numbers"),
        (f"P2: {numbers.replace('710', '0')}", "line 1: the focal lengths in P2 are 700 and 0"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=re.escape(f"{path}: {reason}")):
            kitti_text.read_calib(path)


def test_camera(tmp_path):
    """--calib accepts KITTI's files, and a matrix without its name."""
    path = tmp_path / "camera.txt"
    matrix = [[700, 0, 600, 45.5], [0, 710, 180, -0.5], [0, 0, 1, 0.005]]
    rows = "700 0 600 45.5\n0, 710, 180, -0.5\n0 0 1 5e-3\n"
    for text in (f"P0: 1\nP2: {rows.replace(',', '').replace(chr(10), ' ')}", rows, rows.replace("\n", " ")):
        path.write_text(text)
        assert kitti_text.read_camera(path) == matrix
    path.write_text("700 0 600\n0 710 180\n0 0 1")
    assert kitti_text.read_camera(path) == [[700, 0, 600, 0], [0, 710, 180, 0], [0, 0, 1, 0]]
    for text, reason in (
        ("", "neither a camera file of KITTI with a line 'P2:', nor the 12 or 9 finite numbers"),
        ("700 0 600 45.5 0 710 180", "neither a camera file"),
        (rows.replace("710", "nan"), "neither a camera file"),
        ("focal length 700", "neither a camera file"),
        (f"P3: {rows}", "it has no line P2"),
        ("700 0 0 0 710 0 600 180 1", "the last row of the camera's matrix has to begin with 0 0 1"),
        (rows.replace("700", "-700"), "the focal lengths in the matrix are -700 and 710; they have to be above 0"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=re.escape(f"{path}: {reason}")):
            kitti_text.read_camera(path)


def test_image_names(tmp_path):
    path = tmp_path / "val.txt"
    path.write_text("000007 \r\n\n000001\n")
    assert kitti_text.read_image_names(path) == ["000007", "000001"]
    for text, reason in (
        ("000007\n../../x\n", "line 2: '../../x' is not the name"),
        ("1\n1\n", "line 2: the image 1 is named twice"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=re.escape(f"{path}: {reason}")):
            kitti_text.read_image_names(path)


@pytest.mark.skipif(not HARD_CASES.is_dir(), reason="the shared test data is not here")
def test_hard_cases():
    good = {"label_valid": 6, "label_empty": 0, "label_crlf": 6, "label_no_final_newline": 6, "label_behind_camera": 6}
    bad = {"label_short_line": "line 1 .* 9 fields", "label_unknown_class": "line 1 .*Spaceship"}
    bad |= {"label_nan": r"line 1 .*'nan' \(field 14\)"}
    calibs = dict.fromkeys(("calib_empty", "calib_missing_p2"), "it has no line P2")
    calibs |= {"calib_short_p2": "line 3: P2 .* it has 7", "calib_zero_p2": "line 3: the focal lengths in P2 are 0 "}
    tested = {"calib_valid", *good, *bad, *calibs}
    assert tested == {path.stem for path in HARD_CASES.glob("*.txt")}
    for name, count in good.items():
        assert len(kitti.read_labels(HARD_CASES / f"{name}.txt")) == count
    assert kitti_text.read_calib(HARD_CASES / "calib_valid.txt")[0][3] == 44.85728
    cameras = {**calibs, "calib_empty": "neither a camera file of KITTI"}
    for read, cases in ((kitti.read_labels, bad), (kitti_text.read_calib, calibs), (kitti_text.read_camera, cameras)):
        for name, reason in cases.items():
            with pytest.raises(UserError, match=f"{name}.txt: {reason}"):
                read(HARD_CASES / f"{name}.txt")
    # The last number of a file without a final line end is whole.
    whole, cut = (kitti.read_labels(HARD_CASES / f"label_{n}.txt").rows for n in ("valid", "no_final_newline"))
    np.testing.assert_array_equal(whole, cut)
