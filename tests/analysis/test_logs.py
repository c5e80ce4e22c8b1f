"""Reading a run's logs, drawing them, and the report."""

import base64
import html.parser
import json
import re
import shutil
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.helpers.training import small

from centernet.analysis import page_plots, report
from centernet.analysis.panels import log_panels
from centernet.analysis.plots import draw_logs
from centernet.analysis.read import RunLog, distinct_names, read_run
from centernet.datasets import get_dataset
from centernet.engine import tensorboard
from centernet.errors import UserError
from centernet.opts import opts
from centernet.tasks import build_task

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src" / "tools"))
import make_report
import plot_log

TRAIN = "epoch,iteration,loss,hm_loss,wh_loss,off_loss,lr,images/s"
EVIL = "<script>alert('x')</script>"


@pytest.fixture
def folder(tmp_path):
    """A run of two epochs of four iterations; the first iteration of the second epoch is there twice."""
    rows = [
        f"{(i - 1) // 4 + 1},{i},{9 / i},{5 / i},1,0.5,{0.001 if i < 5 else 0.0001},80"
        for i in (*range(1, 6), *range(5, 9))
    ]
    path = tmp_path / "exp" / "ctdet" / "my_run"
    path.mkdir(parents=True)
    (path / "train_log.csv").write_text("\n".join([TRAIN, *rows]) + "\n")
    (path / "val_log.csv").write_text(
        f"epoch,loss,time,mAP,AP/cat,AP/{EVIL}\n1,3.5,0.1,0.25,0.5,\n2,3,0.1,0.125,0.25,0\n"
    )
    info = {
        "options": {"given": ["exp_id"], "exp_id": EVIL, "lr": 0.001, "main_score": "mAP"},
        "device": "cpu, 2 cores",
    }
    info |= {
        "recipe": {"task": "ctdet", "dataset": "pascal", "arch": "res_18", "batch_size": 8},
        "versions": {"torch": "2.9"},
    }
    (path / "opt.json").write_text(json.dumps(info))
    return path


def test_read_run(folder):
    for path in (folder, folder / "train_log.csv"):
        run = read_run(path)
        assert run.name == "my_run"
        assert run.train["iteration"].tolist() == list(range(1, 9))
        assert run.losses == ["loss", "hm_loss", "wh_loss", "off_loss"] and run.scores == ["mAP"]
        assert run.epochs.tolist() == [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
        assert run.val["mAP"].tolist() == [0.25, 0.125] and np.isnan(run.val[f"AP/{EVIL}"][0])


def test_epochs_of_a_running_training(folder):
    lines = (folder / "train_log.csv").read_text().splitlines()
    (folder / "train_log.csv").write_text("\n".join(lines[:6]) + "\n")
    assert read_run(folder).epochs.tolist() == [0.25, 0.5, 0.75, 1, 1.25]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is not a run folder"),
        ("a,b\n1,2\n", "expected the columns epoch,iteration,loss"),
        (TRAIN + "\n", "has a header and no iterations"),
        (TRAIN + "\n1,1,x,1,1,1,1,1\n", "'x' as loss of iteration 1 is not a number"),
    ],
)
def test_errors(tmp_path, capsys, content, problem):
    if content is not None:
        (tmp_path / "train_log.csv").write_text(content)
    with pytest.raises(UserError, match=problem):
        read_run(tmp_path)
    assert plot_log.main([str(tmp_path)]) == make_report.main([str(tmp_path), "--images", "0"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_report_of_no_folder(tmp_path, capsys):
    for more in ([], ["--images", "0"], [str(tmp_path)]):
        assert make_report.main([str(tmp_path / "none"), *more]) == 2
        assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such run directory\n"


def test_plot_log(folder, tmp_path, capsys):
    assert plot_log.main([str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'logs.png'}\n"
    alone = cv2.imread(str(folder / "logs.png"))
    other = tmp_path / "other"
    other.mkdir()
    text = (folder / "train_log.csv").read_text()
    (other / "train_log.csv").write_text(text.replace("hm_loss", "hp_loss"))  # of another task, without validations
    assert plot_log.main([str(folder), str(other), "--output", str(tmp_path / "two.png"), "--window", "2"]) == 0
    both = cv2.imread(str(tmp_path / "two.png"))
    assert alone.shape == both.shape and (alone != both).any()  # seven and eight panels
    with pytest.raises(UserError, match="cannot be written"):
        draw_logs([read_run(folder)], ["run"], tmp_path / "nowhere" / "a.png")
    with pytest.raises(SystemExit):
        plot_log.main([str(folder), "--window", "0"])


def tiny(tiny_voc):
    """The validation images of the smallest dataset, and detections: all right but in the first two images."""
    dataset = get_dataset("pascal")(
        build_task(opts().parse(["ctdet", "--dataset", "pascal", "--data_path", str(tiny_voc)])), "val"
    )
    results = {}
    for index, image_id in enumerate(dataset.image_ids):
        objects = dataset.read_objects(index)
        rows = {cls: np.zeros((0, 5), np.float32) for cls in range(1, 21)}
        for box, cls in zip(objects["boxes"], objects["cls"], strict=True):
            rows[cls + 1] = np.vstack([rows[cls + 1], [*box, 0.9], [*(box + 200), 0.2]]).astype(np.float32)
        results[image_id] = rows
    first, second = (results[image_id] for image_id in dataset.image_ids[:2])
    for cls in first:
        first[cls] = first[cls][:0]
        second[cls] = np.repeat(second[cls], 2, axis=0)  # every object is found twice
    return dataset, results


def test_scores_of_images(tiny_voc):
    scores = report.score_images(*tiny(tiny_voc))
    assert [(s.objects, s.found, s.false) for s in scores] == [(2, 0, 0), (2, 2, 2), (2, 2, 0), (2, 2, 0)]
    assert [s.f1 for s in scores] == pytest.approx([0, 2 / 3, 1, 1])
    assert report.ImageScore(0, 0, 0, 0).f1 == 1 and report.ImageScore(0, 0, 0, 2).f1 == 0


@pytest.mark.parametrize("task", ["sample_hp", "sample_ex", "sample_ddd"])
def test_boxes_of_every_task(tmp_path, task):
    """The truth, written as a result, finds itself."""
    names = {"sample_hp": "multi_pose", "sample_ex": "exdet", "sample_ddd": "ddd"}
    module = build_task(opts().parse([names[task]]))
    boxes = np.array([[10.0, 20.0, 50.0, 90.0]], np.float32)
    if names[task] == "ddd":
        rows = np.array([[0.3, 10, 20, 50, 90, 1.5, 1.6, 3.9, 0, 1, 9, 0.1, 0.75]], np.float32)
        objects = {"boxes": boxes}
    elif names[task] == "exdet":
        rows = np.array([[10, 20, 50, 90, 0.75, *range(8)]], np.float32)
        objects = {"points": np.array([[[30, 20], [10, 40], [33, 90], [50, 44]]], np.float32), "cls": np.array([0])}
    else:
        rows = np.array([[10, 20, 50, 90, 0.75, *range(34)]], np.float32)
        objects = {"boxes": boxes}
    assert module.detected_boxes(rows).tolist() == [[10, 20, 50, 90, 0.75]]
    assert module.ground_truth_boxes(objects).tolist() == boxes.tolist()


class Reader(html.parser.HTMLParser):
    """Checks that tags are closed, and collects them and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_report(folder, tiny_voc, monkeypatch):
    monkeypatch.setattr(page_plots, "plotting_library", lambda: None)
    dataset, results = tiny(tiny_voc)
    path = report.write_report(folder, dataset, results)
    assert path == folder / "report.html"
    page = Reader(path.read_text())
    text = "\n".join(page.text)
    assert page.tags.count("script") == 1 and EVIL in page.text  # shown, not run
    assert page.tags.count("img") == 1 + 2 * (2 + 2)  # the curves; of the worst and best, detections and truth
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"https?://|@import|url\(", path.read_text())
    for part in (
        "0.2500",
        "best mAP, epoch 1",
        "cat",
        "cpu, 2 cores",
        "F1 0.00: 0 of 2 found, 0 false",
        "version of torch",
    ):
        assert part in text
    assert 'data-score="0.000"' in path.read_text() and 'data-class="[&#34;' in path.read_text()
    titles = [re.search(f"{name} images", text).start() for name in ("Worst", "Best")]
    assert titles[0] < text.index("F1 0.00") < titles[1] < text.rindex("F1 1.00")


def test_report_without_validations(folder, monkeypatch):
    monkeypatch.setattr(page_plots, "plotting_library", lambda: None)
    (folder / "val_log.csv").unlink()
    (folder / "opt.json").unlink()
    page = Reader(report.write_report(folder).read_text())
    assert page.tags.count("img") == 1 and "Worst images" not in page.text


def test_curves_of_a_page(folder, monkeypatch):
    """The page holds the numbers of the logs, of a long one the extremes, and no run name is run as a script."""
    monkeypatch.setattr(page_plots, "plotting_library", lambda: ("c2NyaXB0", "digest"))
    page = report.write_report(folder).read_text()
    data = json.loads(re.search('<script type="application/json" id="panels">(.*)</script>', page)[1])
    titles = ["loss", "hm_loss", "wh_loss", "off_loss", "score", "learning rate", "images per second"]
    assert [panel["title"] for panel in data["panels"]] == titles and data["names"] == ["my_run"]
    loss = {series["kind"]: series for series in data["panels"][0]["series"]}
    assert list(loss) == ["every", "mean", "validation"]
    assert unpacked(loss["every"]["y"]) == pytest.approx([9 / i for i in range(1, 9)])
    assert unpacked(loss["validation"]["x"]) == [1, 2] and unpacked(loss["validation"]["y"]) == [3.5, 3]
    assert "sha256-digest" in page and "<img" not in page
    assert unpacked(page_plots.packed(np.array([1, np.inf, 1e300]))) == pytest.approx([1, np.nan, np.nan], nan_ok=True)
    long = {name: np.repeat(values, 1000) for name, values in read_run(folder).train.items()}
    (panel, *_) = log_panels([RunLog(folder, long)], pieces=page_plots.MAX_PIECES)
    assert [len(series.y) for series in panel.series] == [2 * page_plots.MAX_PIECES] * 2
    assert panel.series[0].y.max() == 9


def test_runs_side_by_side(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page_plots, "plotting_library", lambda: None)
    other = tmp_path / "other" / "my_run"
    shutil.copytree(folder, other)
    info = json.loads((other / "opt.json").read_text())
    info["options"]["lr"], info["device"] = 0.5, "cuda"
    (other / "opt.json").write_text(json.dumps(info))
    (other / "val_log.csv").unlink()
    page = folder / "comparison.html"
    assert make_report.main([str(folder), str(other)]) == 0 and capsys.readouterr().out == f"{page}\n"
    text = page.read_text()
    for row in (
        "<tr><td>ctdet/my_run</td><td>ctdet</td><td>pascal</td><td>res_18</td><td>-</td><td>cpu, 2 cores</td><td>2</td>"
        '<td>mAP</td><td class="number">0.2500</td><td>1</td><td class="number">0.1250</td>'
        '<td class="number">1.428</td><td class="number">80</td></tr>',
        '<td>2</td><td>-</td><td class="number">-</td><td>-</td><td class="number">-</td><td class="number">1.428</td>',
        '<tr><td>cat</td><td class="number">0.2500</td><td class="number">-</td></tr>',
        '<tr><th>lr</th><td class="code">0.001</td><td class="code">0.5</td></tr>',
    ):
        assert row in text
    assert text.count("<td>other/my_run</td>") == text.count("<img") == 1 and EVIL not in text
    assert "main_score" not in text and "exp_id" not in text
    assert make_report.main([str(folder), f"{folder}/."]) == 2
    assert "is given twice; name each run once" in capsys.readouterr().err
    for arguments in ([str(folder), str(other), "--images", "3"], [str(folder), "--output", "a.html"]):
        with pytest.raises(SystemExit):
            make_report.main(arguments)


def test_names_of_runs(tmp_path):
    folders = [tmp_path / name for name in ("a/x/run", "b/x/run", "b/y/run", "c/other")]
    assert distinct_names(folders) == ["a/x/run", "b/x/run", "y/run", "other"]


def unpacked(numbers):
    assert numbers["dtype"] == "f4"
    return np.frombuffer(base64.b64decode(numbers["bdata"]), "<f4").tolist()


def test_tensorboard(tmp_path, tiny_voc):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    dataset, results = tiny(tiny_voc)
    board = tensorboard.open_board(tmp_path)
    tensorboard.write_epoch(board, 1, {"loss": 2.0}, None, None, {})
    tensorboard.write_epoch(board, 2, {"loss": 1.0}, {"loss": 1.5, "AP/cat": 0.5}, dataset, results)
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(1, 2.0), (2, 1.0)]
    assert [(event.step, event.value) for event in events.Scalars("val_AP/cat")] == [(2, 0.5)]
    assert len(events.Tags()["images"]) == 8
    assert [event.step for event in events.Images(f"{dataset.file_names[0]}/detections")] == [2]


def test_a_tensorboard_that_cannot_be_used_ends_no_training(main, tmp_path, tiny_voc, monkeypatch):
    """Packages that do not fit each other, and a failure later."""
    pytest.importorskip("tensorboard")
    broken = types.ModuleType("torch.utils.tensorboard")
    broken.SummaryWriter = fail
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", broken)
    arguments = small(tmp_path, tiny_voc, "--num_iters", "1", "--num_epochs", "2", "--val_intervals", "0")
    done = main(*arguments)
    text = (
        "warning: TensorBoard cannot be used (Descriptors cannot be created directly.); nothing more is written for it"
    )
    assert done.returncode == 0 and done.stdout.count(text) == 1, done.stderr
    broken.SummaryWriter = lambda folder: types.SimpleNamespace(add_scalar=fail)
    done = main(*arguments)
    assert done.returncode == 0 and done.stdout.count(text) == 1, done.stderr


def fail(*_):
    raise TypeError("Descriptors cannot be created directly.\nIf this call came from a _pb2.py file, ...")


def test_no_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    assert tensorboard.open_board(tmp_path) is None and list(tmp_path.iterdir()) == []
