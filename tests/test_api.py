"""The Python interface ``centernet.CenterNet``, and the examples of the documents that use it."""

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.checkpoints import checkpoint
from tests.helpers.documents import blocks
from tests.helpers.training import ENVIRONMENT, ROOT

from centernet import CenterNet, Result
from centernet.detector import create_detector
from centernet.engine.trainer import Trainer
from centernet.errors import UserError
from centernet.models import create_model, save_model
from centernet.opts import opts
from centernet.visualization import Canvas

README, INFERENCE = (
    ["\n".join(lines) for language, lines in blocks(ROOT / path) if language == "python"]
    for path in ("README.md", "docs/INFERENCE.md")
)
SHAPES = ROOT / "images" / "shapes.jpg"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("api"), "ctdet", "--dataset", "pascal")


@pytest.fixture(scope="module")
def model(weights):
    return CenterNet(weights, device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two images in YOLO's layout."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for name in "ab":
            cv2.imwrite(str(folder / "images" / split / f"{name}.jpg"), np.full((64, 64, 3), 70, np.uint8))
            (folder / "labels" / split / f"{name}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    return folder


def write_video(path, count=3):
    """Write frames of different brightness."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for k in range(count):
        writer.write(np.full((48, 64, 3), 100 * k % 256, np.uint8))
    writer.release()


def test_importing_the_package_does_not_import_pytorch():
    code = (
        "import sys, centernet; assert 'torch' not in sys.modules and 'cv2' not in sys.modules; print(dir(centernet))"
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_the_example_of_the_readme(weights, tmp_path, monkeypatch, capsys):
    (code,) = README
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp/ctdet/sample").mkdir(parents=True)
    shutil.copy(weights, tmp_path / "exp/ctdet/sample/model_best.pth")
    shutil.copytree(ROOT / "images", tmp_path / "images")
    exec(compile(code, "README.md", "exec"), {})
    drawings = ["poses.jpg", "shapes.jpg", "street.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == drawings
    assert capsys.readouterr().out.count("images/") == 3
    write_video(tmp_path / "clip.avi")
    for images, names in (
        ('"images/street.jpg"', ["street.jpg"]),
        ('"clip.avi"', ["clip_000001.jpg", "clip_000002.jpg", "clip_000003.jpg"]),
        ('__import__("cv2").imread("images/street.jpg")', ["image_000001.jpg"]),
        ('["images/street.jpg", "images", "clip.avi"]', [*(f"clip_00000{k}.jpg" for k in (1, 2, 3)), *drawings]),
    ):
        shutil.rmtree(tmp_path / "out")
        assert '"images"' in code
        exec(compile(code.replace('"images"', images), "README.md", "exec"), {})
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_the_examples_of_the_inference_page(weights, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp/ctdet/sample").mkdir(parents=True)
    shutil.copy(weights, tmp_path / "exp/ctdet/sample/model_best.pth")
    shutil.copytree(ROOT / "images", tmp_path / "images")
    first, second = INFERENCE
    names: dict = {}
    exec(compile(first, "docs/INFERENCE.md", "exec"), names)
    assert (tmp_path / "shapes_detected.jpg").is_file() and names["model"].detector.opt.flip_test
    assert names["drawing"].shape == Canvas(names["result"].image).image.shape
    smaller = f'arch="res_18", pretrained="none", input_res=64, batch_size=2, num_workers=0, exp_dir="{tmp_path}/runs"'
    second = second.replace('"DIR"', f'"{data}"').replace('arch="lite"', smaller).replace("epochs=60", "epochs=1")
    second = second.replace("flip_test=True", f'flip_test=True, num_workers=0, exp_dir="{tmp_path}/runs"')
    exec(compile(second, "docs/INFERENCE.md", "exec"), names)
    trained = names["model"]
    assert trained.weights == f"{tmp_path}/runs/ctdet/mine/model_best.pth" and trained.names == ["cat"]
    scores = trained.validate(num_workers=0, exp_dir=tmp_path / "runs")
    assert 0 <= scores["mAP"] <= 1


def test_results_are_those_of_the_detector(model, weights):
    result = model.predict(SHAPES, threshold=0.0)[0]
    expected = create_detector(opts().parse(["ctdet", "--load_model", str(weights), "--device", "cpu"])).run(
        str(SHAPES)
    )
    rows = np.concatenate(
        [np.column_stack([of_class, np.full(len(of_class), cls - 1)]) for cls, of_class in expected["results"].items()]
    )
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    assert isinstance(result, Result) and len(result) == len(rows) == 100
    np.testing.assert_array_equal(result.scores, rows[:, 4].astype(np.float32))
    np.testing.assert_array_equal(np.sort(result.boxes, 0), np.sort(rows[:, :4].astype(np.float32), 0))
    assert result.boxes.dtype == np.float32 and result.classes.dtype == np.int64
    assert result.names == [model.names[cls] for cls in result.classes] and model.names[0] == "aeroplane"
    assert result.keypoints == [] and result.dimensions.shape == (0, 3)
    median = float(np.median(result.scores))
    fewer = model.predict(SHAPES, threshold=median)[0]
    assert len(fewer) == (result.scores > np.float32(median)).sum() and [one.score for one in fewer] == [
        one.score for one in result if one.score > median
    ]
    entry = result.to_dict()
    assert entry["image"] == str(SHAPES) and len(entry["detections"]) == 100
    assert entry["width"], entry["height"] == result.image.shape[1::-1]
    assert set(result.seconds) == {"tot", "load", "pre", "net", "dec", "post", "merge"}


def test_every_kind_of_image(model, tmp_path):
    array = cv2.imread(str(SHAPES))
    (by_path,) = model.predict(str(SHAPES), threshold=0.0)
    pil = Image.fromarray(np.ascontiguousarray(array[:, :, ::-1]))
    several = model.predict([SHAPES, array, pil, np.stack([array, array])], threshold=0.0, batch_size=3)
    assert len(several) == 5 and [one.path for one in several] == [str(SHAPES), "", "", "", ""]
    for one in several:
        np.testing.assert_allclose(one.scores, by_path.scores, atol=1e-5)
    rgb = torch.from_numpy(array).flip(-1)
    tensors = [rgb, rgb.permute(2, 0, 1), rgb.permute(2, 0, 1)[None] / 255, torch.stack([rgb, rgb]).double() / 255]
    for one in (more := model.predict(tensors, threshold=0.0)):
        assert np.array_equal(one.image, array)
    assert len(more) == 5
    assert len(model.predict(iter([array]))) == 1 and model.predict([]) == []
    folder = model.predict(ROOT / "images")
    assert [one.path for one in folder] == [
        str(ROOT / "images" / f"{name}.jpg") for name in ("poses", "shapes", "street")
    ]


def test_frames_of_a_video(model, tmp_path):
    path = tmp_path / "clip.avi"
    write_video(path)
    stream = model.stream(path, threshold=0.0, batch_size=2)
    first = next(stream)
    assert (first.frame, first.path, first.image.shape) == (1, str(path), (48, 64, 3))
    assert [one.frame for one in stream] == [2, 3]


@pytest.mark.parametrize("task", ["multi_pose", "ddd", "exdet"])
def test_other_tasks(task, tmp_path):
    options = {"exdet": {"scores_thresh": 0, "center_thresh": 0}, "ddd": {"peak_thresh": 0}}.get(task, {})
    model = CenterNet(checkpoint(tmp_path, task), device="cpu", K=5, **options)
    assert repr(model).endswith(f": res_18 for {task}, {len(model.names)} classes")
    calib = np.array([[500, 0, 20, 0], [0, 500, 20, 0], [0, 0, 1, 0]], np.float32)
    (result,) = model.predict(SHAPES, threshold=0.0, info={"calib": calib} if task == "ddd" else None)
    drawing = result.plot()
    assert drawing.dtype == np.uint8 and drawing.shape[2] == 3
    if task != "exdet":  # points of random maps seldom fit together
        assert not np.array_equal(drawing, Canvas(result.image).image)
    if task == "multi_pose":
        assert len(result.keypoints) == 5 and result.keypoints[0].shape == (17, 2)
    if task == "ddd":
        assert result.dimensions.shape == result.locations.shape == (5, 3) and result.rotations.shape == (5,)


def test_drawings_can_be_saved(model, tmp_path):
    result = model.predict(SHAPES, threshold=0.0)[0]
    before = result.image.copy()
    path = result.save(tmp_path / "new" / "a.png")
    assert np.array_equal(cv2.imread(str(path)), result.plot()) and np.array_equal(result.image, before)
    with pytest.raises(UserError, match="a.txt: an image needs a suffix such as"):
        result.save(tmp_path / "a.txt")
    for name in ("a.pgm", "a.pbm"):
        with pytest.raises(UserError, match=f"{name}: .* files cannot hold color images"):
            result.save(tmp_path / name)
        assert not (tmp_path / name).exists()


def test_results_go_to_other_processes_without_the_network(model):
    image = cv2.imread(str(SHAPES))
    one, other = model.predict([image, image.copy()], threshold=0.0)
    content = pickle.dumps(one)
    assert len(content) < image.nbytes + 100_000
    copied = pickle.loads(content)
    assert np.array_equal(copied.plot(), one.plot()) and copied.to_dict() == one.to_dict()
    assert other in [one, other] and len({one, other}) == 2  # arrays cannot be compared as a whole


def test_threads_share_a_model(model):
    image = cv2.imread(str(SHAPES))
    images = [image, image[:, ::-1].copy(), image[:40, :50].copy(), image // 2]

    def found(one):
        (result,) = model.predict(one, threshold=0.0)
        return result.boxes.tolist(), result.scores.tolist()

    expected = [found(one) for one in images] * 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(found, images * 4)) == expected
    assert expected[0] != expected[1] != expected[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_does_not_wait_for_threads_of_its_parent(weights):
    code = """
import multiprocessing, sys
import torch
from centernet import CenterNet

def count():
    print(len(model.predict(sys.argv[2], threshold=0.0)[0]), torch.get_num_threads(), flush=True)

torch.set_num_threads(2)
model = CenterNet(sys.argv[1], device="cpu")
count()
process = multiprocessing.get_context("fork").Process(target=count)
process.start()
process.join(30)
process.kill()
process.join()
"""
    command = [sys.executable, "-c", code, str(weights), str(SHAPES)]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "100 2\n100 1\n"


def test_drawings_in_a_folder_have_different_names(weights, tmp_path):
    """An image has the same name again, also in another call; others of the same name get a number."""
    model = CenterNet(weights, device="cpu")
    array = np.full((40, 50, 3), 90, np.uint8)
    for name in ("a/1.jpg", "b/1.jpg", "b/clip_000001.jpg", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), array)
    cv2.imwrite(str(tmp_path / "b/1.pgm"), array[:, :, 0])  # a format without colors
    for name in ("a/clip.avi", "b/clip.avi"):
        write_video(tmp_path / name)
    (tmp_path / "dotted.d").mkdir()

    def saved(images, folder=tmp_path / "out"):
        paths = [result.save(folder) for result in model.predict(images)]
        assert all(path.parent == Path(folder) and cv2.imread(str(path)) is not None for path in paths)
        return [path.name for path in paths]

    assert saved(tmp_path / "a/1.jpg") == ["1.jpg"] and saved(tmp_path / "b/1.jpg") == ["1_2.jpg"]
    assert saved(tmp_path / "b") == [
        *("1_2.jpg", "1_3.jpg", "1.png"),
        *(f"clip_00000{k}.jpg" for k in (1, 2, 3)),
        "clip_000001_2.jpg",
    ]
    assert saved(tmp_path / "a") == ["1.jpg", "clip_000001_3.jpg", "clip_000002_2.jpg", "clip_000003_2.jpg"]
    assert saved(array, tmp_path / "dotted.d") == ["image_000001.jpg"]
    assert saved([array, array], f"{tmp_path}/new.d/") == ["image_000002.jpg", "image_000003.jpg"]
    (result,) = model.predict(array)
    assert result.save(tmp_path / "out") == result.save(tmp_path / "out") == tmp_path / "out" / "image_000004.jpg"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        result.save(tmp_path / "file")


def test_files_of_a_folder_that_cannot_be_read_are_left_out(model, tmp_path):
    for name in ("a.jpg", "b.mp4", "c.png"):
        (tmp_path / name).write_bytes(b"no image")
    for images in (tmp_path, [tmp_path]):
        with pytest.warns(UserWarning), pytest.raises(UserError, match=f"^{tmp_path}: none of its 3 files can be read"):
            model.predict(images)
    cv2.imwrite(str(tmp_path / "d.png"), np.full((40, 50, 3), 90, np.uint8))
    with pytest.warns(UserWarning) as warned:
        (result,) = model.predict(tmp_path)
    assert result.path == str(tmp_path / "d.png")
    messages = [str(one.message) for one in warned]
    assert len(messages) == 3 and all(text.endswith("; it is left out") for text in messages)
    assert all(text.startswith(str(tmp_path / name)) for text, name in zip(messages, ("a", "b", "c"), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a.jpg", "b.mp4"):  # asked for by name
            with pytest.raises(UserError, match=f"^{tmp_path / name}: "):
                model.predict([tmp_path / "d.png", tmp_path / name])


def test_a_video_without_frames(model, tmp_path, monkeypatch):
    write_video(tmp_path / "clip.avi")
    monkeypatch.setattr("centernet.api.frames", lambda capture, log: iter(()))
    with pytest.raises(UserError, match=f"^{tmp_path}/clip.avi: no frame of this video can be read"):
        model.predict(tmp_path / "clip.avi")


def tiny_training(data, folder, **options):
    """Train two iterations an epoch."""
    small = {"input_res": 64, "batch_size": 1, "num_workers": 0, "pretrained": "none", "device": "cpu", **options}
    return CenterNet.train(data, arch="lite", exp_dir=folder, num_epochs=1, **small)


def test_training_in_a_thread(data, tmp_path):
    """Where signals cannot be received."""
    with ThreadPoolExecutor(1) as pool:
        trained = pool.submit(tiny_training, data, tmp_path, val_intervals=0).result()
    assert trained.names == ["cat"]


def test_an_interrupted_training_leaves_the_process_to_its_owner(data, tmp_path, monkeypatch):
    step = Trainer.step

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="after iteration 1 of epoch 1; --resume continues from") as caught:
        tiny_training(data, tmp_path, num_workers=1)
    assert multiprocessing.active_children() == [] and caught.value.__context__ is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr(Trainer, "step", lambda *arguments: interrupted(interrupted(*arguments)))
    with pytest.raises(KeyboardInterrupt, match="SIGINT for the second time: stopped without a checkpoint"):
        tiny_training(data, tmp_path, resume=True)
    monkeypatch.setattr(Trainer, "step", step)
    assert len(tiny_training(data, tmp_path, resume=True).names) == 1
    assert (tmp_path / "ctdet/default/train_log.csv").read_text().count("\n") == 3


def test_a_video_that_ends_early_is_warned_of(model, tmp_path):
    path = tmp_path / "clip.avi"
    write_video(path, 30)
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.warns(UserWarning, match=f"^{path}: only .* of 30 frames could be read$"):
        results = model.predict(path)
    assert 0 < len(results) < 15


def test_options_without_effect_are_warned_of(model, tmp_path):
    for message, call in (
        (r"lr has no effect on CenterNet\(FILE, ...\) of ctdet", lambda: CenterNet(model.weights, lr=3)),
        (r"rect_mask has no effect on CenterNet\(FILE, ...\)", lambda: CenterNet(model.weights, rect_mask=True)),
        (r"flip_test has no effect on export\(\)", lambda: model.export(tmp_path / "a.ts", flip_test=True)),
    ):
        with pytest.warns(UserWarning, match=message):
            call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CenterNet(model.weights, flip_test=True, K=5, device="cpu")


def test_the_threshold_is_an_option_too(model):
    strict = CenterNet(model.weights, device="cpu", vis_thresh=0.0)
    assert len(strict.predict(SHAPES)[0]) == len(model.predict(SHAPES, threshold=0.0)[0]) == 100
    assert len(strict.predict(SHAPES, threshold=np.float32(1))[0]) == 0
    assert len(model.predict(SHAPES, threshold=None)[0]) == len(model.predict(SHAPES, threshold=0.3)[0])


def test_export(model, tmp_path):
    path = model.export(tmp_path / "a.ts")
    assert path == tmp_path / "a.ts"
    image = torch.zeros(1, 3, 64, 64)
    assert {value.shape for value in torch.jit.load(path)(image)} == {(1, 20, 16, 16), (1, 2, 16, 16)}


def test_checkpoint_of_the_original(tmp_path):
    opt = opts().parse(["ctdet", "--dataset", "pascal", "--arch", "res_18"])
    path = tmp_path / "a.pth"
    save_model(path, 1, create_model(opt.arch, opt.heads, opt.head_conv))
    with pytest.raises(UserError, match="does not name its task; add task="):
        CenterNet(path)
    model = CenterNet(path, task="ctdet", arch="res_18", dataset="pascal", input_res=64, device="cpu")
    assert len(model.names) == 20 and len(model.predict(SHAPES, threshold=0.0)[0]) == 100


def test_mistakes_raise_one_line(model, tmp_path):
    no_checkpoint = tmp_path / "not.pth"
    no_checkpoint.write_text("# Title\n")
    for message, call in [
        ("missing.pth: no such checkpoint file", lambda: CenterNet(tmp_path / "missing.pth")),
        ("not.pth: not a checkpoint; it needs a file such as", lambda: CenterNet(no_checkpoint)),
        ("no_such: CenterNet(.*) has no such option", lambda: CenterNet(model.weights, no_such=3)),
        ("dry_run: .* has no such option", lambda: CenterNet(model.weights, dry_run=True)),
        ("help: .* has no such option", lambda: CenterNet(model.weights, help=True)),
        ("save_json: .*; results have to_dict", lambda: CenterNet(model.weights, save_json=True)),
        ("output_dir: .*; results have save", lambda: CenterNet(model.weights, output_dir=tmp_path)),
        ("dry_run: .* has no such option", lambda: CenterNet.train("sample", dry_run=True)),
        ("prepare_only: .* has no such option", lambda: CenterNet.train("sample", prepare_only=True)),
        ("test: .*validate.* scores a checkpoint", lambda: CenterNet.train("sample", test=True)),
        ("threshold: '0.3' is not a number", lambda: model.predict(SHAPES, threshold="0.3")),
        ("batch_size: 0 is not a positive", lambda: model.predict(SHAPES, batch_size=0)),
        ("this one is bytes", lambda: model.predict(SHAPES.read_bytes())),
        (r"this one is uint8 \(0, 0, 3\)", lambda: model.predict(np.zeros((0, 0, 3), np.uint8))),
        (r"this one is uint8 \(0, 4, 3\)", lambda: model.predict(np.zeros((1, 0, 4, 3), np.uint8))),
        (r"this one is float32 \(2, 64, 64\)", lambda: model.predict(torch.zeros(2, 64, 64))),
        (r"this one is int64 \(3, 64, 64\)", lambda: model.predict(torch.zeros(3, 64, 64, dtype=torch.int64))),
        ("values from 0 to 1, not 0 to 255", lambda: model.predict(torch.linspace(0, 255, 48).view(3, 4, 4))),
        ("^images: needs an image, a folder, a video", lambda: model.predict("")),
        ("missing.jpg: no such file or folder", lambda: model.predict("missing.jpg")),
        ("an image must be a path or an array", lambda: model.predict(np.zeros((3, 3)))),
        ("data nowhere: no such directory", lambda: CenterNet.train("nowhere")),
        ("--lr=0|expected a number above 0", lambda: CenterNet.train("sample", lr=0)),
        ("gpus: this trains in one process", lambda: CenterNet.train("sample", gpus=[0, 1])),
        ("the format does not follow from the suffix", lambda: model.export(tmp_path / "a.xyz")),
    ]:
        with pytest.raises(UserError, match=message) as failure:
            call()
        assert "\n" not in str(failure.value) and not str(failure.value).startswith("--demo")
