"""AP against processor time: this project's presets, and Ultralytics' smallest network if it is installed.

Every contestant trains from random weights on the same images, one thread, in a separate process, alternately. For each
budget the schedule length is chosen so that training ends near it; the processor time actually used, including
validation, is reported. One script (pycocotools) scores all detections.

    python benchmarks/time_to_ap.py --data sample --budgets 90,320 --seeds 1,2,3 --output time_to_ap.json
    python benchmarks/time_to_ap.py --data DIR --size 256 --budgets 900        # of benchmarks/hard_sample.py
    python benchmarks/time_to_ap.py --data DIR --size 256 --epochs fast:12,yolo11n:10     # without measuring the pace
    python benchmarks/time_to_ap.py --arch dlav0_34 --epochs fast:16,reference:16         # recipes, same network

Ultralytics is not a dependency of this project (its license is AGPL-3.0): it is included only if it can be imported.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
HEADS = {"dlav0_34": ("--head_conv", "64")}  # the width that all recipes use here
# Epochs of two trainings whose difference is the pace. The last ten of Ultralytics are faster, without mosaics.
PACE = (12, 16)
SCRATCH = {"sample": ("annotations/pascal_trainval0712.json", "annotations/pascal_test2007.json", "images", "images")}


def main() -> None:
    """Train all contestants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample", help="sample, or a folder that hard_sample.py wrote")
    parser.add_argument("--size", type=int, default=96, help="input size (default: 96)")
    parser.add_argument("--budgets", default="90,320", help="processor seconds (default: 90,320)")
    parser.add_argument(
        "--epochs", help="schedule lengths instead of budgets, such as fast:12,yolo11n:10; names the contestants, too"
    )
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--arch", default="lite", help="network of --preset fast (default: lite)")
    parser.add_argument("--contestants", default="fast,reference,yolo11n")
    parser.add_argument("--output", type=Path, default=Path("time_to_ap.json"))
    parser.add_argument("--plot", type=Path, help="draw AP over processor seconds into this file")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, folder, epochs, seed = args.child
        train_yolo(Path(folder), args.size, int(epochs), int(seed))
        return
    lengths = [part.split(":") for part in args.epochs.split(",")] if args.epochs else []
    contestants = [name for name, _ in lengths] or args.contestants.split(",")
    if "yolo11n" in contestants and importlib.util.find_spec("ultralytics") is None:
        print("ultralytics is not installed: yolo11n is left out")
        contestants.remove("yolo11n")
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Data(args.data, Path(scratch), args.size, args.arch)
        # (budget in seconds or 0, contestant, epochs)
        runs = [(0.0, name, int(epochs)) for name, epochs in lengths if name in contestants]
        if not runs:
            # Seconds per epoch and of the start, from two short trainings of each.
            pace = {name: measure_pace(name, data) for name in contestants}
            for budget in map(float, args.budgets.split(",")):
                for name in contestants:
                    start, per_epoch = pace[name]
                    runs.append((budget, name, max(2, round((budget - start) / per_epoch))))
        for seed in map(int, args.seeds.split(",")):
            for budget, name, epochs in runs:
                row = {"contestant": name, "budget": budget, "seed": seed, "epochs": epochs}
                row |= train(name, data, epochs, seed)
                print(json.dumps(row), flush=True)
                rows.append(row)
                write(args, rows)
    print_table(rows)
    if args.plot:
        draw(rows, args.plot)


class Data:
    """Images and annotations of a comparison, in the layouts of both programs.

    Attributes:
        options: options of main.py for these data.
        arch: network of ``--preset fast``.
        train, val: COCO-style annotation files.
        yolo: folder in Ultralytics' layout.
    """

    def __init__(self, data: str, scratch: Path, size: int, arch: str) -> None:
        self.scratch, self.size, self.arch = scratch, size, arch
        if data == "sample":
            self.options = ["--dataset", "sample", "--data_path", str(ROOT / "data"), "--input_res", str(size)]
            folder = ROOT / "data" / "sample"
            if not folder.is_dir():
                run(["main.py", "ctdet", *self.options, "--arch", "lite", "--prepare_only"])
            names = SCRATCH["sample"]
        else:
            folder = Path(data).resolve()
            self.options = ["--dataset", "custom", "--data_path", str(folder), "--input_res", str(size)]
            names = ("annotations/train.json", "annotations/val.json", "images/train", "images/val")
        self.train, self.val = folder / names[0], folder / names[1]
        self.images = {"train": folder / names[2], "val": folder / names[3]}
        self.yolo = scratch / "yolo"
        self._write_yolo()

    def _write_yolo(self) -> None:
        for split, file in (("train", self.train), ("val", self.val)):
            content = json.loads(file.read_text(encoding="utf-8"))
            order = [category["id"] for category in content["categories"]]
            for kind in ("images", "labels"):
                (self.yolo / kind / split).mkdir(parents=True, exist_ok=True)
            for image in content["images"]:
                source = self.images[split] / image["file_name"]
                (self.yolo / "images" / split / image["file_name"]).symlink_to(source)
                lines = []
                for one in content["annotations"]:
                    if one["image_id"] == image["id"]:
                        x, y, w, h = one["bbox"]
                        row = [(x + w / 2) / image["width"], (y + h / 2) / image["height"]]
                        row += [w / image["width"], h / image["height"]]
                        lines.append(" ".join(map(str, [order.index(one["category_id"]), *row])))
                label = self.yolo / "labels" / split / Path(image["file_name"]).with_suffix(".txt").name
                label.write_text("\n".join(lines), encoding="utf-8")
        names = {k: category["name"] for k, category in enumerate(content["categories"])}
        text = json.dumps({"path": str(self.yolo), "train": "images/train", "val": "images/val", "names": names})
        (self.yolo / "data.yaml").write_text(text, encoding="utf-8")  # JSON is YAML


def run(command: list[str]) -> tuple[float, str]:
    """Run a script of ``src/`` or this one with one thread; return its processor seconds and output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "YOLO_OFFLINE": "true"}
    script = ROOT / "src" / command[0] if command[0] != __file__ else Path(__file__)
    done = subprocess.run(
        [sys.executable, str(script), *command[1:]], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def measure_pace(name: str, data: Data) -> tuple[float, float]:
    """Return processor seconds of start and end, and per epoch."""
    short, long = (train(name, data, epochs, 0)["seconds"] for epochs in PACE)
    per_epoch = (long - short) / (PACE[1] - PACE[0])
    return short - PACE[0] * per_epoch, per_epoch


def train(name: str, data: Data, epochs: int, seed: int) -> dict:
    """Train one contestant and score it; return seconds, scores and sizes."""
    if name == "yolo11n":
        seconds, output = run(
            [__file__, "--size", str(data.size), "--child", name, str(data.yolo), str(epochs), str(seed)]
        )
        found = json.loads(re.findall(r"^RESULT (.*)$", output, re.M)[-1])
        detections = found.pop("detections")
        return {"seconds": seconds, **score(data, detections), **found}
    folder = Path(tempfile.mkdtemp(dir=data.scratch))
    options = ["ctdet", *data.options, "--exp_dir", str(folder), "--num_epochs", str(epochs), "--seed", str(seed)]
    options += ["--device", "cpu", "--num_workers", "0", "--val_intervals", str(epochs), "--pretrained", "none"]
    if name == "reference":  # the network and recipe of the quick start before there were presets
        options += ["--arch", "dlav0_34", *HEADS["dlav0_34"], "--batch_size", "16", "--lr", "1e-3", "--not_rand_crop"]
        options += ["--shift", "0.05", "--scale", "0.2", "--lr_step", str(round(epochs * 13 / 16))]
    else:
        options += ["--arch", data.arch, *HEADS.get(data.arch, ()), "--preset", name]
    seconds, _ = run(["main.py", *options])
    return {"seconds": seconds, **detect(data, folder / "ctdet" / "default" / "model_last.pth")}


def detect(data: Data, checkpoint: Path) -> dict:
    """Score the detections of a checkpoint on the validation images."""
    import torch

    from centernet.detector import create_detector
    from centernet.opts import opts

    torch.set_num_threads(1)
    detector = create_detector(opts().init(["ctdet", "--load_model", str(checkpoint), "--device", "cpu"]))
    content = json.loads(data.val.read_text(encoding="utf-8"))
    detections = []
    for image in content["images"]:
        results = detector.run(str(data.images["val"] / image["file_name"]))["results"]
        for cls, rows in results.items():
            category = content["categories"][cls - 1]["id"]
            detections += [
                {"image_id": image["id"], "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
                for x1, y1, x2, y2, score in rows.tolist()
            ]
    parameters = sum(parameter.numel() for parameter in detector.model.parameters())
    return {**score(data, detections), "parameters": parameters}


def train_yolo(folder: Path, size: int, epochs: int, seed: int) -> None:
    """Train Ultralytics' smallest network and print its detections."""
    import torch
    from ultralytics import YOLO

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as project, contextlib.redirect_stderr(io.StringIO()):
        model = YOLO("yolo11n.yaml")
        model.train(
            data=str(folder / "data.yaml"), epochs=epochs, imgsz=size, batch=16, device="cpu", workers=0, seed=seed,
            project=project, pretrained=False, plots=False, val=False, verbose=False, amp=False,
        )  # fmt: skip
        last = next(Path(project).rglob("last.pt"))
        model = YOLO(str(last))
        detections = []
        for path in sorted((folder / "images" / "val").iterdir()):
            (found,) = model.predict(str(path), imgsz=size, conf=0.001, max_det=100, verbose=False, device="cpu")
            detections += [
                [path.name, int(cls), *box, float(score)]
                for box, score, cls in zip(found.boxes.xyxy.tolist(), found.boxes.conf, found.boxes.cls, strict=True)
            ]
        parameters = sum(parameter.numel() for parameter in model.model.parameters())
    print("RESULT " + json.dumps({"detections": detections, "parameters": parameters}))


def score(data: Data, detections: list) -> dict[str, float]:
    """Return COCO's AP, AP50 and AP75 of results, or of rows (file, class from 0, x1, y1, x2, y2, score)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content = json.loads(data.val.read_text(encoding="utf-8"))
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    results = [
        one
        if isinstance(one, dict)
        else {
            "image_id": ids[one[0]],
            "category_id": content["categories"][one[1]]["id"],
            "bbox": [one[2], one[3], one[4] - one[2], one[5] - one[3]],
            "score": one[6],
        }
        for one in detections
    ]
    if not results:
        return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data.val))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("AP", "AP50", "AP75"), map(float, evaluation.stats[:3]), strict=True))


def write(args: argparse.Namespace, rows: list[dict]) -> None:
    """Write the rows so far, with where they were measured."""
    import torch

    where = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "size": args.size}
    where["arch"] = args.arch
    args.output.write_text(
        json.dumps({**where, "data": Path(args.data).name, "rows": rows}, indent=1), encoding="utf-8"
    )


def print_table(rows: list[dict]) -> None:
    """Print medians with ranges over the seeds."""
    print("\n| contestant | parameters | seconds | AP50-95 | AP50 | AP75 |\n|---|---|---|---|---|---|")
    for key in dict.fromkeys((row["budget"], row["contestant"], row["epochs"]) for row in rows):
        some = [row for row in rows if (row["budget"], row["contestant"], row["epochs"]) == key]
        cells = [f"{some[0]['parameters'] / 1e6:.1f} M"]
        for name, digits in (("seconds", 0), ("AP", 3), ("AP50", 3), ("AP75", 3)):
            values = [row[name] for row in some]
            text = f"{statistics.median(values):.{digits}f}"
            cells.append(text + (f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""))
        print(f"| {key[1]}, {key[2]} epochs | " + " | ".join(cells) + " |")


def draw(rows: list[dict], path: Path) -> None:
    """Draw AP over processor seconds, a dot per run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(row["contestant"] for row in rows):
        some = sorted((row["seconds"], row["AP"]) for row in rows if row["contestant"] == name)
        axes.plot(*zip(*some, strict=True), "o-", label=name, markersize=4)
    axes.set(xlabel="processor seconds, one thread", ylabel="AP50-95", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
