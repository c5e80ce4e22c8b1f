"""loss.py and make_reference.py: what they choose, print, write and return."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import loss
import numpy as np
import pytest

from centernet.analysis import page_plots
from centernet.analysis.read import read_curve

ROOT = Path(loss.__file__).parent
MAKE_REFERENCE = ROOT / "src" / "tools" / "make_reference.py"
COLUMNS = "epoch,iteration,loss,hm_loss,wh_loss,off_loss,lr,images/s"
RECIPE = {
    "task": "ctdet",
    "dataset": "pascal",
    "arch": "resdcn_18",
    "input_h": 384,
    "input_w": 384,
    "batch_size": 32,
    "lr": 0.001,
    "num_epochs": 4,
}
PNG = b"\x89PNG"


spec = importlib.util.spec_from_file_location("make_reference", MAKE_REFERENCE)
make_reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_reference)


def losses(n=200, seed=0):
    return 2 + 3 * np.exp(-np.arange(n) / 50) + 0.05 * np.random.default_rng(seed).normal(size=n)


@pytest.fixture
def exp(tmp_path):
    folder = tmp_path / "exp"
    folder.mkdir()
    return folder


def write_run(exp, name, values, recipe=RECIPE, mtime=None, **info):
    """A run folder of 50 iterations an epoch; ``recipe`` None leaves opt.json out."""
    folder = exp / "ctdet" / name
    folder.mkdir(parents=True)
    log = folder / "train_log.csv"
    rows = [f"{i // 50 + 1},{i + 1},{value},1.0,2.0,0.5,0.001,99.5" for i, value in enumerate(values)]
    log.write_text("\n".join([COLUMNS, *rows]) + "\n")
    if recipe is not None:
        opt = {
            "options": recipe | {"data_path": "x"},
            "recipe": recipe,
            "processes": 4,
            "device": "H",
            "git": "4c50fd3",
        }
        opt |= {"versions": {"torch": "2.9"}, "command": "src/main.py ctdet"} | info
        (folder / "opt.json").write_text(json.dumps(opt))
    if mtime:
        os.utime(log, (mtime, mtime))
    return folder


@pytest.fixture
def call(exp, capsys):
    """Run loss.py's main below ``exp`` and return the status, the printed lines and what went to stderr."""

    def run(*argv, plot="none"):
        plot = [] if plot is None else ["--plot", str(plot)]
        try:
            status = loss.main(["--exp_dir", str(exp), *plot, *map(str, argv)])
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err

    return run


@pytest.fixture
def reference(exp):
    """The reference ``base`` of RECIPE, made from a run that is then removed from the newest-run choice."""
    folder = write_run(exp, "for_reference", losses(seed=1), mtime=1)
    make_reference.make_reference(folder, "base", exp)
    return exp / "reference" / "base.csv"


# The output

# Of a run that is the committed reference times 1 + 0.04 sin(i / 7), by window.
GOLDEN_ERRORS = {
    32: ("0.00853844290360212", "0.010252090199827063"),
    7: ("0.02446778286555782", "0.0311908006069156"),
}


@pytest.mark.parametrize("window", GOLDEN_ERRORS)
def test_the_four_lines_on_the_committed_reference(tmp_path, capsys, window):
    committed = read_curve(ROOT / "exp" / "reference" / "sample_dlav0_34.csv").loss
    losses = committed * [1 + 0.04 * math.sin(i / 7) for i in range(len(committed))]
    run = tmp_path / "run.csv"
    run.write_text("loss\n" + "".join(f"{x:.9g}\n" for x in losses))
    assert loss.main([f"--run={run}", "--reference=sample_dlav0_34", "--plot=none", f"--window={window}"]) == 0
    relative, absolute = GOLDEN_ERRORS[window]
    assert capsys.readouterr().out.splitlines()[:4] == [
        f"MeanRelativeError: {relative}",
        f"MeanAbsoluteError: {absolute}",
        f"Rule,mean_relative_error {relative}",
        f"pass mean_relative_error={relative} <= 0.05 or mean_absolute_error={absolute} <= 0.0002",
    ]


def test_vendors_log_names_and_rule(exp, reference, call, tmp_path):
    """A curve that is 38 % too low passes the vendors' signed rule and fails here."""
    log = tmp_path / "sdaa.log"
    values = losses(seed=1)
    log.write_text("".join(f"rank : 0  train.loss : {0.62 * x}  train.ips : 9 imgs/s\n" for x in values))
    status, lines, _ = call("--sdaa-log", log, "--cuda-log", reference, "--rule", "vendor")
    assert status == 1 and lines[3].startswith("fail mean_relative_error=0.37999")
    printed = dict(line.split(": ", 1) for line in lines if ": " in line)
    assert float(printed["VendorMeanRelativeError"]) == pytest.approx(-0.38)
    assert float(printed["VendorMeanAbsoluteError"]) == pytest.approx(np.mean(-0.38 * values))
    assert printed["VendorRule"].startswith("pass mean_relative_error=-0.38")
    (why,) = (line for line in lines if "the vendors' rule passes what fails here: its errors are signed" in line)
    assert "38 % below" in why
    assert call("--run", log, "--reference", log, "--rule", "vendor")[0] == 0


def test_vendors_rule_is_not_smoothed(exp, reference, call, tmp_path):
    (tmp_path / "run.csv").write_text("loss\n" + "3\n1\n" * 20)
    (tmp_path / "other.csv").write_text("loss\n" + "2\n4\n" * 20)
    _, lines, _ = call("--run", tmp_path / "run.csv", "--reference", tmp_path / "other.csv", "--rule", "vendor")
    assert lines[11:13] == ["VendorMeanRelativeError: -0.125", "VendorMeanAbsoluteError: -1.0"]
    (tmp_path / "other.csv").write_text("loss\n" + "2\n" * 40)
    argv = ["--run", tmp_path / "run.csv", "--reference", tmp_path / "other.csv", "--rule", "vendor", "--window", "1"]
    lines = call(*argv)[1]
    assert any("those above and below the reference cancel: the mean is 0, the mean distance 0.5" in x for x in lines)


@pytest.mark.parametrize(("language", "title"), [("en", "## Training results"), ("zh", "## 训练结果")])
def test_block_for_a_model_zoo(exp, reference, call, language, title):
    folder = write_run(exp, "run", losses(seed=2), device="A | B")
    _, lines, _ = call("--readme", language, plot=folder / "loss curve.png")
    block = lines[lines.index(title) :]
    assert f"![loss]({folder / 'loss%20curve.png'})" in block
    start = block.index("```")
    assert block[start + 1 : start + 5] == lines[:4] and block[start + 5] == "```"
    assert block[-2].split(" | ")[1:4] == [["A \\| B"][0], "4", "200"]


def test_run_that_starts_later(exp, reference, call):
    """A run that was resumed without its earlier log is compared where it has iterations."""
    folder = write_run(exp, "run", losses(seed=1))
    log = folder / "train_log.csv"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], *lines[6:]]) + "\n")
    status, lines, _ = call(plot=folder / "loss.png")
    assert status == 0 and lines[0] == "MeanRelativeError: 0.0" and "Compared: 195 iterations" in lines
    assert f"Note: {log} starts at iteration 6" in lines
    assert any("195 of the reference's 200 iterations, 6 to 200 against 1 to 200" in line for line in lines)
    text = log.read_text().splitlines()
    log.write_text("\n".join([text[0], *text[100:]]) + "\n")
    assert "fail incomplete run" in call()[1][3]
    log.write_text("\n".join([text[0], text[-1].replace("4,200,", "4,201,")]) + "\n")
    status, _, err = call()
    assert status == 2 and "has iterations 201 to 201, none of" in err


def test_passing_run_prints_the_lines_and_draws(exp, reference, call):
    folder = write_run(exp, "run", losses(seed=2), processes=2)
    status, lines, err = call(plot=None)
    relative, absolute = (float(line.split(": ")[1]) for line in lines[:2])
    assert 0 < relative < 0.05 and 0 < absolute < 0.1
    assert lines[:4] == [
        f"MeanRelativeError: {relative!r}",
        f"MeanAbsoluteError: {absolute!r}",
        f"Rule,mean_relative_error {relative!r}",
        f"pass mean_relative_error={relative!r} <= 0.05 or mean_absolute_error={absolute!r} <= 0.0002",
    ]
    assert lines[4].startswith("SignedMeanRelativeError: ") and lines[5].startswith("SignedMeanAbsoluteError: ")
    assert lines[6:] == [
        "Window: 20 iterations",
        "Compared: 200 iterations",
        f"Run: {folder / 'train_log.csv'}",
        f"Reference: {reference}",
        f"Plot: {folder / 'loss.png'}",
        "Note: processes differ: 2 against 4",
    ]
    assert (status, err) == (0, "")
    assert (folder / "loss.png").read_bytes()[:4] == PNG


def test_errors_are_those_of_the_smoothed_curves(exp, reference, call):
    write_run(exp, "run", losses(seed=2))
    _, lines, _ = call("--window", "30")
    smooth_run, smooth_reference = (np.convolve(losses(seed=s), np.ones(30) / 30, "valid") for s in (2, 1))
    difference = smooth_run - smooth_reference
    expected = [np.mean(np.abs(difference) / smooth_reference), np.mean(np.abs(difference))]
    expected += [np.mean(difference / smooth_reference), np.mean(difference)]
    printed = [float(lines[i].split(": ")[1]) for i in (0, 1, 4, 5)]
    np.testing.assert_allclose(printed[:2], expected[:2], rtol=1e-9)
    assert [line.split(": ")[1] for line in lines[4:6]] == [f"{value:.6g}" for value in expected[2:]]
    assert lines[6] == "Window: 30 iterations"


def test_failing_run_prints_the_numbers_that_fail(exp, reference, call):
    write_run(exp, "run", losses() * 1.2)
    status, lines, _ = call()
    relative, absolute = (line.split(": ")[1] for line in lines[:2])
    assert status == 1
    assert lines[3] == f"fail mean_relative_error={relative} > 0.05 and mean_absolute_error={absolute} > 0.0002"


def test_errors_that_cancel_fail_and_show(exp, reference, call):
    write_run(exp, "run", losses(seed=1) * np.where(np.arange(200) % 100 < 50, 1.4, 0.6))
    status, lines, _ = call("--window", "5")
    assert status == 1
    assert abs(float(lines[4].split(": ")[1])) < 0.05 < 0.3 < float(lines[0].split(": ")[1])


def test_nan_run_fails_and_is_drawn(exp, reference, call):
    values = losses()
    values[120:] = np.nan
    folder = write_run(exp, "run", values)
    status, lines, _ = call(plot=None)
    assert status == 1 and lines[0] == "MeanRelativeError: nan"
    assert lines[3] == "fail NaN or infinity in the run, first at iteration 121"
    assert (folder / "loss.png").read_bytes()[:4] == PNG


@pytest.mark.parametrize("values", [[np.nan] * 200, [1e308] * 200, [-1.0] * 200, [0.0] * 200, [1.0] * 3])
def test_odd_curves_are_drawn(exp, reference, call, values):
    folder = write_run(exp, "run", values)
    status, lines, err = call("--window", "10", plot=folder / "odd$_$.png")
    assert (status, err) == (1, "") and lines[3].startswith("fail ")
    assert (folder / "odd$_$.png").read_bytes()[:4] == PNG


def test_stopped_run_fails(exp, reference, call):
    write_run(exp, "run", losses(seed=1)[:150])
    status, lines, _ = call()
    assert status == 1 and lines[3] == "fail incomplete run: 150 of the reference's 200 iterations"
    assert lines[-1] == "Note: the run has 150 of the reference's 200 iterations: the common part is compared"


def test_short_run_fails(exp, reference, call):
    write_run(exp, "run", losses(seed=1)[:19])
    status, lines, _ = call()
    assert status == 1 and lines[3].startswith("fail too few iterations: 19 in common, at least 20 needed")


def test_different_recipe_fails_although_the_numbers_agree(exp, reference, call):
    write_run(exp, "run", losses(seed=1), RECIPE | {"lr": 0.01})
    status, lines, _ = call()
    assert status == 1 and lines[3] == "fail different recipes: lr 0.01 against 0.001"
    assert lines[0] == "MeanRelativeError: 0.0"


# Choosing the run and the reference


def test_newest_run_is_chosen_and_references_are_not_runs(exp, reference, call):
    write_run(exp, "old", losses(seed=3), mtime=2000)
    new = write_run(exp, "a_new", losses(seed=4), mtime=4000)
    write_run(exp, "z_old", losses(seed=5), mtime=3000)
    decoy = exp / "reference" / "decoy"
    decoy.mkdir()
    (decoy / "train_log.csv").write_text("loss\n1\n")
    _, lines, _ = call()
    assert f"Run: {new / 'train_log.csv'}" in lines


def test_reference_of_the_same_arch_and_size_is_chosen(exp, reference, call):
    for i, change in enumerate(({"arch": "dla_34"}, {"input_h": 512}, {"batch_size": 16}, {"dataset": "coco"})):
        folder = write_run(exp, f"other{i}", losses(), RECIPE | change, mtime=1)
        make_reference.make_reference(folder, f"other{i}", exp)
    (exp / "reference" / "plain.csv").write_text("loss\n1\n")  # without a recipe it belongs to no run
    write_run(exp, "run", losses(seed=2), RECIPE | {"lr": 0.5})
    _, lines, _ = call()
    assert f"Reference: {reference}" in lines


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("main.py ctdet --exp_dir /a --lr 1e-3 --data_path=/b", "main.py ctdet --lr 1e-3"),
        ("main.py ctdet --data_path '/my data/voc' --exp_id 'a b'", "main.py ctdet --exp_id 'a b'"),
        ('main.py --data_path "/it\'s" --exp_dir \'/a\'"/b c" --seed 1', "main.py --seed 1"),
        ("main.py --exp_id 'not closed", None),
        (None, None),
    ],
)
def test_a_reference_does_not_name_folders_of_its_machine(command, expected):
    assert make_reference.without_paths(command) == expected


def test_without_a_fitting_reference_the_others_are_listed(exp, reference, call):
    write_run(exp, "run", losses(), RECIPE | {"arch": "dla_34"})
    status, lines, err = call()
    assert (status, lines) == (2, []) and err.count("\n") == 1
    assert err.startswith("loss.py: error: ") and "no reference fits" in err
    assert "base (task ctdet, dataset pascal, arch resdcn_18" in err
    assert "--reference FILE" in err and "make_reference.py RUN_FOLDER NAME" in err


def test_several_fitting_references_are_listed(exp, reference, call):
    make_reference.make_reference(exp / "ctdet" / "for_reference", "again", exp)
    status, _, err = call()
    assert status == 2 and "several references fit" in err and "again (" in err and "base (" in err
    assert call("--reference", "again")[0] == 0


@pytest.mark.parametrize("recipe", [None, {}, {"lr": 1}])
def test_run_without_its_recipe_needs_a_named_reference(exp, reference, call, recipe):
    write_run(exp, "run", losses(seed=2), recipe)
    status, _, err = call()
    assert status == 2 and "--reference FILE" in err
    if not recipe:
        status, lines, _ = call("--reference", "base")
        assert status == 0 and any(line.startswith("Note: no recipe known for the run:") for line in lines)


def test_reference_by_file_name_and_run_directory(exp, reference, call):
    write_run(exp, "run", losses(seed=2))
    for given in (reference, "base", exp / "ctdet" / "for_reference"):
        status, lines, _ = call("--reference", given)
        assert status == 0 and not any(line.startswith("Note") for line in lines)
    _, lines, _ = call("--run", exp / "ctdet" / "run", "--reference", exp / "ctdet" / "run")
    assert lines[-1] == "Note: the run and the reference are the same file"


def test_log_of_the_original_against_a_reference(exp, reference, call, tmp_path):
    values = losses(seed=1).reshape(4, 50)
    lines = [
        f"ctdet/default| train: [{epoch + 1}][{i}/50]|Tot: 0:01:12 |ETA: 0:08:03 |loss {row[: i + 1].mean():.4f} |"
        for epoch, row in enumerate(values)
        for i in range(0, 50, 5)
    ]
    log = tmp_path / "vendor.log"
    log.write_text("\n".join(lines))
    status, lines, _ = call("--run", log, "--reference", "base", plot=None)
    assert status == 0 and float(lines[0].split()[1]) < 0.01
    assert "Compared: 200 iterations" in lines and f"Plot: {tmp_path / 'loss.png'}" in lines
    assert any("averages over the epoch every 5 iterations" in line for line in lines)
    assert call("--run", reference, "--reference", log)[0] == 0


# What cannot be used


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.csv", None, "no such file"),
        ("empty.csv", b"", "is empty"),
        ("binary.csv", b"\x80\x02\x00\x01", "binary file"),
        ("ragged.csv", b"step,loss\n1,2\n3\n", "row 3 has 1 columns"),
        ("column.csv", b"step,value\n1,2\n", "no loss found"),
        ("n" * 300, None, "n" * 300),
    ],
)
@pytest.mark.parametrize("side", ["--run", "--reference"])
def test_unusable_files(exp, reference, call, tmp_path, name, content, expected, side):
    write_run(exp, "run", losses())
    if content is not None:
        (tmp_path / name).write_bytes(content)
    status, lines, err = call(side, tmp_path / name)
    assert (status, lines) == (2, []) and err.count("\n") == 1
    assert err.startswith("loss.py: error: ") and name in err and expected in err


def test_the_names_of_references_are_listed(exp, reference, call):
    write_run(exp, "run", losses())
    status, lines, err = call("--reference", "nope")
    problem = f"--reference nope: no such file, and not one of the names in {exp / 'reference'}: base"
    assert (status, lines, err) == (2, [], f"loss.py: error: {problem}\n")


@pytest.mark.parametrize("content", ["{", "[]", '{"recipe": 3}', "\udcff"])
@pytest.mark.parametrize("name", ["ctdet/run/opt.json", "reference/base.json"])
def test_unreadable_recipes(exp, reference, call, content, name):
    write_run(exp, "run", losses())
    (exp / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    status, lines, err = call()
    assert (status, lines) == (2, []) and err.count("\n") == 1 and name.split("/")[-1] in err


def test_folder_without_a_log_and_no_run_at_all(exp, call):
    assert "no run" in call()[2]
    status, _, err = call("--run", exp)
    assert status == 2 and "without train_log.csv" in err


def test_reference_with_nan_is_unusable(exp, reference, call):
    reference.write_text("loss\n" + "\n".join(["1"] * 30 + ["nan"]))
    status, _, err = call("--run", exp / "ctdet" / "for_reference", "--reference", reference)
    assert status == 2 and "base.csv: NaN or infinity at iteration 31" in err


@pytest.mark.parametrize(
    "argv", [["--window", "0"], ["--window", "-3"], ["--window", "2.5"], ["--windo", "5"], ["extra"]]
)
def test_wrong_arguments(call, argv):
    status, lines, err = call(*argv)
    assert (status, lines) == (2, []) and "loss.py: error: " in err


def test_plot_that_cannot_be_written(exp, reference, call, tmp_path):
    folder = write_run(exp, "run", losses(seed=2))
    for plot in (tmp_path / "missing" / "x.png", tmp_path / "x.csv", tmp_path):
        status, lines, err = call(plot=plot)
        assert (status, lines) == (2, []) and "cannot be written" in err and err.count("\n") == 1
    (folder / "loss.png").mkdir()  # nobody asked for this one: the verdict comes without it
    status, lines, _ = call(plot=None)
    assert status == 0 and "Plot: none" in lines and "cannot be written" in lines[-1]


def test_runs_from_any_folder_without_torch(exp, reference, tmp_path):
    write_run(exp, "run", losses() * 1.2)
    code = (
        "import runpy, sys; sys.argv = ['loss.py', '--exp_dir', 'exp']\n"
        "try: runpy.run_path(sys.path.pop(), run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT / 'loss.py')!r})\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 1 and result.stderr == ""
    assert lines[-1] == "False" and "Run: exp/ctdet/run/train_log.csv" in lines


# make_reference.py


def test_make_reference_writes_the_curve_and_what_made_it(exp, capsys):
    folder = write_run(exp, "run", losses(), mtime=1_700_000_000)
    assert make_reference.main([str(folder), "name", "--exp_dir", str(exp)]) == 0
    out = capsys.readouterr().out
    csv_path, json_path = exp / "reference" / "name.csv", exp / "reference" / "name.json"
    assert f"Wrote {csv_path}: 200 iterations" in out and f"Wrote {json_path}" in out
    assert csv_path.read_bytes() == (folder / "train_log.csv").read_bytes()
    assert json.loads(json_path.read_text()) == {
        "date": "2023-11-14T22:13:20+00:00",
        "command": "src/main.py ctdet",
        "commit": "4c50fd3",
        "versions": {"torch": "2.9"},
        "device": "H",
        "processes": 4,
        "iterations": 200,
        "recipe": RECIPE,
    }


def test_make_reference_overwrites_only_by_force(exp, reference, capsys):
    folder = write_run(exp, "run", losses(seed=5))
    before = reference.read_bytes()
    argv = [str(folder), "base", "--exp_dir", str(exp)]
    assert make_reference.main(argv) == 2
    err = capsys.readouterr().err
    assert "--force" in err and err.count("\n") == 1 and reference.read_bytes() == before
    assert make_reference.main([*argv, "--force"]) == 0
    assert reference.read_bytes() == (folder / "train_log.csv").read_bytes()


def test_make_reference_of_a_resumed_run_keeps_each_iteration_once(exp):
    folder = write_run(exp, "run", losses())
    log = folder / "train_log.csv"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:121], *lines[101:]]) + "\n")
    csv_path, _ = make_reference.make_reference(folder, "name", exp)
    assert csv_path.read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text.replace("\n1,9,", "\n1,9,nan,"), "row 10 has 9 columns"),
        (lambda text: text.replace(",2.0,", ",nan,", 1), "wh_loss is 'nan' at iteration 1"),
        (lambda text: text.replace(",0.5,", ",-inf,", 1), "off_loss is '-inf' at iteration 1"),
        (lambda text: "\n".join(text.splitlines()[:150]), "ends in epoch 3 of 4"),
        (lambda text: "\n".join(text.splitlines()[:190]), "last epoch has 39 of 50 iterations"),
        (lambda text: text.replace("\n2,60,", "\n2,61,"), "iteration 61 follows 59"),
        (lambda text: COLUMNS, "no iterations"),
        (lambda text: "step,loss\n1,2\n", "expected the columns epoch,iteration,loss"),
        (lambda text: "", "is empty"),
    ],
)
def test_make_reference_refuses_an_unfit_run(exp, capsys, change, expected):
    folder = write_run(exp, "run", losses())
    log = folder / "train_log.csv"
    log.write_text(change(log.read_text()))
    assert make_reference.main([str(folder), "name", "--exp_dir", str(exp)]) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1 and not (exp / "reference").exists()


@pytest.mark.parametrize("name", ["a/b", "..", "", "a b"])
def test_make_reference_refuses_odd_names(exp, name):
    folder = write_run(exp, "run", losses())
    assert make_reference.main([str(folder), name, "--exp_dir", str(exp)]) == 2
    assert not (exp / "reference").exists()


def test_make_reference_needs_a_run_directory_with_its_recipe(exp, capsys):
    folder = write_run(exp, "run", losses(), recipe=None)
    for path in (folder, exp / "missing"):
        assert make_reference.main([str(path), "name", "--exp_dir", str(exp)]) == 2
        assert "opt.json" in capsys.readouterr().err


def test_make_reference_script_and_loss_script_together(exp, tmp_path):
    folder = write_run(exp, "run", losses())
    command = [sys.executable, MAKE_REFERENCE, folder, "name", "--exp_dir", exp]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    assert loss.main(["--exp_dir", str(exp), "--plot", "none"]) == 0


def test_a_page_of_several_runs(call, exp, tmp_path, monkeypatch):
    """``--html``: a line for each run, and a page that shows them without anything from elsewhere."""
    monkeypatch.setattr(page_plots, "plotting_library", lambda: None)
    write_run(exp, "same", losses(seed=1))
    write_run(exp, "<b>other", 2 * losses(seed=2), processes=1)
    reference = tmp_path / "curve.csv"
    reference.write_text("loss\n" + "\n".join(map(str, losses())) + "\n")
    runs = [f"--run={exp / 'ctdet' / 'same'}", "--run", exp / "ctdet" / "<b>other"]
    page = tmp_path / "study.html"
    status, lines, _ = call(*runs, "--reference", reference, "--html", page)
    assert status == 1 and lines[0].startswith("same: pass ") and lines[1].startswith("<b>other: fail ")
    assert lines[2] == f"Page: {page}"
    text = page.read_text()
    assert text.count("<img") == text.count('src="data:image/png;base64,') == 1
    assert "<td>&lt;b&gt;other</td><td>1</td>" in text and "<b>other" not in text
    assert call(runs[0], "--reference", reference, "--html", page)[0] == 0

    status, lines, error = call(*runs, "--reference", reference)
    assert (status, lines) == (2, []) and "several --run: add --html FILE" in error
    status, _, error = call(runs[0], "--reference", reference, "--html", page, plot=tmp_path / "loss.png")
    assert status == 2 and "--plot and --html exclude each other" in error
    status, _, error = call(runs[0], "--reference", reference, "--html", tmp_path / "nowhere" / "page.html")
    assert status == 2 and "page.html: cannot be written" in error


@pytest.mark.parametrize("path", ["/home/me/runs", "'/home/me/my runs'"])
def test_a_reference_names_no_directories_of_its_machine(path):
    command = f"src/main.py ctdet --exp_dir {path} --lr 1e-3 --data_path={path} --seed 1"
    assert make_reference.without_paths(command) == "src/main.py ctdet --lr 1e-3 --seed 1"
    assert make_reference.without_paths(None) is None
