"""test.py and demo.py from end to end, with a network of random weights on a very small dataset."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tests.helpers.training import LAUNCH, ROOT, load_script, run_here
from torch import nn

from centernet.datasets.pascal import PascalVOC
from centernet.models import create_model, save_model
from centernet.options import model_metadata
from centernet.opts import opts

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A file with a network whose maps vary over the image, and its description."""
    opt = opts().parse(["ctdet", "--dataset", "pascal", "--arch", "res_18", "--input_res", "64"])
    torch.manual_seed(0)
    model = create_model("res_18", opt.heads, opt.head_conv)
    for module in model.modules():
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.05)
    for head in opt.heads:
        nn.init.normal_(model.get_submodule(head)[2].weight, std=0.3)
    nn.init.constant_(model.get_submodule("wh")[2].bias, 4)
    path = tmp_path_factory.mktemp("model") / "model_last.pth"
    save_model(path, 3, model, extra={"model": model_metadata(opt)})
    return str(path)


@pytest.fixture
def score(checkpoint, tiny_voc, tmp_path):
    """Run test.py on the small dataset."""

    def score(*arguments: str) -> subprocess.CompletedProcess:
        paths = ("--load_model", checkpoint, "--data_path", str(tiny_voc), "--exp_dir", str(tmp_path / "exp"))
        return run_here("test", "ctdet", *paths, "--exp_id", "default", *arguments)

    return score


def results_of(tmp_path: Path, exp_id: str = "default") -> list:
    return json.loads((tmp_path / "exp/ctdet" / exp_id / "results_pascal_val.json").read_text())


# test.py


def test_results_and_scores(score, tmp_path):
    folder = tmp_path / "exp/ctdet/default"
    folder.mkdir(parents=True)
    of_training = {name: folder / name for name in ("opt.txt", "results.json", "skipped_images.txt")}
    for path in of_training.values():
        path.write_text("of the training")
    done = score()
    assert done.returncode == 0, done.stderr
    results = results_of(tmp_path)
    assert [len(images) for images in results] == [4] * 21 and not any(results[0])
    for k in range(4):
        rows = [row for cls in results[1:] for row in cls[k]]
        assert len(rows) == 100 and all(len(row) == 5 and 0 < row[4] < 1 for row in rows)
    times = "tot .* |load .* |pre .* |net .* |dec .* |post .* |merge ".replace("|", r"\|")
    assert re.search(f"^seconds per image: {times}", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^mAP \d\.\d{4}$", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^AP/\w+ \d\.\d{4}$", done.stdout, re.MULTILINE)) == 20
    assert f"results: {folder / 'results_pascal_val.json'}" in done.stdout
    assert all(path.read_text() == "of the training" for path in of_training.values())
    written = {"results_pascal_val.json", "report_pascal_val.html", "report_pascal_val.json"}
    assert {path.name for path in folder.iterdir()} == {*of_training, *written}  # no folder of logs


def test_results_are_beside_the_checkpoint(checkpoint, tiny_voc, tmp_path, monkeypatch):
    model, exp = tmp_path / "mine/model_last.pth", tmp_path / "exp"
    model.parent.mkdir()
    model.write_bytes(Path(checkpoint).read_bytes())
    arguments = ("ctdet", "--load_model", str(model), "--data_path", str(tiny_voc), "--exp_dir", str(exp))
    done = run_here("test", *arguments, "--print_iter", "2")
    assert done.returncode == 0 and "\nctdet/mine: res_18 on pascal, 4 images" in done.stdout, done.stderr
    assert re.findall(r"^(\w+)\| \[", done.stdout, re.MULTILINE) == ["mine", "mine"]
    names = {"results_pascal_val.json", "report_pascal_val.html", "report_pascal_val.json"}
    assert {path.name for path in model.parent.iterdir()} == {model.name, *names} and not exp.exists()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != model.parent)  # as of a read-only disk
    assert run_here("test", *arguments).returncode == 0
    assert {path.name for path in (exp / "ctdet/default").iterdir()} == names


def test_some_of_the_images(score, tmp_path):
    """Images that are not looked at are in no score: the whole result is that of data of the others alone."""
    done = score("--num_iters", "2")
    assert done.returncode == 0, done.stderr
    assert "the first 2 of 4 images at" in done.stdout and "note: --num_iters" not in done.stdout
    assert all(not any(images[2:]) for images in results_of(tmp_path))
    report = json.loads((tmp_path / "exp/ctdet/default/report_pascal_val.json").read_text())
    assert report["images"] == 2


def test_other_checkpoints_are_named_by_their_file(checkpoint, tiny_voc, tmp_path):
    model = tmp_path / "downloads/ctdet_voc.pth"
    model.parent.mkdir()
    model.write_bytes(Path(checkpoint).read_bytes())
    done = run_here("test", "ctdet", "--load_model", str(model), "--data_path", str(tiny_voc), "--num_iters", "1")
    assert done.returncode == 0 and "\nctdet/ctdet_voc: res_18 on pascal" in done.stdout, done.stderr


def test_a_test_of_some_images_notes_that_it_replaces_one_of_more(score, tmp_path):
    folder = tmp_path / "exp/ctdet/default"
    for images, note in (
        ("2", ""),
        ("4", ""),
        ("4", ""),
        ("3", f"\nnote: replaces the results of 4 images in {folder} by those of 3\n"),
    ):
        done = score("--num_iters", images)
        assert done.returncode == 0, done.stderr
        assert note in done.stdout and ("note: replaces" in done.stdout) == bool(note)
    (folder / "report_pascal_val.json").write_text("[")
    assert "note: replaces" not in score("--num_iters", "2").stdout


def test_reading_ahead_does_not_change_the_results(score, tmp_path):
    assert score("--exp_id", "ahead", "--print_iter", "1").returncode == 0
    done = score("--exp_id", "alone", "--not_prefetch_test", "--print_iter", "2")
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path, "ahead") == results_of(tmp_path, "alone")
    lines = [line for line in done.stdout.splitlines() if line.startswith("alone| [")]
    assert [line.split("|")[1] for line in lines] == [" [0/4]", " [2/4]"]
    assert re.search(r"\|Tot: .* \|ETA: .* \|tot \d\.\d{3} \|load \d\.\d{3} ", lines[0])


def test_two_processes_give_the_results_of_one(score, checkpoint, tiny_voc, tmp_path):
    assert score("--exp_id", "one", "--flip_test").returncode == 0
    command = [*LAUNCH, "--nproc_per_node=2", str(ROOT / "src/test.py"), "ctdet", "--exp_id", "two", "--flip_test"]
    command += ["--load_model", checkpoint, "--data_path", str(tiny_voc), "--exp_dir", str(tmp_path / "exp")]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, two = results_of(tmp_path, "one"), results_of(tmp_path, "two")
    for cls_one, cls_two in zip(one, two, strict=True):
        for rows_one, rows_two in zip(cls_one, cls_two, strict=True):
            np.testing.assert_allclose(np.reshape(rows_one, (-1, 5)), np.reshape(rows_two, (-1, 5)), atol=1e-3)
    assert "2 process(es)" in done.stdout and done.stdout.count("mAP ") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--flip_test"],
        ["--keep_res"],
        ["--test_scales", "0.75,1", "--keep_res", "--flip_test"],
    ],
    ids=" ".join,
)
def test_a_batch_gives_the_results_of_single_images(score, tmp_path, arguments):
    """Images of two sizes alternate, so with --keep_res those of a batch are not neighbors."""
    assert score("--exp_id", "one", *arguments).returncode == 0
    done = score("--exp_id", "batch", "--batch_size", "3", *arguments)
    assert done.returncode == 0, done.stderr
    assert "has no effect" not in done.stdout
    for cls_one, cls_batch in zip(results_of(tmp_path, "one"), results_of(tmp_path, "batch"), strict=True):
        for rows_one, rows_batch in zip(cls_one, cls_batch, strict=True):
            np.testing.assert_allclose(np.reshape(rows_one, (-1, 5)), np.reshape(rows_batch, (-1, 5)), atol=1e-3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--flip_test"],
        ["--keep_res"],
        ["--nms"],
        ["--K", "20"],
        ["--input_res", "96"],
        ["--test_scales", "0.5,1,1.5", "--keep_res", "--flip_test"],
        ["--test_scales", "0.5,1", "--keep_discarded"],
    ],
    ids=" ".join,
)
def test_options_of_tests(score, tmp_path, arguments):
    assert score("--exp_id", "plain", "--not_prefetch_test").returncode == 0
    done = score(*arguments, "--not_prefetch_test")
    assert done.returncode == 0, done.stderr
    results = results_of(tmp_path)
    assert results != results_of(tmp_path, "plain")
    count = 20 if "--K" in arguments else 100
    for k in range(4):
        assert 0 < sum(len(cls[k]) for cls in results[1:]) <= count


def test_fix_res_is_what_happens_anyway(score, tmp_path):
    assert score("--exp_id", "plain").returncode == 0
    assert score("--fix_res").returncode == 0
    assert results_of(tmp_path) == results_of(tmp_path, "plain")


def test_resume_takes_the_checkpoint_of_the_run(score, tmp_path, checkpoint):
    folder = tmp_path / "exp/ctdet/trained"
    folder.mkdir(parents=True)
    (folder / "model_last.pth").write_bytes(Path(checkpoint).read_bytes())
    for exp_id in ("trained", "trainedTEST"):
        done = score("--load_model", "", "--resume", "--exp_id", exp_id)
        assert done.returncode == 0, done.stderr
        assert f"loaded {folder / 'model_last.pth'}, epoch 3" in done.stdout
    assert results_of(tmp_path, "trained") == results_of(tmp_path, "trainedTEST")


def test_images_of_a_test(score, tmp_path):
    done = score("--debug", "4")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "exp/ctdet/default/debug").iterdir()}
    assert names == {f"{k}_{name}.png" for k in range(7, 11) for name in ("ctdet", "gt", "pred_hm_1.0", "out_pred_1.0")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--load_model", ""], "error: --load_model: needs the checkpoint"),
        (["--load_model", "no.pth"], "error: no.pth: no such checkpoint file"),
        (["--load_model", "", "--resume"], "model_last.pth: no such checkpoint file"),
        (["--data_path", "no/such"], "error: --data_path no/such: this folder does not exist"),
        (["--trainval"], "error: --trainval: the dataset pascal has no test split"),
        (["--arch", "dla_34"], "error: --arch dla_34: the network in "),
        (["--batch_size", "2", "--not_prefetch_test"], "error: --batch_size: with --not_prefetch_test "),
        (["--test_scales", "1,0.001"], "error: --test_scales 0.001: nothing is left of an image of "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_ends_test_with_one_line(score, arguments, message):
    done = score(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_broken_image_is_named(score, tiny_voc):
    (tiny_voc / "voc/images/000009.jpg").write_bytes(b"no image")
    done = score()
    assert done.returncode == 2
    assert "000009.jpg: cannot read image: not an image file, or corrupt" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("task", ["ctdet", "multi_pose", "exdet"])
def test_test_dev_of_coco(task, tmp_path):
    """``--trainval``: the images of test-dev, which have no annotations, and results for the evaluation server."""
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/test2017").mkdir()
    for image_id in (12, 3):
        cv2.imwrite(str(tmp_path / f"coco/test2017/{image_id:012d}.jpg"), np.full((60, 80, 3), image_id, np.uint8))
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 80, "height": 60} for i in (12, 3)]
    categories = [{"id": k, "name": str(k)} for k in range(1, 91)]
    content = {"info": {}, "licenses": [], "images": images, "categories": categories}
    (tmp_path / "coco/annotations/image_info_test-dev2017.json").write_text(json.dumps(content))
    opt = opts().parse([task, "--arch", "res_18", "--head_conv", "8", "--input_res", "64"])
    path = tmp_path / "model.pth"
    save_model(path, 1, create_model("res_18", opt.heads, opt.head_conv), extra={"model": model_metadata(opt)})
    paths = ("--load_model", str(path), "--data_path", str(tmp_path), "--exp_dir", str(tmp_path / "exp"))
    done = run_here("test", task, *paths, "--trainval", "--num_workers", "0", "--K", "5")
    assert done.returncode == 0, done.stderr
    assert "image_info_test-dev2017.json: no annotations to score against" in done.stdout
    assert not list(tmp_path.glob("report_*"))
    results = json.loads((tmp_path / f"results_{opt.dataset}_test.json").read_text())
    fields = {"image_id", "category_id", "bbox", "score"}
    if task != "exdet":  # a network of random weights finds none
        assert {one["image_id"] for one in results} == {3, 12}
        assert results[0].keys() == fields | ({"keypoints"} if task == "multi_pose" else set())


# demo.py


@pytest.fixture
def demo(checkpoint, tmp_path):
    """Run demo.py, on a machine without a display."""

    def demo(*arguments: str) -> subprocess.CompletedProcess:
        return run_here("demo", "ctdet", "--load_model", checkpoint, "--exp_dir", str(tmp_path / "exp"), *arguments)

    return demo


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def found_lines(output: str) -> list[str]:
    """Return the lines about the detections of an image, without its name and the milliseconds."""
    pattern = r"((?:image|video) .*?): (?:nothing|\d+ \S.*)  \d+ ms"
    return [match[1] for line in output.splitlines() if (match := re.fullmatch(pattern, line))]


def test_demo_of_an_image(demo, checkpoint, tmp_path, tiny_voc):
    image = tiny_voc / "voc/images/000007.jpg"
    done = demo("--demo", str(image), "--vis_thresh", "0")
    assert done.returncode == 0, done.stderr
    folder = Path(checkpoint).parent / "demo"  # of the model's run
    assert names_in(folder) == ["000007_ctdet.png"]
    assert done.stderr == f"no display: images go to {folder}\n"
    assert found_lines(done.stdout) == ["image 1/1 000007.jpg"]
    assert re.search(r"^found: \d+ \w+, .*\d+ \w+$", done.stdout, re.MULTILINE)
    assert re.search(r"^seconds per image: tot \d\.\d{4} \|load \d", done.stdout, re.MULTILINE)
    drawn, plain = cv2.imread(str(folder / "000007_ctdet.png")), cv2.imread(str(image))
    zoom = -(-480 // max(plain.shape))  # small images are enlarged
    assert drawn.shape == (plain.shape[0] * zoom, plain.shape[1] * zoom, 3)
    assert not np.array_equal(drawn, cv2.resize(plain, drawn.shape[1::-1], interpolation=cv2.INTER_CUBIC))
    assert demo("--demo", str(image), "--exp_id", "mine").returncode == 0
    assert names_in(tmp_path / "exp/ctdet/mine/demo") == ["000007_ctdet.png"]


def make_images(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for name in names:
        (folder / name).write_bytes(cv2.imencode(Path(name).suffix.lower(), image)[1].tobytes())


def test_demo_of_a_folder(demo, tmp_path):
    folder = tmp_path / "images"
    make_images(folder, "b.JPG", "a.png", "c.bmp", "d.webp", "e.jpeg", "a.jpg")
    (folder / "notes.txt").write_text("no image")
    done = demo("--demo", str(folder), "--output_dir", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert names_in(tmp_path / "out") == [f"{name}_ctdet.png" for name in ("a.jpg", "a.png", "b", "c", "d", "e")]
    names = ("a.jpg", "a.png", "b.JPG", "c.bmp", "d.webp", "e.jpeg")
    assert found_lines(done.stdout) == [f"image {k}/6 {name}" for k, name in enumerate(names, start=1)]
    assert f"6 image(s), saved in {tmp_path / 'out'}" in done.stdout
    assert done.stderr == "" and not (tmp_path / "exp").exists()


def test_demo_names_folders_that_it_does_not_read(demo, tmp_path):
    folder = tmp_path / "images"
    make_images(folder, "a.png")
    make_images(folder / "b", "b.png")
    (folder / "labels").mkdir()
    (folder / "labels/a.txt").write_text("0 0.5 0.5 0.1 0.1")
    done = demo("--demo", str(folder), "--output_dir", str(tmp_path / "out"))
    assert found_lines(done.stdout) == ["image 1/1 a.png"]
    note = f"note: --demo {folder}: the images and videos in 1 subfolder(s) are not read\n"
    assert done.stdout.startswith(note)
    (folder / "a.png").unlink()
    done = demo("--demo", str(folder))
    assert done.returncode == 2 and done.stderr.endswith("); subfolders are not read\n")


def test_frames_of_a_video_beside_it_have_files_of_their_own(demo, tmp_path):
    folder = tmp_path / "images"
    make_images(folder, "clip_000001.png", "clip_2.png")
    make_clip(folder / "clip.avi", 2)
    done = demo("--demo", str(folder), "--output_dir", str(tmp_path / "out"), "--save_txt")
    assert done.returncode == 0, done.stderr
    names = ["clip.avi_000001.txt", "clip.avi_000002.txt", "clip_000001.txt", "clip_2.txt"]
    assert names_in(tmp_path / "out/labels") == names


def test_demo_continues_after_a_bad_file_and_counts_it(demo, tmp_path):
    folder = tmp_path / "images"
    make_images(folder, "a.png", "c.png")
    (folder / "b.png").write_text("no image")
    (folder / "d.mp4").write_text("no video")
    make_clip(folder / "e.avi", 2)
    done = demo("--demo", str(folder), "--output_dir", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    frames = ["video 5/5 e.avi frame 1/2", "video 5/5 e.avi frame 2/2"]
    assert found_lines(done.stdout) == ["image 1/5 a.png", "image 3/5 c.png", *frames]
    assert f"\nimage 2/5: {folder / 'b.png'}: cannot read image" in done.stdout
    assert f"\nvideo 4/5: {folder / 'd.mp4'}: this video cannot be read\n" in done.stdout
    assert "; 2 file(s) could not be read\n" in done.stdout
    assert f"2 image(s) and 2 frame(s), saved in {tmp_path / 'out'}" in done.stdout
    for name in ("a.png", "c.png", "e.avi"):
        (folder / name).unlink()
    done = demo("--demo", str(folder))
    assert done.returncode == 2 and done.stderr.endswith("none of its 2 files can be read\n")


def make_clip(path: Path, count: int) -> str:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    assert writer.isOpened()
    for k in range(count):
        writer.write(np.full((48, 64, 3), 60 * k % 256, np.uint8))
    writer.release()
    return str(path)


def test_demo_of_a_video(demo, tmp_path):
    path = make_clip(tmp_path / "clip.avi", 3)
    done = demo("--demo", path, "--output_dir", str(tmp_path / "out"), "--debug", "2", "--flip_test")
    assert done.returncode == 0, done.stderr
    kinds = ("ctdet", "out_pred_1.0", "pred_hm_1.0")
    assert names_in(tmp_path / "out") == [f"clip_{kind}.mp4" for kind in kinds]
    for kind in kinds:
        capture = cv2.VideoCapture(str(tmp_path / "out" / f"clip_{kind}.mp4"))
        assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and capture.get(cv2.CAP_PROP_FPS) == 5
    # The frames come in their order: they get brighter.
    capture = cv2.VideoCapture(str(tmp_path / "out" / "clip_ctdet.mp4"))
    brightness = [capture.read()[1].mean() for _ in range(3)]
    assert brightness == sorted(brightness) and brightness[2] - brightness[0] > 60
    assert found_lines(done.stdout) == [f"video 1/1 clip.avi frame {k}/3" for k in (1, 2, 3)]
    assert f"3 frame(s), saved in {tmp_path / 'out'}" in done.stdout


def test_demo_of_a_video_that_ends_early(demo, tmp_path):
    path = Path(make_clip(tmp_path / "clip.avi", 30))
    path.write_bytes(path.read_bytes()[:6000])
    done = demo("--demo", str(path), "--output_dir", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    count = len(found_lines(done.stdout))
    assert 0 < count < 15
    assert f"\nwarning: video 1/1 clip.avi: only {count} of 30 frames could be read\n" in done.stdout


def test_demo_writes_results_labels_and_crops(demo, tmp_path):
    make_images(tmp_path / "images", "a.png", "b.png")
    make_clip(tmp_path / "images/c.avi", 2)
    out = tmp_path / "out"
    done = demo(
        *("--demo", str(tmp_path / "images"), "--output_dir", str(out), "--vis_thresh", "0", "--K", "4"),
        *("--save_json", "--save_txt", "--save_crops"),
    )
    assert done.returncode == 0, done.stderr
    entries = json.loads((out / "detections.json").read_text())
    assert [(Path(one["image"]).name, one.get("frame")) for one in entries] == [
        *(("a.png", None), ("b.png", None), ("c.avi", 1), ("c.avi", 2))
    ]
    assert (entries[0]["width"], entries[0]["height"]) == (50, 40) and len(entries[0]["detections"]) == 4
    assert names_in(out / "labels") == ["a.txt", "b.txt", "c_000001.txt", "c_000002.txt"]
    lines = (out / "labels/a.txt").read_text().splitlines()
    for one, line in zip(entries[0]["detections"], lines, strict=True):
        assert one.keys() == {"class", "class_id", "score", "bbox"}
        cls, *numbers = line.split()
        x, y, w, h = one["bbox"]
        x1, y1, x2, y2 = np.clip([x / 50, y / 40, (x + w) / 50, (y + h) / 40], 0, 1)
        np.testing.assert_allclose(
            [float(n) for n in numbers], [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], atol=1e-3
        )
        assert int(cls) == one["class_id"] - 1
    crops = sorted(path.relative_to(out / "crops") for path in (out / "crops").rglob("*.jpg"))
    assert {path.parent.name for path in crops} <= set(PascalVOC.class_names)
    assert {path.name.rpartition("_")[0] for path in crops} <= {"a", "b", "c_000001", "c_000002"} and crops


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_was_found_before_a_signal_is_saved(demo, tmp_path, monkeypatch, number):
    path, script = make_clip(tmp_path / "clip.avi", 50), load_script("demo")
    original = script.Demo._record

    def record(self, *arguments):  # the third frame is counted, but neither recorded nor written
        if self.frames == 3:
            os.kill(os.getpid(), number)
        original(self, *arguments)

    monkeypatch.setattr(script.Demo, "_record", record)
    out = tmp_path / "out"
    done = demo("--demo", path, "--output_dir", str(out), "--save_json")
    assert done.returncode == 128 + number
    assert done.stderr == f"stopped by {number.name}; what was found so far is saved\n"
    assert len(json.loads((out / "detections.json").read_text())) == 3
    assert names_in(out) == ["clip_ctdet.mp4", "detections.json"]
    assert cv2.VideoCapture(str(out / "clip_ctdet.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert f"\n3 frame(s), saved in {out}\n" in done.stdout
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored(demo, tmp_path, monkeypatch):
    path, script = make_clip(tmp_path / "clip.avi", 3), load_script("demo")
    original = script.Demo._record

    def record(self, *arguments):
        os.kill(os.getpid(), signal.SIGHUP)
        original(self, *arguments)

    monkeypatch.setattr(script.Demo, "_record", record)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        done = demo("--demo", path, "--output_dir", str(tmp_path / "out"))
        assert done.returncode == 0 and "3 frame(s), saved in" in done.stdout, done.stderr
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_output_folder_that_cannot_be_made(demo, tmp_path):
    make_images(tmp_path / "images", "a.png")
    (tmp_path / "out").write_text("a file")
    done = demo("--demo", str(tmp_path / "images"), "--output_dir", str(tmp_path / "out"))
    assert done.returncode == 2 and "saved" not in done.stdout and not found_lines(done.stdout)
    assert done.stderr.startswith(f"error: --output_dir {tmp_path / 'out'}: cannot be written (")


def test_ffmpeg_is_silent_about_a_broken_video(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(99))
    code = "import sys; from centernet.video import open_video; open_video(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "broken.mp4")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("broken.mp4: this video cannot be read\n")


@pytest.mark.parametrize("suffix", [".m4v", ".webm", ".MTS", ".dat", ""])
def test_videos_of_any_suffix(demo, tmp_path, suffix):
    path = Path(make_clip(tmp_path / "clip.avi", 2)).rename(tmp_path / f"clip{suffix}")
    done = demo("--demo", str(path), "--output_dir", str(tmp_path / "out"))
    assert done.returncode == 0 and "2 frame(s), saved in" in done.stdout, done.stderr


def test_an_image_of_any_suffix(demo, tmp_path):
    make_images(tmp_path / "images", "a.png")
    path = (tmp_path / "images/a.png").rename(tmp_path / "a.dat")
    done = demo("--demo", str(path), "--output_dir", str(tmp_path / "out"))
    assert done.returncode == 0 and "1 image(s), saved in" in done.stdout, done.stderr


def test_esc_ends_the_demo(demo, tmp_path, tiny_voc, monkeypatch):
    shown = []

    def show(images, folder, prefix, show, delay=0):
        shown.append((list(images), show, delay))
        return 27

    monkeypatch.setattr(load_script("demo"), "show_or_save", show)
    done = demo("--demo", str(tiny_voc / "voc/images"))
    assert done.returncode == 0 and "1 image(s)" in done.stdout
    assert shown == [(["ctdet"], True, 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: --demo: needs an image, a folder, a video, a camera (webcam or a number), or an address"),
        (["--demo", "no.jpg"], "error: --demo no.jpg: no such file or folder"),
        (["--demo", "no.avi"], "error: --demo no.avi: no such file or folder"),
        (["--demo", "731"], "error: --demo 731: no camera was found"),
        (
            ["--demo", "rtsp://me:secret@127.0.0.1:9/x"],
            "error: --demo rtsp://127.0.0.1:9/x: this stream cannot be opened",
        ),
        (["--demo", "EMPTY"], "no images or videos in this folder"),
        (["--demo", "EMPTY/x.png"], "x.png: cannot read image: not an image file, or corrupt"),
        (["--demo", "EMPTY/x.mp4"], "x.mp4: this video cannot be read"),
        (["--demo", "IMAGE", "--load_model", ""], "error: --load_model: needs the checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_ends_demo_with_one_line(demo, tmp_path, tiny_voc, arguments, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = [
        argument.replace("EMPTY", str(empty)).replace("IMAGE", str(tiny_voc / "voc/images/000007.jpg"))
        for argument in arguments
    ]
    for name in ("x.png", "x.mp4"):
        if any(argument.endswith(name) for argument in arguments):
            (empty / name).write_text("something else")
    done = demo(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
