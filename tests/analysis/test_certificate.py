"""Libraries of reference runs, certificates, and the statistics behind them."""

import json
import math
import re
import sys
from pathlib import Path

import loss
import numpy as np
import pytest

from centernet.analysis import page_plots
from centernet.analysis.certificate import Margins, leave_out, powers
from centernet.analysis.library import Band, named_library, read_library
from centernet.errors import UserError
from centernet.options import OptionParser, recipe

stats = pytest.importorskip("scipy.stats")
from centernet.analysis.statistics import compare_means, detectable_difference, equivalence_power  # noqa: E402

ROOT = Path(loss.__file__).parent
sys.path.insert(0, str(ROOT / "src" / "tools"))
import certify  # noqa: E402
import make_reference_library  # noqa: E402

COMMITTED = ROOT / "exp" / "reference" / "sample_short"
COLUMNS = "epoch,iteration,loss,hm_loss,lr,images/s"
RECIPE = {"task": "ctdet", "dataset": "sample", "arch": "res_18", "input_h": 64, "input_w": 64, "batch_size": 4}


def write_run(folder, seed, factor=1.0, score=0.8, noise=0.02, iterations=120, **recipe):
    """A finished run of four epochs whose loss falls from 5 to 2, times ``factor``."""
    rng = np.random.default_rng(seed)
    values = factor * (2 + 3 * np.exp(-np.arange(iterations) / 30)) * (1 + noise * rng.normal(size=iterations))
    folder.mkdir(parents=True)
    rows = [f"{i * 4 // iterations + 1},{i + 1},{x:.9g},1.0,0.001,99.5\n" for i, x in enumerate(values)]
    (folder / "train_log.csv").write_text("".join([COLUMNS + "\n", *rows]))
    if score is not None:
        (folder / "val_log.csv").write_text(f"epoch,loss,mAP\n4,2.0,{score + 0.01 * rng.normal()}\n")
    info = {
        "recipe": RECIPE | {"lr": 0.001, "seed": seed} | recipe,
        "options": {"num_epochs": 4, "main_score": "mAP"},
        "device": "cpu",
        "processes": 1,
    }
    (folder / "opt.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def exp(tmp_path):
    """An ``exp`` with the library ``lib`` of eight runs."""
    exp = tmp_path / "exp"
    runs = [write_run(tmp_path / "runs" / f"seed{seed}", seed) for seed in range(1, 9)]
    assert make_reference_library.main(["lib", "--collect", *map(str, runs), "--exp_dir", str(exp)]) == 0
    return exp


def call(exp, *runs, more=()):
    return certify.main([*map(str, runs), "--references", "lib", "--exp_dir", str(exp), *more])


# Statistics


def test_tests_of_means_are_scipys():
    rng = np.random.default_rng(0)
    one, other = rng.normal(1.02, 0.03, 3), rng.normal(1.0, 0.03, 10)
    result = compare_means(one, other, margin=0.05)
    expected = stats.ttest_ind(one, other)
    assert result.p_different == pytest.approx(expected.pvalue)
    assert result.interval == pytest.approx(tuple(expected.confidence_interval(0.9)))
    sides = [
        stats.ttest_ind(one + 0.05, other, alternative="greater").pvalue,
        stats.ttest_ind(one - 0.05, other, alternative="less").pvalue,
    ]
    assert result.p_equivalent == pytest.approx(max(sides))
    assert result.is_equivalent() == (result.interval[0] > -0.05 and result.interval[1] < 0.05)


def test_a_single_run_takes_its_variance_from_the_library():
    other = np.array([1.0, 1.1, 0.9, 1.05, 0.95])
    result = compare_means(np.array([1.5]), other, 0.1)
    error = other.std(ddof=1) * math.sqrt(1 + 1 / 5)
    assert result.p_different == pytest.approx(2 * stats.t.sf(0.5 / error, 4))
    constant = compare_means(np.array([2.0]), np.ones(5), 0.1)
    assert constant.is_different() and compare_means(np.array([1.0]), np.ones(5), 0.1).is_equivalent()


@pytest.mark.parametrize(("n", "m"), [(2, 10), (3, 10), (10, 10)])
def test_powers_by_simulation(n, m):
    rng = np.random.default_rng(n)
    effect, margin = detectable_difference(1.0, n, m), 1.5
    one, other = rng.normal(0, 1, (4000, n)), rng.normal(0, 1, (4000, m))
    assert np.mean(stats.ttest_ind(one + effect, other, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.03)
    interval = stats.ttest_ind(one, other, axis=1).confidence_interval(0.9)
    share = np.mean((interval.low > -margin) & (interval.high < margin))
    assert equivalence_power(1.0, n, m, margin) == pytest.approx(share, abs=0.03)


def test_a_band_by_hand():
    losses = np.array([[1.0, 2, 3, 4], [3, 4, 5, 6]])
    band = Band.of(losses, 2)
    assert band.mean.tolist() == [2.5, 3.5, 4.5] and band.deviation.tolist() == [math.sqrt(2)] * 3
    expected = 2 / (math.sqrt(2) * math.sqrt(1 + 1 / 2))
    assert band.deviations(losses[:1] + 3).tolist() == pytest.approx([expected] * 3)
    assert band.deviations(losses[:1, 1:3] + 3, first=2).tolist() == pytest.approx([expected])


# Certificates


def test_sound_runs_are_certified(exp, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page_plots, "plotting_library", lambda: None)
    runs = [write_run(tmp_path / f"new{seed}", seed) for seed in (21, 22, 23)]
    assert call(exp, *runs) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Verdict: equivalent to the library within the margins" in lines and "Certified" in lines
    content = json.loads((runs[0] / "certificate.json").read_text())
    assert content["certified"] and content["verdict"] == "equivalent" and content["found_by"] == []
    assert [run["seed"] for run in content["runs"]] == [21, 22, 23] and content["library_runs"] == 8
    assert [row["runs"] for row in content["leave_out"]] == [1, 3] and content["leave_out"][1]["subsets"] == 56
    assert content["end_loss"]["margin"] == pytest.approx(0.05 * content["end_loss"]["library_mean"])
    page = (runs[0] / "certificate.html").read_text()
    assert "Certified: equivalent" in page and page.count('src="data:image/png') == page.count("<img") == 1
    assert "://" not in page


def test_runs_of_one_seed_are_not_certified(exp, tmp_path, capsys):
    runs = [write_run(tmp_path / f"new{seed}", seed) for seed in (21, 22, 23)]
    info = json.loads((runs[1] / "opt.json").read_text())
    info["recipe"]["seed"] = 21  # rounding gave it another curve
    (runs[1] / "opt.json").write_text(json.dumps(info))
    assert call(exp, *runs) == 1
    assert "Not certified: new22: has the seed of new21 (21); every run needs" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ACCELERATORS.md", "ACCELERATORS.zh-CN.md"])
def test_the_documented_runs_have_the_recipe_of_the_library(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"python src/main.py (.*--seed 21 .*)", text)
    found = recipe(OptionParser("main.py").parse(command.split()))
    assert found.pop("seed") == 21 and found == read_library(COMMITTED).recipe


@pytest.mark.parametrize(
    ("change", "check"),
    [({"factor": 1.1}, "end loss"), ({"factor": 0.9}, "curve"), ({"score": 0.6}, "score"), ({"score": 0.95}, "score")],
)
def test_deviations_in_both_directions_are_found(exp, tmp_path, capsys, change, check):
    runs = [write_run(tmp_path / f"new{seed}", seed, **change) for seed in (21, 22, 23)]
    assert call(exp, *runs, more=["--output", str(tmp_path / "new/folder")]) == 1
    content = json.loads((tmp_path / "new/folder/certificate.json").read_text())
    assert content["verdict"] == "different" and check in content["found_by"]
    assert "Not certified" in capsys.readouterr().out


def test_a_noisy_run_is_undecided(exp, tmp_path, capsys):
    run = write_run(tmp_path / "new", 21)
    assert call(exp, run, more=["--loss_margin", "0.0001"]) == 1
    output = capsys.readouterr().out
    assert "undecided: neither equivalent" in output and "8 runs; runs to certify: 1\n" in output
    assert re.search(r"p-values [\d.]+ of 'not equivalent' and [\d.]+ of 'no difference'", output)


def test_another_recipe_is_never_certified(exp, tmp_path, capsys):
    runs = [write_run(tmp_path / f"new{seed}", seed, lr=0.01) for seed in (21, 22, 23)]
    assert call(exp, *runs) == 1
    assert "Not certified: new21: different recipe: lr 0.01 against 0.001" in capsys.readouterr().out


def test_runs_without_a_score_or_a_recipe(exp, tmp_path, capsys):
    run = write_run(tmp_path / "new", 21, score=None)
    call(exp, run)
    assert "Note: mAP is not checked: runs or library have none" in capsys.readouterr().out
    losses = [line.split(",")[2] for line in (run / "train_log.csv").read_text().splitlines()[1:]]
    log = tmp_path / "vendor.log"
    log.write_text("".join(f"Iter[{i}] step_train_loss {x}\n" for i, x in enumerate(losses, 1)))
    call(exp, log)
    assert "its recipe is not known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"iterations": 80}, "has iterations 1 to 80; the library needs 1 to 120"),
        ({"seed": 3}, "is a run of the library"),
        ({"factor": math.nan}, "NaN or infinity at iteration 1"),
    ],
)
def test_unusable_runs(exp, tmp_path, capsys, options, problem):
    run = write_run(tmp_path / "new", **{"seed": 21} | options)
    assert call(exp, run) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1


def test_a_run_named_twice(exp, tmp_path, capsys):
    run = write_run(tmp_path / "new", 21)
    assert call(exp, run, run) == 2 and "is the same curve as another run" in capsys.readouterr().err


def test_unknown_libraries_are_listed(exp, tmp_path, capsys):
    assert certify.main(["x", "--references", "other", "--exp_dir", str(exp)]) == 2
    assert "found in" in (error := capsys.readouterr().err) and ": lib;" in error


@pytest.mark.parametrize(
    "change",
    [
        lambda info: [],
        lambda info: {},
        lambda info: info | {"runs": info["runs"][:2]},
        lambda info: info | {"runs": [3] * 8},
        lambda info: info | {"runs": [info["runs"][0] | {"score": "x"}, *info["runs"][1:]]},
        lambda info: info | {"runs": [info["runs"][0] | {"file": "../../missing.csv"}, *info["runs"][1:]]},
        lambda info: info | {"limits": None},
        lambda info: info | {"limits": {"pointwise": 1}},
        lambda info: info | {"recipe": 3},
    ],
)
def test_edited_libraries(exp, tmp_path, capsys, change):
    path = exp / "reference" / "lib" / "library.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert call(exp, write_run(tmp_path / "new", 21)) == 2
    assert loss.main(["--run", str(tmp_path / "new"), "--reference", "lib", "--exp_dir", str(exp)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_scipy_is_optional(exp, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert call(exp, write_run(tmp_path / "new", 21)) == 2
    assert "pip install scipy" in capsys.readouterr().err
    assert loss.main(["--run", str(tmp_path / "new"), "--reference", "lib", "--exp_dir", str(exp), "--plot=none"]) == 1
    assert "Library: lib, 8 runs: inside the band" in capsys.readouterr().out


# Libraries


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ([{}, {}], "a library needs at least 4"),
        ([{}, {}, {}, {"lr": 0.01}], "its recipe differs from that of"),
        ([{}, {}, {}, {"iterations": 80}], "different numbers of iterations (80, 120)"),
        ([{"seed": 5}, {"seed": 5}, {}, {}], "two runs have the same seed"),
    ],
)
def test_runs_that_are_not_a_library(tmp_path, capsys, changes, problem):
    runs = [write_run(tmp_path / f"run{k}", **{"seed": k} | change) for k, change in enumerate(changes)]
    argv = ["lib", "--collect", *map(str, runs), "--exp_dir", str(tmp_path)]
    assert make_reference_library.main(argv) == 2
    assert problem in capsys.readouterr().err and not (tmp_path / "reference").exists()


def test_a_library_is_overwritten_only_by_force(exp, tmp_path, capsys):
    runs = [str(tmp_path / "runs" / f"seed{seed}") for seed in range(1, 6)]
    argv = ["lib", "--collect", *runs, "--exp_dir", str(exp)]
    assert make_reference_library.main(argv) == 2 and "--force overwrites it" in capsys.readouterr().err
    assert make_reference_library.main([*argv, "--force"]) == 0
    assert len(read_library(exp / "reference" / "lib").runs) == 5
    with pytest.raises(SystemExit):
        make_reference_library.main(["lib", "--seeds", "1-x"])


def test_training_a_library(tmp_path, monkeypatch, capsys):
    """Runs that exist are kept, an interrupted one is resumed, and the weights go."""
    started = []

    def run(command, env, **options):
        value = {name: command[command.index(name) + 1] for name in ("--seed", "--exp_id", "--exp_dir")}
        folder = Path(value["--exp_dir"], "ctdet", value["--exp_id"])
        started.append((int(value["--seed"]), any("launch.py" in part for part in command), "--resume" in command))
        if folder.exists():
            (folder / "model_last.pth").unlink()
            folder.rmdir()
        write_run(folder, int(value["--seed"]))
        (folder / "model_best.pth").touch()
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(make_reference_library.subprocess, "run", run)
    write_run(tmp_path / "lib_runs" / "ctdet" / "lib_seed2", 2)
    interrupted = tmp_path / "lib_runs" / "ctdet" / "lib_seed3"
    interrupted.mkdir()
    (interrupted / "model_last.pth").touch()
    argv = ["lib", "--seeds", "1-4", "--nproc", "1,1,1,4", "--exp_dir", str(tmp_path), "ctdet", "--lr", "0.001"]
    assert make_reference_library.main(argv) == 0
    assert started == [(1, False, False), (3, False, True), (4, True, False)]
    assert not list(tmp_path.rglob("*.pth"))
    assert named_library("lib", tmp_path) == tmp_path / "reference" / "lib"
    assert (tmp_path / "reference" / "lib.csv").is_file()


def test_loss_states_where_in_the_band_a_run_lies(exp, tmp_path, capsys):
    argv = ["--reference", "lib", "--exp_dir", str(exp), "--plot", "none"]
    run = write_run(tmp_path / "new", 21)
    assert loss.main(["--run", str(run), *argv]) == 1  # another seed is another recipe
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Library: lib, 8 runs: inside the band; largest deviation ") for line in lines)
    assert any(line.startswith("LibraryEndLoss: ") and line.endswith(" runs are lower") for line in lines)
    low = write_run(tmp_path / "low", 21, factor=0.8)
    loss.main(["--run", str(low), *argv])
    out = capsys.readouterr().out
    assert "8 runs: outside the band; largest deviation -" in out and "; 0 of 8 runs are lower" in out
    assert loss.main(["--run", str(write_run(tmp_path / "short", 21, iterations=8)), *argv]) == 1
    assert "the run has too few of its iterations" in capsys.readouterr().out


def test_the_nearest_recipe_is_the_reference(exp, tmp_path, capsys):
    """A library and another reference of the same network do not get into each other's way."""
    longer = write_run(exp / "ctdet" / "longer", 1, num_epochs=9)
    import make_reference

    make_reference.make_reference(longer, "longer", exp)
    (longer / "train_log.csv").unlink()
    write_run(exp / "ctdet" / "new", 21)
    loss.main(["--exp_dir", str(exp), "--plot", "none"])
    assert f"Reference: {exp / 'reference' / 'lib.csv'}" in capsys.readouterr().out


# The committed library


def test_error_rates_of_the_committed_library():
    """The numbers in docs/CONVERGENCE.md."""
    library = read_library(COMMITTED)
    assert (len(library.runs), library.iterations, library.score_name) == (10, 160, "mAP")
    assert [run["processes"] for run in library.runs] == [1] * 7 + [4] * 3
    assert library.end_losses.mean() == pytest.approx(1.069, abs=5e-4)
    assert library.end_losses.std(ddof=1) / library.end_losses.mean() == pytest.approx(0.0285, abs=5e-5)
    assert library.scores.mean() == pytest.approx(0.8005, abs=5e-5)
    assert library.scores.std(ddof=1) == pytest.approx(0.0202, abs=5e-5)
    one, three = (leave_out(library, n, Margins()) for n in (1, 3))
    assert one["different_rate"] == pytest.approx(1 / 10) and three["different_rate"] == pytest.approx(5 / 120)
    by_runs = {row["runs"]: row for row in powers(library, Margins())}
    assert by_runs[3]["end_loss_percent"] == pytest.approx(5.77, abs=0.005)
    assert by_runs[3]["score"] == pytest.approx(0.0408, abs=5e-5)


def test_the_committed_library_is_of_the_recipe_that_its_script_trains():
    from centernet.options.recipe import recipe
    from centernet.opts import opts

    made = recipe(opts().parse(make_reference_library.SHORT_RECIPE))
    made.pop("seed")
    assert json.loads(json.dumps(made)) == read_library(COMMITTED).recipe


def test_named_library_of_a_folder(tmp_path):
    assert named_library(str(COMMITTED), tmp_path) == COMMITTED
    with pytest.raises(UserError, match="none; make one with"):
        named_library("x", tmp_path)


@pytest.mark.soak
def test_three_runs_with_a_higher_learning_rate_are_different(tmp_path):
    """1.3 times the learning rate of the committed library, whose runs differ in nothing else but the seed."""
    recipe = list(make_reference_library.SHORT_RECIPE)
    recipe[recipe.index("--lr") + 1] = "1.3e-3"
    runs = [make_reference_library.train("higher", recipe, seed, 1, tmp_path) for seed in (21, 22, 23)]
    assert certify.main([*map(str, runs), "--references", str(COMMITTED), "--output", str(tmp_path)]) == 1
    content = json.loads((tmp_path / "certificate.json").read_text())
    assert content["verdict"] == "different" and "end loss" in content["found_by"]
