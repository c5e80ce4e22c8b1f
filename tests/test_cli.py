"""The programs' command lines: they answer before PyTorch is imported, and --help shows a program's own options."""

import argparse
import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers.training import ENVIRONMENT, ROOT

from centernet.cli import load
from centernet.options import OptionParser
from centernet.tasks.option import ALL, CHECK, DEMO, EXPORT, TEST, TRAIN
from centernet.utils.help import HelpFormatter
from centernet.utils.tool import tool

OWN = {  # an option of each program, and one of another
    TRAIN: ("lr_step", "demo"),
    TEST: ("not_prefetch_test", "opset"),
    DEMO: ("demo", "num_epochs"),
    EXPORT: ("opset", "demo"),
    CHECK: ("output_dir", "lr"),
}


def answer(script: str, *arguments: str, without: tuple[str, ...] = ("torch",)) -> subprocess.CompletedProcess:
    """Run a script where PyTorch, or what ``without`` names, cannot be imported."""
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({without})); "
    code += f"sys.argv[0] = {script!r}; sys.path[:0] = ['src', 'src/tools']; "
    code += f"runpy.run_path('src/{script}', run_name='__main__')"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", ["main.py", "test.py", "demo.py", "export.py"])
def test_help_needs_no_pytorch(script):
    done = answer(script, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {script} task"), done.stderr


TOOLS = [f"tools/{path.name}" for path in sorted((ROOT / "src/tools").glob("*.py"))]


@pytest.mark.parametrize("script", [*TOOLS, "../loss.py"])
def test_help_and_wrong_options_of_tools_need_no_pytorch(script):
    without = ("torch", "torchvision", "cv2", "matplotlib", "plotly", "scipy")
    done = answer(script, "--help", without=without)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr
    done = answer(script, "--no_such_option", without=without)
    assert done.returncode == 2 and "error: " in done.stderr and "Traceback" not in done.stderr, done.stderr


LONG = "x" * 300  # a path of which the system refuses to say whether it exists, as it does of one without permission


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("demo.py", ["ctdet", "--load_model", "m.pth", "--demo", LONG]),
        ("main.py", ["ctdet", "--dataset", "custom", "--data_path", LONG]),
        ("main.py", ["ctdet", "--dataset", "pascal", "--data_path", LONG, "--device", "cpu"]),
        ("tools/make_report.py", [LONG]),
        ("tools/plot_log.py", [LONG]),
        ("tools/certify.py", [LONG, "--references", "sample_short"]),
        ("tools/check_data.py", ["ctdet", "--dataset", "custom", "--data_path", LONG]),
        ("../loss.py", ["--run", LONG]),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_named(script, arguments):
    done = answer(script, *arguments, without=())
    assert done.returncode == 2, done.stderr
    assert LONG in done.stderr and "error: " in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_an_interrupted_tool_ends_with_one_line(capsys):
    @tool
    def main(argv):
        raise KeyboardInterrupt

    assert main([]) == 130 and capsys.readouterr().err == "interrupted\n"


def test_wrong_options_of_check_device_need_no_pytorch():
    for arguments, message in (
        (["--levels", "none"], "--levels none: no level none"),
        (["--iterations", "0"], "--iterations 0: needs a number of at least 1"),
        (["--lr", "0"], "argument --lr: expected a number above 0"),
    ):
        done = answer("tools/check_device.py", *arguments)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ctdet", "--no_such_option"], "unrecognized arguments: --no_such_option"),
        (["ctdet", "--lr", "0"], "argument --lr: expected a number above 0, not '0'"),
        (["ctdet", "--arch", "dla_35"], "--arch dla_35: unknown network"),
        (["ctdet", "--gpus", "0,-1"], "--gpus 0,-1: -1 is the CPU, alone and without another --device"),
        (["ctdet", "--gpus=-1", "--device", "cuda"], "--gpus -1: -1 is the CPU, alone and without another --device"),
        (["ctdet", "--dataset", "kitti"], "its annotations do not fit the task ctdet"),
        (["multi_pose", "--eval_oracle_hmhp", "--not_hm_hp"], "exclude each other"),
    ],
)
def test_wrong_options_need_no_pytorch(arguments, message):
    done = answer("main.py", *arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "3000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_trainings_share_cores(given, expected):
    """The variable is set before PyTorch is imported, which fails here, and overrules nothing."""
    code = "import os, sys; sys.modules['torch'] = None; sys.argv[1:] = ['ctdet']; sys.path.insert(0, 'src')\n"
    code += (
        "from centernet import cli\ntry: cli.run('main')\nexcept ImportError: print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    kept = {name: value for name, value in ENVIRONMENT.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**kept, **given}, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n", done.stderr


@pytest.mark.parametrize("task", ["ctdet", "multi_pose", "exdet", "ddd"])
def test_dry_run_prints_the_configuration_without_pytorch(task):
    done = answer("main.py", task, "--input_res", "256", "--dry_run", "--vis_thresh", "0.5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("note: --vis_thresh has no effect in main.py\n")
    for line in ("input_h: 256", "output_w: 64", f"task: {task}", "lr_step: [90, 120]"):
        assert f"\n{line}\n" in done.stdout
    assert re.search(r"^heads: \{'hm(_t)?': ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("script", ["demo.py", "test.py", "export.py"])
def test_dry_run_says_what_only_the_checkpoint_determines(script):
    done = answer(script, "ctdet", "--load_model", "no_such.pth", "--dry_run")
    assert done.returncode == 0, done.stderr
    note = "note: --dry_run does not read no_such.pth, which determines the network and its input size\n"
    assert done.stdout.startswith(note)
    assert "does not read" not in answer(script, "ctdet", "--dry_run").stdout


def test_options_of_other_programs_are_named_in_one_line():
    arguments = ["ctdet", "--num_iters", "2", "--lr", "0.1", "--K", "50", "--demo", "a.jpg", "--batch_size", "2"]
    for script, unused in (
        ("test.py", "--demo, --lr have"),
        ("demo.py", "--batch_size, --lr, --num_iters have"),
        ("main.py", "--demo has"),
    ):
        parser = OptionParser(script)
        assert parser.notes(parser.parse(arguments)) == [f"note: {unused} no effect in {script}"]


@pytest.mark.parametrize(
    ("arguments", "notes"),
    [
        ("ctdet --lr_step 5", []),
        ("ctdet --lr_step 90,120 --num_epochs 90", ["--lr_step has no effect before the last epoch, 90"]),
        ("ctdet --lr_step 90,120 --num_epochs 91", []),
        ("ctdet --save_all --metric loss --trainval", ["--save_all, --metric have no effect without validations"]),
        ("ctdet --save_all --metric loss --val_intervals 0 --test --load_model a.pth", []),
        ("ctdet --preset fast --lr_step 5", ["--lr_step has no effect on the learning rate with --lr_schedule cosine"]),
        (
            "ctdet --box_loss giou --wh_weight 1 --off_weight 2 --reg_loss sl1",
            ["--wh_weight, --off_weight, --reg_loss have no effect with --box_loss giou"],
        ),
        ("multi_pose --box_loss giou --off_weight 2", []),
        ("ctdet --box_weight 2", ["--box_weight has no effect without --box_loss giou, diou or ciou"]),
        (
            "ctdet --eval_oracle_hm --eval_oracle_wh=false",
            ["--eval_oracle_hm without --test: the network does not learn what the truth replaces"],
        ),
        ("ctdet --eval_oracle_hm --test --load_model x", []),
        ("ctdet --hm_gauss 3", ["--hm_gauss has no effect without --mse_loss"]),
        ("ctdet --plain_epochs 3", ["--plain_epochs has no effect without --augment or --copy_paste"]),
        ("ctdet --plain_epochs 3 --augment light", []),
        ("ctdet --shift 0.3 --scale 0.2", ["--shift, --scale have no effect without --not_rand_crop"]),
        ("ddd --shift 0.3", []),
        ("multi_pose --rotate 9", ["--rotate has no effect without --aug_rot"]),
        ("ctdet --hide_data_time", ["--hide_data_time has no effect without --print_iter"]),
        ("ctdet --hide_data_time --print_iter 5", []),
    ],
)
def test_options_that_others_contradict_are_noted(arguments, notes):
    parser = OptionParser("main.py")
    assert parser.notes(parser.parse(arguments.split())) == [f"note: {note}" for note in notes]


def test_sizes_with_images_at_their_own_size_are_noted():
    parser = OptionParser("test.py")
    notes = parser.notes(parser.parse(["ctdet", "--keep_res", "--input_res", "64"]))
    assert notes == ["note: --input_res has no effect with --keep_res"]


def help_of(script: str, capsys, option: str = "--help") -> str:
    with pytest.raises(SystemExit) as ended:
        OptionParser(script).parse([option])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("script", ALL)
def test_help_shows_the_options_of_the_program(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text, (own, other) = help_of(script, capsys), OWN[script]
    assert f"--{own} " in text or f"--{own}\n" in text
    assert not re.search(rf"--{other}\b", text)
    everything = help_of(script, capsys, "--help_all")
    assert all(re.search(rf"--{name}\b", everything) for names in OWN.values() for name in names)
    assert "examples:\n" in text and len(re.findall(r"^  \S.* (ctdet|multi_pose) --", text, re.MULTILINE)) == 2
    assert all(len(line) <= 100 for line in text.split("examples:")[0].splitlines())


@pytest.mark.parametrize("script", ALL)
def test_the_examples_of_help_are_valid(script, capsys):
    text = help_of(script, capsys).replace(" \\\n", "")
    for example in re.findall(r"^  .*?((?:ctdet|multi_pose) --.*)$", text, re.MULTILINE):
        words = [str(ROOT / "data") if word == "DIR" else word for word in example.split()]
        parser = OptionParser(script)
        namespace = parser.parser.parse_args(words)
        assert all(script in parser._options[name].scripts for name in re.findall(r"--(\w+)", example)), example
        assert namespace.task in ("ctdet", "multi_pose")


def test_help_shows_defaults(capsys):
    text = " ".join(help_of(TRAIN, capsys).split())
    for default in ("(default: 0.000125)", "(default: 90,120)", "(default: dla_34)", "(default: 32)", "default: exp/"):
        assert default in text


def test_main_is_a_story():
    """One function of at most 80 lines without functions in it."""
    source = (ROOT / "src/main.py").read_text()
    (body,) = re.findall(r"^def main\(.*?(?=^def )", source, re.MULTILINE | re.DOTALL)
    assert len(body.rstrip().splitlines()) <= 80 and "    def " not in body and "lambda" not in body


@pytest.mark.parametrize("path", [ROOT / "loss.py", *sorted((ROOT / "src/tools").glob("*.py"))], ids=lambda p: p.stem)
def test_help_of_tools_fits_the_terminal(path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", [str(path)])
    monkeypatch.syspath_prepend(str(path.parent))  # tools may import each other
    with contextlib.suppress(SystemExit):
        load(path).main(["--help"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) > 5 and [line for line in lines if len(line) > 80] == []
    command = f"python {path.relative_to(ROOT)}"
    on_lines_of_their_own = re.findall(rf"^ +{command}", text, re.MULTILINE)
    assert 1 <= len(on_lines_of_their_own) == text.count(command)
    assert "``" not in text and str(ROOT) not in text


def test_help_breaks_no_words(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    inside, outside = ROOT / "data/coco/annotations/instances_val2017.json", tmp_path / ("a" * 90) / "some-file.json"
    parser.add_argument("--inside", type=Path, default=inside, help="annotation file (%(default)s)")
    parser.add_argument("--outside", type=Path, default=outside, help="another one (%(default)s)")
    words = parser.format_help().split()
    assert {"(data/coco/annotations/instances_val2017.json)", f"({outside})"} <= set(words)


@pytest.mark.parametrize("script", ALL)
def test_help_of_programs_fits_the_terminal(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert [line for line in help_of(script, capsys).splitlines() if len(line) > 80] == []
