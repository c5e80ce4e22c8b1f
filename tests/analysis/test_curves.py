"""Reading, smoothing and comparing loss"""

from itertools import count
from pathlib import Path

import numpy as np
import pytest

from centernet.analysis.compare import EPSILON, compare, default_window, moving_average, recipe_differences
from centernet.analysis.panels import MAX_PIECES, outline
from centernet.analysis.read import Curve, read_loss
from centernet.errors import UserError

RECIPE = {"task": "ctdet", "dataset": "pascal", "arch": "res_18", "input_h": 384, "input_w": 384, "batch_size": 32}
NUMBER = count()


def curve(loss, recipe=None, **info):
    return Curve(
        Path(f"{next(NUMBER)}.csv"), np.asarray(loss, dtype=np.float64), info | ({"recipe": recipe} if recipe else {})
    )


@pytest.fixture
def read(tmp_path):
    """Read a text as a file and return its losses as a list."""

    def read_text(text, name="curve.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_loss(path).loss.tolist()

    return read_text


def falling(n, noise=0.0, seed=0):
    return 2 + 3 * np.exp(-np.arange(n) / 50) + noise * np.random.default_rng(seed).normal(size=n)


def original_log(losses, every, total, name="ctdet/default"):
    """Return the output of the original implementation for losses (epochs, total) with ``--print_iter every``."""
    lines = ["Setting up data...", "loaded train 16551 samples"]
    for epoch, values in enumerate(losses, 1):
        for i in range(0, len(values), every):
            average = np.mean(values[: i + 1])
            lines.append(
                f"{name}| train: [{epoch}][{i}/{total}]|Tot: 0:01:12 |ETA: 0:08:03 |loss {average:.4f} "
                f"|hm_loss 9.1234 |wh_loss 5.6789 |off_loss 0.2345 |Data 0.002s(0.004s) |Net 0.512s"
            )
        lines.append(f"{name}| val: [{epoch}][0/99]|Tot: 0:00:02 |ETA: 0:08:03 |loss 77.0000 |hm_loss 1.0 |Net 0.5s")
    return lines


# Reading tables and plain columns


def test_own_log_reads_the_total_loss(read):
    text = "epoch,iteration,loss,hm_loss,lr,images/s\n1,1,3.5,2.0,0.1,7\n1,2,2.5,1.0,0.1,7\n"
    assert read(text) == [3.5, 2.5]


def test_own_log_of_a_resumed_run_counts_the_later_lines(tmp_path):
    path = tmp_path / "train_log.csv"
    rows = ["1,1,9,0.1,7", "1,2,8,0.1,7", "2,3,7,0.1,7", "2,4,6,0.1,7", "2,3,5,0.1,7"]
    path.write_text("epoch,iteration,loss,lr,images/s\n" + "\n".join(rows) + "\n")
    curve = read_loss(path)
    assert curve.loss.tolist() == [9, 8, 5]
    assert len(curve.notes) == 1 and "resumed" in curve.notes[0]


@pytest.mark.parametrize(
    "rows", ["1,1,9,0.1,7\n1,3,9,0.1,7", "1,0,9,0.1,7", "1,x,9,0.1,7", f"1,{'9' * 5000},9,0.1,7", "1,\u0661,9,0.1,7"]
)
def test_own_log_with_a_gap_is_refused(read, rows):
    with pytest.raises(UserError, match="iteration"):
        read(f"epoch,iteration,loss,lr,images/s\n{rows}\n")


@pytest.mark.parametrize("name", ["loss", "Loss", "train_loss", "TOTAL_LOSS"])
@pytest.mark.parametrize("mark", [",", ", ", "\t", ";", " ", "   "])
def test_tables_of_every_separator(read, name, mark):
    lines = [mark.join(row) for row in (["step", name, "hm_loss"], ["1", "2.5", "7"], ["2", "1e-1", "8"])]
    assert read("\n".join(lines)) == [2.5, 0.1]


def test_table_details(read):
    assert read('"step","loss"\r\n"1","2.5"\r\n\r\n"2","nan"\r\n')[0] == 2.5  # quotes, CRLF, blank lines
    assert read("\ufeffloss,lr\n2.5,1\n") == [2.5]  # byte order mark
    assert read("# step loss\n1 2.5\n2 1.5\n") == [2.5, 1.5]  # numpy.savetxt
    assert read("train_loss,loss\n9,2.5\n") == [2.5]  # the exact name wins


def test_infinity_and_nan_are_kept(read):
    values = read("loss\n1\nnan\ninf\n")
    assert values[0] == 1 and np.isnan(values[1]) and values[2] == np.inf


@pytest.mark.parametrize("text", ["2.5\n1.5\n\n0.5", "loss\n2.5\n1.5\n0.5\n", "# loss\n2.5\r1.5\r0.5"])
def test_one_number_a_line(read, text):
    assert read(text) == [2.5, 1.5, 0.5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("  \n\n", "is empty"),
        (b"\x89PNG\x00\x01\x02", "binary"),
        ("step,value\n1,2\n", "no loss found"),
        ("1,2\n3,4\n", "no loss found"),
        ("hm loss,lr\n1,2\n", "no loss found"),
        ('"\n1\n', "no loss found"),
        ("#\n1\n", "no loss found"),
        ("step,loss\n1,2\n3\n", "row 3 has 1 columns"),
        ("step,loss\n1,2,3\n", "row 2 has 3 columns"),
        ("step loss\n1 2\n3\n", "row 3 has 1 columns"),
        ("step,loss\n1,\n", "no iterations"),
        ("step,loss\n1,high\n", "'high' as the loss is not a number"),
        ("2.5\noops\n", "'oops' as loss number 2"),
        ("step,loss\n", "no iterations"),
        ("loss,Loss\n1,2\n", "several columns"),
        ("train_loss,total_loss\n1,2\n", "several columns"),
        ("epoch: 1 |loss 3.2 | hm_loss 1.2 |\n", "no loss found"),
        ('loss,"a\n1,2\n' + "x" * 200_000, "cannot be read as a table"),
    ],
)
def test_what_is_not_a_curve_is_refused_in_one_line(read, text, expected):
    with pytest.raises(UserError, match=expected) as caught:
        read(text, "bad.csv")
    assert "bad.csv" in str(caught.value) and "\n" not in str(caught.value)


# Reading the original implementation's log


def test_original_log_printed_every_iteration_is_undone_to_the_digits_printed(read):
    losses = [falling(40, 0.3, 1), falling(40, 0.3, 2)]
    values = read("\n".join(original_log(losses, 1, 40)))
    # An average has an error of at most 0.00005, its sum over 40 iterations 0.002, a difference of sums twice that.
    np.testing.assert_allclose(values, np.concatenate(losses), atol=0.004)


def test_original_log_intervals_get_their_means(read):
    losses = [falling(23, 0.3, 1), falling(23, 0.3, 2)]
    values = np.reshape(read("\n".join(original_log(losses, 5, 23))), (2, 23))
    for got, true in zip(values, losses, strict=True):
        assert got[0] == pytest.approx(true[0], abs=1e-3)
        for start in (1, 6, 11, 16):
            np.testing.assert_allclose(got[start : start + 5], true[start : start + 5].mean(), atol=1e-3)
        np.testing.assert_allclose(got[21:], true[16:21].mean(), atol=1e-3)  # after the last printed line


def test_original_log_by_hand(read):
    def line(i, total, average):
        return f"ctdet/x| train: [1][{i}/{total}]|Tot: 0:00:01 |ETA: 0:00:01 |loss {average} |hm_loss 1 "

    assert read("\n".join([line(0, 4, 6), line(2, 4, 4)])) == [6, 3, 3, 3]  # filled: less than a step is left
    assert read("\n".join([line(0, 5, 6), line(2, 5, 4)])) == [6, 3, 3]  # stopped: [4/5] would have been printed
    assert read("\n".join([line(0, 5, 6), "noise", "x" + line(2, 5, 4), line(4, 5, 4)])) == [6, 3, 3, 4, 4]


def test_original_log_in_a_terminal_recording(read):
    losses = [falling(10), falling(10)]
    text = "\r\x1b[K".join(original_log(losses, 3, 10)) + "\x1b[?25h\r"
    assert read(text) == read("\n".join(original_log(losses, 3, 10)))


def test_original_log_in_one_long_line(read):
    lines = original_log([falling(10)], 3, 10)
    assert read(" ".join(lines)) == read("\n".join(lines))


def test_original_log_cut_off_before_another_phase_does_not_take_its_loss(read):
    lines = original_log([[5.0] * 10], 5, 10)
    assert read("\n".join([*lines[:-1], "ctdet/default| train: [2][0/10]|Tot: 0:01:12 " + lines[-1]])) == [5.0] * 10


def test_original_log_of_a_stopped_run_is_not_filled_up(read):
    assert len(read("\n".join(original_log([falling(100), falling(31)], 10, 100)))) == 131


def test_original_log_of_a_resumed_run_and_printed_twice(read):
    whole = [falling(20, 0.2, 1), falling(20, 0.2, 2)]
    once = original_log(whole, 4, 20)
    stopped = original_log([whole[0], whole[1][:9]], 4, 20)
    again = [line for line in once if ": [2]" in line]
    assert read("\n".join(stopped + again)) == read("\n".join(once))
    assert read("\n".join(line for line in once for _ in range(2))) == read("\n".join(once))


def test_original_log_printed_once_an_epoch(read):
    at_end = [line.replace("[0/8]", "[7/8]") for line in original_log([[5.0] * 8, [3.0] * 8], 100, 8)]
    assert read("\n".join(at_end)) == [5.0] * 8 + [3.0] * 8
    with pytest.raises(UserError, match="of its first 1 of 8 iterations.*print more often"):
        read("\n".join(original_log([falling(8), falling(8)], 100, 8)))
    assert len(read("\n".join(original_log([falling(8)], 100, 8)))) == 1  # just begun


def test_original_log_keeps_nan(read):
    lines = original_log([[5.0] * 4 + [np.nan] * 4], 2, 8)
    assert "nan" in lines[-2]
    assert np.isnan(read("\n".join(lines))[4:]).all()


def test_original_log_with_missing_epochs_or_lines_is_refused(read):
    lines = original_log([falling(20)] * 3, 4, 20)
    with pytest.raises(UserError, match="epochs 1, 3; expected"):
        read("\n".join(line for line in lines if ": [2]" not in line))
    with pytest.raises(UserError, match="epoch 2 ends at iteration 9 of 20"):
        read("\n".join(line for line in lines if "[2][12/" not in line and "[2][16/" not in line))


# Reading logs of text


@pytest.mark.parametrize(
    "line",
    [
        "[rank0] 12:00:01 step {i} loss: {x} lr: 0.1",
        "step={i} loss={x}, hm_loss=7.5",
        "{{'loss': {x}, 'learning_rate': 0.1}}",
        "Epoch [1][{i}/9] hm_loss: 7.25 Loss: {x} (7.5)",
        "iter {i}: train_loss = {x}.",
    ],
)
def test_text_logs(read, line):
    lines = ["Start", *(line.format(i=i, x=x) for i, x in enumerate(("2.50", "1e-1", "nan"))), "val loss: 9", "Done"]
    values = read("\n".join(lines))
    assert values[:2] == [2.5, 0.1] and np.isnan(values[2]) and len(values) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("i loss: 1 total_loss: 2\n", "has several losses"),
        ("i loss: 1\nj train_loss: 2\n", "several losses in turn"),
        ("hm_loss: 1\nval_loss: 2\navg loss: 3\nlossless: 4\nloss: FocalLoss\nloss: 3,141\n", "no loss found"),
    ],
)
def test_ambiguous_text_logs_are_refused(read, text, expected):
    with pytest.raises(UserError, match=expected):
        read(text)


# Smoothing


@pytest.mark.parametrize("window", [1, 2, 7, 30])
def test_moving_average_is_the_valid_convolution(window):
    values = falling(30, 1.0)
    expected = np.convolve(values, np.ones(window) / window, "valid")
    np.testing.assert_allclose(moving_average(values, window), expected, rtol=1e-12)


@pytest.mark.parametrize("window", [31, 32, 1000])
def test_moving_average_of_fewer_values_than_the_window_is_empty(window):
    assert moving_average(np.ones(30), window).shape == (0,)


@pytest.mark.parametrize(("iterations", "window"), [(1, 1), (9, 1), (20, 2), (480, 48), (500, 50), (100000, 50)])
def test_default_window(iterations, window):
    assert default_window(iterations) == window


# Comparing


def test_errors_by_hand():
    result = compare(curve([3.0, 1.0] * 20), curve([2.0, 2.0] * 20), window=1)
    assert result.mean_relative_error == 0.5 and result.mean_absolute_error == 1.0
    assert result.signed.mean_relative_error == 0.0 and result.signed.mean_absolute_error == 0.0
    assert not result.passed
    assert result.verdict == "fail mean_relative_error=0.5 > 0.05 and mean_absolute_error=1.0 > 0.0002"
    assert compare(curve([3.0, 1.0] * 20), curve([2.0, 2.0] * 20), window=2).passed


def test_signed_errors_that_cancel_do_not_pass():
    reference = falling(1000)
    run = reference * np.where(np.arange(1000) < 500, 1.4, 0.6)
    result = compare(curve(run), curve(reference))
    assert abs(result.signed.mean_relative_error) < 0.01 < 0.3 < result.mean_relative_error
    assert not result.passed


def test_limits_are_inclusive_and_either_one_is_enough():
    assert compare(curve([21.0] * 40), curve([20.0] * 40), 1).verdict == (
        "pass mean_relative_error=0.05 <= 0.05 or mean_absolute_error=1.0 <= 0.0002"
    )
    assert compare(curve([0.00029] * 40), curve([0.0001] * 40)).passed
    assert not compare(curve([21.1] * 40), curve([20.0] * 40)).passed
    assert not compare(curve([0.00031] * 40), curve([0.0001] * 40)).passed


def test_noise_alone_passes_and_a_bias_does_not():
    reference, run = falling(1000, 0.3, 1), falling(1000, 0.3, 2)
    assert compare(curve(run), curve(reference)).passed
    assert not compare(curve(run * 1.1), curve(reference)).passed


def test_reference_of_zero():
    zero = curve([0.0] * 40)
    assert compare(curve([0.0] * 40), zero).mean_relative_error == 0.0
    assert compare(curve([0.0001] * 40), zero).passed  # by the absolute error
    result = compare(curve([1.0] * 40), zero, 1)
    assert result.mean_relative_error == pytest.approx(1 / EPSILON) and not result.passed


def test_negative_reference():
    result = compare(curve([-3.0] * 40), curve([-2.0] * 40), 1)
    assert (result.mean_relative_error, result.signed.mean_relative_error) == (0.5, -0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 37, 99, 110])
def test_run_that_is_not_finite_never_passes(bad, place):
    loss = np.ones(120)
    loss[place] = bad
    result = compare(curve(loss), curve(np.ones(100)))  # place 110 is after the common part
    assert not result.passed
    assert result.verdict.startswith(f"fail NaN or infinity in the run, first at iteration {place + 1}")


def test_losses_too_large_to_average_fail():
    huge = compare(curve([1e308] * 40), curve([1e308] * 40))
    assert not huge.passed and huge.verdict == "fail the losses are too large to be averaged"
    assert not compare(curve([1e308] * 40), curve([1.0] * 40)).passed


def test_reference_that_is_not_finite_is_unusable():
    with pytest.raises(UserError, match=r"\.csv: NaN .* iteration 2 "):
        compare(curve([1.0] * 3), curve([1.0, np.nan, 1.0]))


@pytest.mark.parametrize(
    ("iterations", "window", "enough"),
    [
        (19, 1, False),
        (20, 1, True),
        (20, 10, True),
        (20, 11, False),
        (99, 50, False),
        (100, 50, True),
        (50, 10**30, False),
    ],
)
def test_enough_iterations(iterations, window, enough):
    result = compare(curve(np.ones(iterations)), curve(np.ones(iterations)), window)
    assert result.passed is enough
    if not enough:
        needed = max(20, 2 * window)
        assert result.verdict.startswith(f"fail too few iterations: {iterations} in common, at least {needed} needed")
    assert np.isnan(result.mean_relative_error) == (iterations < window)


def test_only_the_common_iterations_are_compared():
    result = compare(curve([2.0] * 50), curve([2.0] * 40 + [9.0] * 40))
    assert not result.passed and result.iterations == 50
    result = compare(curve([2.0] * 50 + [9.0] * 50), curve([2.0] * 50))
    assert result.passed and result.iterations == 50
    assert "the run has 100 iterations, more than the reference's 50: the common part is compared" in result.notes


def test_incomplete_run_of_the_same_recipe_fails():
    reference = curve(np.ones(200), RECIPE)
    result = compare(curve(np.ones(189), RECIPE), reference)
    assert result.verdict == "fail incomplete run: 189 of the reference's 200 iterations"
    assert compare(curve(np.ones(190), RECIPE), reference).passed
    result = compare(curve(np.ones(100)), reference)
    assert result.passed and any("whether the run is complete" in note for note in result.notes)


def test_different_recipes_are_named_and_never_pass():
    run = RECIPE | {"lr": 0.01, "lr_step": [90], "optim": "adam"}
    reference = RECIPE | {"lr": 0.001, "lr_step": [45, 60], "pretrained": True}
    result = compare(curve(np.ones(50), run), curve(np.ones(50), reference))
    assert not result.passed and result.within_limits
    assert result.verdict == (
        "fail different recipes: lr 0.01 against 0.001, lr_step [90] against [45, 60], optim adam against not set, "
        "pretrained not set against true"
    )
    result = compare(curve(np.full(50, 2.0), run), curve(np.ones(50), reference), 1)
    assert result.verdict.endswith("true; mean_relative_error=1.0 > 0.05 and mean_absolute_error=1.0 > 0.0002")


@pytest.mark.parametrize("side", ["run", "reference"])
@pytest.mark.parametrize("interval", [2, 10, 50])
def test_logs_with_fewer_iterations_are_compared_at_these(side, interval):
    losses = falling(500, 0.3)
    printed = np.arange(interval, 501, interval)
    whole, sampled = curve(losses), curve(np.repeat(losses[printed - 1], interval))
    sampled.printed = printed
    pair = (sampled, whole) if side == "run" else (whole, sampled)
    result = compare(*pair)
    assert result.passed and result.mean_relative_error < 1e-12
    assert f"the curves are compared at the {len(printed)} printed iterations" in result.notes
    means = curve(np.repeat(losses.reshape(-1, interval).mean(1), interval))
    means.printed = printed
    result = compare(means, whole)  # means since the last line are read as such
    assert result.passed and not any("printed iterations" in note for note in result.notes)
    assert not compare(curve(losses * 1.1), sampled).passed
    short = compare(curve(losses[: interval - 1]), sampled)  # ends before the first printed iteration
    assert not short.passed and short.iterations == interval - 1


def test_an_end_that_differs_is_noted():
    reference = falling(1000)
    run = np.where(np.arange(1000) < 950, reference, 2 * reference)
    result = compare(curve(run), curve(reference))
    assert result.passed
    assert any(note.startswith("the end differs: the last 50 iterations are 100 % above") for note in result.notes)
    assert not compare(curve(reference * 1.04), curve(reference)).notes[1:]


def test_notes_of_both_curves_are_kept():
    run, reference = curve(np.ones(50), RECIPE), curve(np.ones(50), RECIPE)
    run.notes, reference.notes = ["how the run was read"], ["how the reference was read"]
    assert compare(run, reference).notes == ["how the run was read", "how the reference was read"]


def test_equal_recipes_whose_numbers_are_written_differently():
    assert recipe_differences({"lr": 1, "a": [1.0]}, {"a": [1], "lr": 1.0}) == []


def test_processes_and_device_are_only_noted():
    run = curve(np.ones(50), RECIPE, processes=4, device="A")
    result = compare(run, curve(np.ones(50), RECIPE, processes=1, device="B"))
    assert result.passed
    assert result.notes == ["processes differ: 4 against 1", "device differs: A against B"]


@pytest.mark.parametrize(("run", "reference", "side"), [(None, RECIPE, "run"), (RECIPE, None, "reference")])
def test_unknown_recipe_is_noted(run, reference, side):
    result = compare(curve(np.ones(50), run), curve(np.ones(50), reference))
    assert result.passed and any(f"no recipe known for the {side}:" in note for note in result.notes)


def test_plot_of_a_long_curve_keeps_its_spikes():
    values = np.zeros(100_000)
    values[12_345], values[54_321] = 7, -3
    places, drawn = outline(values, 1)
    assert len(places) == len(drawn) <= 2 * MAX_PIECES
    assert abs(places[drawn.argmax()] - 12_346) < 40 and abs(places[drawn.argmin()] - 54_322) < 40
    assert (drawn.max(), drawn.min()) == (7, -3)
