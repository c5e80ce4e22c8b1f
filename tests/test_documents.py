"""Documentation: commands run, links are valid, and both languages agree."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import loss
import numpy as np
import pytest
from tests.helpers.documents import blocks

from centernet import datasets, models
from centernet.detector import create_detector
from centernet.diagnostics.check import chosen_levels, own_options, training_options
from centernet.opts import opts
from centernet.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("README*.md"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "benchmarks" / "README.md",
        ROOT / "CONTRIBUTING.md",
    ]
)
STARTS = {
    *("python", "python3", "bash", "sh", "torchrun", "pip", "apt", "ruff", "mypy", "tensorboard", "git", "cd", "curl"),
    *("trtexec", "."),
}

# What is not run here, and why.
ELSEWHERE = {
    "python3 -m venv": "makes an environment; .ci/run does it",
    ". .venv/bin/activate": "the same",
    "pip install -r": "installs; .ci/run does it",
    "pip install": "installs",
    "pip uninstall": "uninstalls",
    "python -m pytest": "this is it",
    "ruff": ".ci/run does it",
    "mypy": ".ci/run does it",
    "trtexec": "needs TensorRT and its device",
    "tensorboard --logdir": "needs the package tensorboard, and stays",
}


def commands() -> dict[str, list[str]]:
    """Every command in the fenced blocks, to the documents it is in."""
    found: dict[str, list[str]] = {}
    for path in DOCUMENTS:
        lines = [line for language, lines in blocks(path) if language in ("", "bash", "sh") for line in lines]
        for part in (part for line in lines for part in line.split(" && ")):
            if part.split()[:1] and (part.split()[0] in STARTS or part.startswith("centernet-")):
                found.setdefault(shlex.join(shlex.split(part, comments=True)), []).append(path.name)
    return found


COMMANDS = commands()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder for what the documents call DIR: two images in YOLO style, whose objects may have keypoints."""
    folder = tmp_path_factory.mktemp("documents") / "DIR"
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        cv2.imwrite(str(folder / "images" / split / "a.jpg"), np.zeros((64, 64, 3), np.uint8))
        (folder / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    text = "train: images/train\nval: images/val\nnames: [cat]\nkpt_shape: [2, 3]\nflip_idx: [1, 0]\n"
    (folder / "data.yaml").write_text(text)
    return folder


def check_options(script: str, args: list[str]) -> None:
    """The real parser takes them, and all of them have an effect."""
    opt = opts().parse(args)
    assert opts().notes(opt, script) == []


def check_script(words: list[str]) -> None:
    """A script of src/, loss.py, or a tool, with its arguments."""
    path, args = words[0], words[1:]
    assert (ROOT / path).is_file(), f"there is no {path}"
    if path == "loss.py":
        loss.build_parser().parse_args(args)
    elif path in ("src/main.py", "src/test.py", "src/demo.py", "src/export.py"):
        check_options(Path(path).name, args)
    elif path == "src/tools/check_device.py":
        own, rest = own_options().parse_known_args(args)
        assert chosen_levels(own)
        assert training_options(rest).task in TASKS
    elif path == "src/tools/check_data.py":
        opts().parse(args)
    else:
        text = (ROOT / path).read_text()
        missing = [word for word in args if word.startswith("--") and f'"{word.partition("=")[0]}"' not in text]
        assert not missing, f"{path} has no {', '.join(missing)}"


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, data, monkeypatch):
    if any(command.startswith(start) for start in ELSEWHERE):
        for file in re.findall(r"-r (\S+)", command):
            assert (ROOT / file).is_file()
        return
    words = [str(data) if word == "DIR" else word.replace("=DIR", f"={data}") for word in shlex.split(command)]
    if words[0] == "torchrun":
        check_script(words[next(i for i, word in enumerate(words) if word.endswith(".py")) :])
    elif words[0] == "python":
        check_script(words[1:])
    elif words[0] == "bash" and words[1].startswith("src/tools/"):
        subprocess.run(["bash", "-n", ROOT / words[1]], check=True)
        text = (ROOT / words[1]).read_text()
        assert all(word.partition("=")[0] in text for word in words[2:] if word.startswith("--"))
    elif words[:2] == ["bash", "benchmarks/gpu.sh"]:
        steps = subprocess.run(["bash", ROOT / words[1], "list"], capture_output=True, text=True, check=True)
        assert words[2] in ("list", *steps.stdout.split())
    elif words[0] == "bash":
        assert words[1] == "train_full_4p.sh" or words[1].startswith("experiments/")
        known = words[1].replace("NAME", "ddd_3dop")
        environment = {**os.environ, "PYTHON": sys.executable}
        run = ["bash", known, *(word.replace("PATH", "data") for word in words[2:]), "--dry_run"]
        done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        printed = [
            shlex.split(line) for line in done.stdout.splitlines() if "src/main.py" in line or "src/test.py" in line
        ]
        assert printed
        for words in printed:
            place = next(i for i, word in enumerate(words) if word.endswith(("src/main.py", "src/test.py")))
            check_options(Path(words[place]).name, words[place + 1 :])
    else:
        pytest.fail(f"nothing checks this command: {command}")


def test_commands_are_found():
    assert len(COMMANDS) > 40
    assert {"README.md", "README.zh-CN.md"} <= set(COMMANDS["bash train_full_4p.sh --data_path=data"])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links(path):
    """Links to files and headings of the repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        name, _, heading = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [anchor(title) for title in titles], f"{path.name}: {target}"


def anchor(title: str) -> str:
    """Return GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_both_languages_have_the_same_commands():
    """README.zh-CN.md matches README.md: the same code blocks, tables and sections."""
    paths = [ROOT / name for name in ("README.md", "README.zh-CN.md")]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    code = [[line.partition("  #")[0].rstrip() for _, lines in blocks(path) for line in lines] for path in paths]
    assert code[0] == code[1]
    for pattern in (r"^## ", r"^\| `?[\w-]", r"^- \*\*"):
        assert len(re.findall(pattern, texts[0], re.MULTILINE)) == len(re.findall(pattern, texts[1], re.MULTILINE)), (
            pattern
        )


@pytest.mark.parametrize(
    ("path", "statement"), [("README.md", "size is {} unless"), ("README.zh-CN.md", "尺寸为 {}，")]
)
def test_the_input_size_of_custom_data_is_that_of_the_script(path, statement):
    script = (ROOT / "train_full_4p.sh").read_text(encoding="utf-8")
    (size,) = re.findall(r"--exp_id custom_\w+ .*--input_res (\d+)", script)
    assert statement.format(size) in (ROOT / path).read_text(encoding="utf-8")


def test_every_recipe_is_listed():
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "MODEL_ZOO.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "experiments").glob("*.sh") if path.stem != "run")


def test_the_examples_of_develop(tmp_path, monkeypatch):
    """The network and the dataset of docs/DEVELOP.md, together from training to scores."""
    monkeypatch.setattr("centernet.models.ARCHITECTURES", dict(models.ARCHITECTURES))
    monkeypatch.setattr("centernet.datasets.DATASETS", dict(datasets.DATASETS))
    examples = [lines for language, lines in blocks(ROOT / "docs" / "DEVELOP.md") if language == "python"]
    assert len(examples) == 2
    for lines in examples:
        exec(compile("\n".join(lines), "docs/DEVELOP.md", "exec"), {"__name__": "example"})

    folder = tmp_path / "data" / "fruit"
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "a.jpg"), np.full((60, 80, 3), 90, np.uint8))
    content = {
        "images": [{"id": k, "file_name": "a.jpg", "width": 80, "height": 60} for k in (1, 2)],
        "annotations": [
            {"id": k, "image_id": k, "category_id": k, "bbox": [9, 9, 40, 30], "area": 1200, "iscrowd": 0}
            for k in (1, 2)
        ],
        "categories": [{"id": 1, "name": "apple"}, {"id": 2, "name": "pear"}],
    }
    for split in ("train", "val"):
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    args = ["ctdet", "--dataset", "fruit", "--arch", "tiny", "--pretrained", "none", "--data_path", str(folder.parent)]
    args += [
        "--batch_size",
        "2",
        "--num_epochs",
        "1",
        "--num_workers",
        "0",
        "--device",
        "cpu",
        "--exp_dir",
        str(tmp_path),
    ]
    main = runpy.run_path(str(ROOT / "src" / "main.py"))["main"]
    main(opts().parse(args))
    run = tmp_path / "ctdet" / "default"
    assert (run / "val_log.csv").read_text().splitlines()[0].endswith("AP/apple,AP/pear")
    assert create_detector(opts().parse(["ctdet", "--load_model", str(run / "model_last.pth")])).run(
        np.zeros((60, 80, 3), np.uint8)
    )["results"].keys() == {1, 2}
