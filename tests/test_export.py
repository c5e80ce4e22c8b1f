"""Exported networks give what PyTorch gives; ONNX and OpenVINO are skipped where their packages are not installed."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tests.helpers.conformance import error_in_std, load_formula_weights
from tests.helpers.exported import load
from tests.helpers.small_disk import in_small_file_system, needs_mount
from torch import Tensor, nn
from torch.nn import functional as F

from centernet.detector import create_detector
from centernet.errors import UserError
from centernet.export import Exported, export, export_checkpoint, files_of, notes_of
from centernet.models import create_model, save_model
from centernet.models.deform_conv import DCN
from centernet.models.heads import run_heads
from centernet.options import model_metadata
from centernet.opts import opts
from centernet.tasks import TASKS, get_task

ROOT = Path(__file__).resolve().parents[1]
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
HAS_OPENVINO = HAS_ONNX and importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="needs openvino and the packages for ONNX")
KINDS = {"onnx": "model.onnx", "openvino": "model.xml", "pt2": "model.pt2", "torchscript": "model.ts"}
ARCHITECTURES = ("res_18", "resdcn_18", "dla_34", "dlav0_34", "hourglass")

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


class Maps(nn.Module):
    """Maps for decoding from the smallest of networks."""

    def __init__(self, heads: dict[str, int]) -> None:
        super().__init__()
        self.heads = heads
        for name, channels in heads.items():
            setattr(self, name, nn.Conv2d(48, channels, 1))
            nn.init.normal_(getattr(self, name).weight, std=0.3)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [run_heads(self, F.pixel_unshuffle(x, 4))]


def skip_without_packages(kind):
    if kind == "onnx" and not HAS_ONNX:
        pytest.skip("onnx, onnxscript or onnxruntime is not installed")
    if kind == "openvino" and not HAS_OPENVINO:
        pytest.skip("openvino or a package for ONNX is not installed")


DECODING = {
    "ctdet": ["ctdet"],
    "ctdet of classes": ["ctdet", "--cat_spec_wh", "--not_reg_offset"],
    "multi_pose": ["multi_pose"],
    "ddd": ["ddd"],
}
FAST = {("ctdet", "onnx"), ("ctdet", "openvino"), ("multi_pose", "pt2"), ("ddd", "torchscript")}
CASES = [
    pytest.param(args, kind, marks=() if (name, kind) in FAST else pytest.mark.slow, id=f"{name}-{kind}")
    for name, args in DECODING.items()
    for kind in KINDS
]


@pytest.mark.parametrize(("args", "kind"), CASES)
def test_decoding(tmp_path, args, kind):
    skip_without_packages(kind)
    torch.manual_seed(0)
    opt = opts().parse([*args, "--arch", "dlav0_34", "--with_decode", "--K", "30"])
    model, path = Maps(opt.heads).eval(), tmp_path / KINDS[kind]
    export(model, opt, path, kind)
    run, about = load(kind, path)
    assert about["columns"] == get_task(opt.task)(opt).columns
    for shape in ((1, 3, 96, 64), (3, 3, 64, 160)):
        x = torch.randn(shape)
        (found,), expected = run(x), get_task(opt.task)(opt).decode(model(x)[-1])
        assert found.shape == expected.shape == (shape[0], 30, len(about["columns"]))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("agnostic", "kind"),
    [(False, "pt2"), *(pytest.param(agnostic, "onnx", marks=pytest.mark.slow) for agnostic in (False, True))],
)
def test_decoding_of_extreme_points(tmp_path, agnostic, kind):
    """All combinations at once give what looking at pairs gives."""
    skip_without_packages(kind)
    torch.manual_seed(0)
    args = ["exdet", "--dataset", "sample_ex", "--arch", "dlav0_34", "--with_decode", "--K", "12" if agnostic else "24"]
    opt = opts().parse([*args, "--scores_thresh", "0.4", *["--agnostic_ex"][:agnostic]])
    model, path = Maps(opt.heads).eval(), tmp_path / KINDS[kind]
    export(model, opt, path, kind)
    run, about = load(kind, path)
    x = torch.randn(2, 3, 64, 96)
    (found,), expected = run(x), get_task("exdet")(opt).decode(model(x)[-1])
    assert found.shape == expected.shape == (2, 1000, len(about["columns"]))
    counts = (expected[:, :, 4] > 0).sum(1)
    assert counts.min() > 5 and counts.max() < 1000
    for rows, others in zip(found, expected, strict=True):  # equal scores may come in another order
        key = torch.arange(1.0, 15.0)
        rows, others = rows[rows.mv(key).argsort()], others[others.mv(key).argsort()]
        torch.testing.assert_close(rows, others, rtol=1e-4, atol=1e-4)


def check_network(tmp_path, arch, kind, *more):
    torch.manual_seed(0)
    args = ["ctdet", "--dataset", "sample", "--arch", arch, "--head_conv", "16", "--input_res", "128", *more]
    opt = opts().parse(args)
    model, path = load_formula_weights(create_model(arch, opt.heads, opt.head_conv)).eval(), tmp_path / KINDS[kind]
    export(model, opt, path, kind)
    run, about = load(kind, path)
    assert about["outputs"] == list(opt.heads) and about["multiple_of"] == opt.pad + 1
    step = opt.pad + 1
    with torch.no_grad():
        for shape in ((1, 3, 2 * step, 2 * step), (2, 3, 2 * step, 3 * step)):
            x = torch.randn(shape)
            for value, expected in zip(run(x), Exported(model, opt)(x), strict=True):
                assert error_in_std(value, expected) < 1e-3
    return path


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_network(tmp_path, arch, kind):
    skip_without_packages(kind)
    check_network(tmp_path, arch, kind)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resdcn_18", "dla_34"])
def test_onnx_of_plain_operators(tmp_path, arch):
    skip_without_packages("onnx")
    import onnx

    path = check_network(tmp_path, arch, "onnx", "--plain_deform_conv", "--opset", "18")
    model = onnx.load(path)
    assert "DeformConv" not in {node.op_type for node in model.graph.node}
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 18
    assert model.ir_version == 8  # what ONNX Runtime 1.14 reads


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint with a description of its network, which finds something everywhere."""
    torch.manual_seed(0)
    opt = opts().parse(["ctdet", "--dataset", "sample", "--arch", "resdcn_18", "--head_conv", "16"])
    model = load_formula_weights(create_model(opt.arch, opt.heads, opt.head_conv))
    nn.init.zeros_(model.hm[-1].bias)
    path = tmp_path_factory.mktemp("checkpoint") / "model.pth"
    save_model(path, 1, model, None, {"model": model_metadata(opt)})
    return path


class Deformable(Maps):
    """The same maps after a deformable convolution."""

    def __init__(self, heads: dict[str, int]) -> None:
        super().__init__(heads)
        self.dcn = DCN(48, 48)
        nn.init.normal_(self.dcn.conv_offset_mask.weight, std=0.2)
        nn.init.normal_(self.dcn.bias)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [run_heads(self, self.dcn(F.pixel_unshuffle(x, 4)))]


@needs_openvino
def test_openvino_with_deformable_convolution(tmp_path):
    """OpenVINO's own operator, which its ONNX reader does not know, also where samples are outside the image."""
    torch.manual_seed(0)
    opt = opts().parse(["ctdet", "--dataset", "sample", "--arch", "res_18"])
    model, path = Deformable(opt.heads).eval(), tmp_path / "model.xml"
    export(model, opt, path, "openvino")
    assert "DeformableConvolution" in path.read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    run, about = load("openvino", path)
    assert (about["task"], about["heads"]) == ("ctdet", opt.heads)
    for shape in ((1, 3, 64, 64), (2, 3, 96, 64)):
        x = torch.randn(shape)
        for value, expected in zip(run(x), Exported(model, opt)(x), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_openvino_needs_its_package(tmp_path, monkeypatch, checkpoint):
    monkeypatch.setitem(sys.modules, "openvino", None)
    arguments = ["ctdet", "--load_model", str(checkpoint), "--output", str(tmp_path / "a.xml")]
    with pytest.raises(UserError, match="--output .*a.xml: needs a package that is missing: pip install openvino"):
        export_checkpoint(opts().parse(arguments))
    assert not list(tmp_path.iterdir())


def example_of(language_start):
    """The code block of docs/EXPORT.md that begins so."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "EXPORT.md").read_text(), re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if language_start in block]
    return block


def test_the_examples_of_the_documents(tmp_path, checkpoint):
    """As in docs/EXPORT.md: a program that has no PyTorch, and one that has nothing else."""
    skip_without_packages("onnx")
    import onnx

    said = []
    for name in ("model.onnx", "model.pt2"):
        args = ["ctdet", "--load_model", str(checkpoint), "--with_decode", "--output", str(tmp_path / name)]
        export_checkpoint(opts().parse([*args, "--opset", "19"]), log=said.append)
    assert said.count("note: --opset has no effect on pt2") == 1
    assert said[-1].startswith(f"{tmp_path / 'model.pt2'}: ") and said[-1].endswith("resdcn_18 for ctdet")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    assert model.ir_version == 9  # that of opset 19
    assert sum(node.op_type == "DeformConv" for node in model.graph.node) == 3
    assert str(ROOT) not in repr(model.graph.node) and not any(node.metadata_props for node in model.graph.node)
    sizes = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "32*height", "32*width"]

    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8), (150, 110))
    cv2.imwrite(str(tmp_path / "image.png"), image)
    (tmp_path / "detect.py").write_text(
        "import sys\nsys.modules.update(torch=None, centernet=None)\n" + example_of("import onnxruntime")
    )
    command = [sys.executable, "detect.py", "model.onnx", "image.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]

    detector = create_detector(opts().parse(["ctdet", "--load_model", str(checkpoint), "--device", "cpu"]))
    results = detector.run(image)["results"]
    names = detector.opt.class_names
    expected = [(names[cls - 1], row) for cls, boxes in results.items() for row in boxes if row[4] > 0.3]
    assert len(rows) == len(expected) > 5
    for name, (*box, score) in expected:
        numbers = np.array([row[1:] for row in rows if row[0] == name], dtype=float)
        assert np.abs(numbers - [score, *box]).max(1).min() < 0.3

    code = "import sys\nsys.modules.update(torchvision=None, centernet=None)\n" + example_of("import torch\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['x1', 'y1', 'x2', 'y2', 'score', 'class'] torch.Size([1, 100, 6])\n"


@pytest.mark.parametrize("task", ["ctdet", "multi_pose", "ddd"])
def test_safetensors(tmp_path, task):
    """Weights and metadata come back: the same network without further options, and the same detections."""
    pytest.importorskip("safetensors")
    opt = opts().parse([task, "--arch", "res_18", "--input_res", "64", "--not_reg_offset"])
    torch.manual_seed(0)
    calib = [[700.0, 0, 30, 0], [0, 700.0, 30, 0], [0, 0, 1, 0]]
    info = {"calib": calib} if task == "ddd" else {}
    path, output = tmp_path / "a.pth", tmp_path / "a.safetensors"
    extra = {"model": model_metadata(opt, info)}
    save_model(path, 3, create_model(opt.arch, opt.heads, opt.head_conv), extra=extra)
    lines = []
    arguments = [task, "--load_model", str(path), "--output", str(output), "--with_decode"]
    assert export_checkpoint(opts().parse(arguments), lines.append) == output
    assert lines[0] == "note: --with_decode has no effect on safetensors" and lines[-1].startswith(f"{output}: ")
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    options = ["--device", "cpu", "--peak_thresh", "0"]
    results = []
    for file in (path, output):
        detector = create_detector(opts().parse([task, "--load_model", str(file), *options]), log=lambda _: None)
        assert (detector.opt.arch, detector.opt.heads) == ("res_18", opt.heads)
        assert detector.opt.picture_info == info and detector.opt.keypoints == opt.keypoints
        results.append(detector.run(image)["results"])
    for cls, rows in results[0].items():
        np.testing.assert_array_equal(rows, results[1][cls])


def test_safetensors_needs_its_package(tmp_path, monkeypatch, checkpoint):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    arguments = ["ctdet", "--load_model", str(checkpoint), "--output", str(tmp_path / "a.safetensors")]
    with pytest.raises(UserError, match="a.safetensors: needs a package that is missing: pip install safetensors"):
        export_checkpoint(opts().parse(arguments))
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ([], "--output: needs the file to write"),
        (["--output", "model.bin"], "--output model.bin: the format does not follow from the suffix"),
        (["--output", "nowhere/model.onnx"], "the folder nowhere does not exist"),
        (["--output", "model.ir", "--format", "openvino"], "--output model.ir: OpenVINO reads .xml files only"),
        (["--output", "q.pt2", "--format", "onnx"], "--format onnx: the suffix of --output q.pt2 is that of pt2"),
        (["--output", "q.xml", "--format", "onnx"], "--format onnx: the suffix of --output q.xml is that of openvino"),
        (["--output", "model.onnx", "--opset", "18"], "--opset 18: the operator DeformConv needs 19"),
        (["--output", "model.pt2", "--with_decode", "--aggr_weight", "0.1"], "--with_decode: --aggr_weight"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, checkpoint, more, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(problem)):
        export_checkpoint(opts().parse(["ctdet", "--load_model", str(checkpoint), *more]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "output"), [("a.pt", "a.pt"), ("a.pt", "b.pt"), ("a.bin", "a.xml")])
def test_the_checkpoint_is_not_overwritten(tmp_path, monkeypatch, checkpoint, name, output):
    monkeypatch.setattr("centernet.export.check_openvino", lambda path: None)
    content = checkpoint.read_bytes()
    (tmp_path / name).write_bytes(content)
    (tmp_path / "b.pt").symlink_to("a.pt")
    with pytest.raises(UserError, match="is the checkpoint of --load_model; choose another name"):
        export_checkpoint(
            opts().parse(["ctdet", "--load_model", str(tmp_path / name), "--output", str(tmp_path / output)])
        )
    assert (tmp_path / name).read_bytes() == content


def test_notes_about_options_without_effect(checkpoint):
    given = ["--K", "50", "--threads", "2", "--max_ap_drop", "0.1", "--calibration", "val"]

    def notes(*more):
        opt = opts().parse(["ctdet", "--load_model", str(checkpoint), *given, *more])
        return [note.removeprefix("note: ") for note in notes_of(opt, "onnx")]

    assert notes() == [
        "--calibration has no effect without --int8",
        "--max_ap_drop has no effect without --verify or --int8",
        "--threads has no effect without --verify, --benchmark or --int8",
        "--K has no effect without --with_decode, --verify or --int8",
    ]
    assert notes("--int8") == [] and notes("--verify", "val") == ["--calibration has no effect without --int8"]
    assert not any(note.startswith("--threads") for note in notes("--benchmark"))
    assert not any(note.startswith("--K") for note in notes("--with_decode"))


@pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime")
def test_an_operator_set_that_cannot_be_written(tmp_path, checkpoint):
    command = [sys.executable, str(ROOT / "src/export.py"), "ctdet", "--load_model", str(checkpoint), "--opset", "99"]
    done = subprocess.run([*command, "--output", str(tmp_path / "q.onnx")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr == "error: --opset 99: the installed onnx and onnxscript cannot write it; use 19\n"


FULL_DISK = """
from pathlib import Path
from centernet.errors import UserError
from centernet.export import export, files_of
from centernet.opts import opts
from tests.test_export import KINDS, Maps
opt = opts().parse(["ctdet", "--dataset", "pascal", "--arch", "res_18"])
for kind in KINDS_HERE:
    files = files_of(Path(KINDS[kind]), kind)
    for file in files:
        file.write_text("old")
    try:
        export(Maps({"hm": 2000, "wh": 2, "reg": 2}), opt, files[-1], kind)
    except UserError as error:
        print(error)
    assert all(file.read_text() == "old" for file in files)
"""


@needs_mount
@pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime")
def test_a_full_disk_keeps_the_earlier_files(tmp_path):
    kinds = [kind for kind in KINDS if kind != "openvino" or HAS_OPENVINO]
    done = in_small_file_system(FULL_DISK.replace("KINDS_HERE", repr(kinds)), tmp_path, 128)
    assert done.returncode == 0, done.stderr
    files = [files_of(Path(KINDS[kind]), kind) for kind in kinds]
    expected = [f"{of_kind[0]}: cannot be written (disk full); the earlier file is unchanged" for of_kind in files]
    assert done.stdout.splitlines() == [*expected, *sorted(str(file) for of_kind in files for file in of_kind)]


def test_the_script(tmp_path):
    """A mistake is one line, as in the other scripts."""
    command = [sys.executable, ROOT / "src" / "export.py", "ctdet", "--load_model", "none.pth", "--nms", "--output"]
    done = subprocess.run([*command, "a.onnx"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.startswith("error: none.pth") and done.stderr.count("\n") == 1
    assert done.stdout == "note: --nms has no effect in export.py\n"


def test_no_checkpoint():
    with pytest.raises(UserError, match="--load_model: needs the checkpoint"):
        export_checkpoint(opts().parse(["ctdet", "--output", "model.onnx"]))


def test_columns_of_every_task():
    """As many names as numbers in a detection."""
    for task in TASKS:
        opt = opts().parse([task, "--K", "4"])
        heads = {name: torch.randn(1, channels, 8, 8) for name, channels in opt.heads.items()}
        assert get_task(task)(opt).decode(heads).shape[2] == len(get_task(task)(opt).columns)
