"""src/tools/check_device.py: sound on the CPU, and what it says about faults; test_faults.py has all of them."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from tests.accelerator.simulation import ROOT

from centernet.diagnostics.check import main as check_device
from centernet.diagnostics.judge import judge
from centernet.diagnostics.operators import call, compare, outputs_of, widen
from centernet.diagnostics.scenario import CPU
from centernet.diagnostics.steps import distance, total_norm
from centernet.engine.precision import has_bfloat16_instructions

HERE = "tests.accelerator.test_check_device"
SMALL = ("ctdet", "--arch", "res_18", "--input_res", "64", "--head_conv", "16", "--iterations", "2")


def folders(tmp_path, data) -> tuple[str, ...]:
    return ("--data_path", str(data), "--exp_dir", str(tmp_path))


def test_the_cpu_is_sound_on_every_level_of_one_process(tmp_path, sample_data, capsys):
    levels = "settings,probe,operators,layers,steps,repeat"
    status = check_device([*SMALL, *folders(tmp_path, sample_data), "--device", "cpu", "--levels", levels])
    output = capsys.readouterr().out
    assert status == 0, output
    folder = tmp_path / "ctdet/default"
    report = json.loads((folder / "device_check.json").read_text())
    assert report["sound"] and [level["name"] for level in report["levels"]] == levels.split(",")
    page = (folder / "device_check.html").read_text()
    assert "convolution_backward" in page and "http" not in page.replace("http-equiv", "")


@pytest.mark.skipif(has_bfloat16_instructions(CPU), reason="this CPU has instructions for bfloat16")
def test_a_cpu_without_bfloat16_instructions_does_not_pass(tmp_path, sample_data, capsys):
    more = ("--device", "cpu", "--amp", "bf16", "--levels", "probe")
    assert check_device([*SMALL, *folders(tmp_path, sample_data), *more]) == 1
    output = capsys.readouterr().out
    assert "DEVIATION: convolution 3x3, bfloat16, backward: weight: operands bf16, accumulator bf16" in output


def test_a_wrong_device_level_or_file_is_one_line_and_status_2(tmp_path, sample_data, capsys):
    for more in (["--device", "nodevice"], ["--levels", "probes"], ["--replay", str(tmp_path / "none.pt")]):
        assert check_device([*SMALL, *folders(tmp_path, sample_data), "--device", "cpu", *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and more[-1] in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--levels", ""], "--levels: names no level"),
        (["--levels", ","], "--levels: names no level"),
        (["--short", "--levels", "steps"], "--short and --levels exclude each other"),
        (["--keep_res", "--levels", "operators"], "--keep_res: training needs images of one size"),
    ],
)
def test_what_checks_nothing_is_not_sound(tmp_path, sample_data, capsys, more, message):
    assert check_device([*SMALL, *folders(tmp_path, sample_data), "--device", "cpu", *more]) == 2
    output, error = capsys.readouterr()
    assert error.startswith(f"error: {message}") and error.count("\n") == 1 and "sound" not in output


def test_the_help_names_the_levels(capsys):
    done = subprocess.run(
        [sys.executable, ROOT / "src/tools/check_device.py", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: check_device.py [TASK] ")
    assert "--save_failing DIR" in done.stdout and "processes" in done.stdout


def test_judge_tells_rounding_from_deviation():
    exact = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rounded = exact.float()
    assert judge(rounded, exact, rounded).sound
    assert judge(rounded * (1 + 2**-23), exact, rounded).sound
    assert not judge(rounded * 1.00001, exact, rounded).sound
    assert not judge(rounded.half().float(), exact, rounded).sound
    assert judge(exact.bfloat16(), exact, exact.bfloat16()).sound
    assert not judge((exact * 1.02).bfloat16(), exact, exact.bfloat16()).sound
    broken = rounded.clone()
    broken[17] = torch.nan
    assert judge(broken, exact, rounded).reason == "values that are not finite"
    one_wrong = rounded.clone()
    one_wrong[17] += 2e-5
    assert "largest error" in judge(one_wrong, exact, rounded).reason
    assert not judge(rounded[1:], exact, rounded).sound
    # Terms that cancel: the sum of their magnitudes sets the scale.
    small = torch.full((10,), 1e-6, dtype=torch.float64)
    assert not judge((small + 1e-7).float(), small, small.float()).sound
    assert judge((small + 1e-7).float(), small, small.float(), magnitude=lambda: small * 0 + 1.0).sound


@pytest.mark.simulated
def test_the_probe_names_every_fault(simulation):
    simulation.output(f"{HERE}:probe_every_fault")


def probe_every_fault() -> None:
    from simulated_accelerator import faults
    from tests.accelerator.findings import is_named

    from centernet.diagnostics.probe import check_probe

    device = torch.device("sim")
    faults.switch_on("other_order", variants=True)
    level = check_probe(device)
    assert level.sound, level.findings
    for name, fault in faults.FAULTS.items():
        if name == "all_reduce_drops_last":
            continue  # of several processes
        faults.switch_on(name)
        level = check_probe(device)
        assert any(is_named(fault, vars(one)) for one in level.findings), (name, level.findings)
        faults.switch_off()
        faults.switch_on("other_order", variants=True)
    faults.switch_off()
    faults.switch_on("conv_backward_fp16")
    texts = [one.text for one in check_probe(device).findings]
    assert "convolution 3x3, backward: weight: operands fp16, accumulator float32" in texts
    assert not any("forward" in text for text in texts)


@pytest.mark.simulated
def test_failing_calls_are_saved_and_replayed(simulation, tmp_path, sample_data):
    files = tmp_path / "failing"
    more = (*folders(tmp_path, sample_data), "--levels", "operators")
    done = simulation.run(
        "tools/check_device", *SMALL, *more, "--save_failing", files, faults="conv_weight_gradient", SIM_ROUNDING="1"
    )
    assert done.status == 1, done.output + done.errors
    assert "DEVIATION: convolution_backward, backward: weight: error 1.0e-02" in done.output
    assert "DEVIATION: convolution_backward, backward: input" not in done.output
    saved = sorted(files.glob("*.pt"))
    assert len(saved) > 10
    for faults, status in (("conv_weight_gradient", 1), ("", 0)):
        replayed = simulation.run("tools/check_device", "--replay", saved[0], faults=faults)
        assert replayed.status == status, replayed.output + replayed.errors
    done = subprocess.run(
        [sys.executable, saved[0].with_suffix(".py").name, "cpu"], cwd=files, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("cpu None")


@pytest.mark.simulated
def test_layers_steps_and_repeat_name_where_a_device_deviates(simulation, tmp_path, sample_data):
    more = (*folders(tmp_path, sample_data), "--levels", "layers,steps,repeat")
    done = simulation.run("tools/check_device", *SMALL, *more, faults="conv_forward_bf16,nondeterministic_sum")
    assert done.status == 1, done.output + done.errors
    levels = json.loads((tmp_path / "ctdet/default/device_check.json").read_text())["levels"]
    layers, steps, repeat = ([one["text"] for one in level["findings"]] for level in levels)
    assert "first output that deviates: conv1, forward" in layers[0]
    assert "iteration 1 leaves the envelope" in steps[0]
    assert repeat[0].startswith("sum, ")


@pytest.mark.simulated
def test_the_collectives_of_two_processes(simulation, tmp_path, sample_data):
    more = (*folders(tmp_path, sample_data), "--levels", "processes")
    done = simulation.run("tools/check_device", *SMALL, *more, faults="all_reduce_drops_last", SIM_DEVICES="2")
    assert done.status == 1, done.output + done.errors
    assert "DEVIATION: all_reduce of float32: 1 of 1 elements" in done.output
    assert "DEVIATION: broadcast" not in done.output and "DEVIATION: the gradients" in done.output


@pytest.mark.simulated
def test_a_process_with_wrong_gradients_is_named(simulation, tmp_path, sample_data):
    simulation.run(f"{HERE}:check_with_a_fault_of_rank_1", sample_data, tmp_path, processes=2, SIM_DEVICES="2")
    (level,) = json.loads((tmp_path / "ctdet/default/device_check.json").read_text())["levels"]
    (finding,) = level["findings"]
    assert finding["text"].startswith("rank 1 has wrong gradients without the others, too: ")
    assert all(row[2] == "exact" for row in level["rows"] if row[0] != "training step")


def check_with_a_fault_of_rank_1(data: str, folder: str) -> int:
    from simulated_accelerator import faults

    if os.environ["RANK"] == "1":
        faults.switch_on("conv_weight_gradient")
    return check_device([*SMALL, *folders(folder, data), "--levels", "processes"])


def test_equal_overflows_are_no_distance():
    assert distance(math.inf, math.inf) == distance(math.nan, math.nan) == distance(1.5, 1.5) == 0
    assert distance(math.inf, -math.inf) == distance(math.inf, 1) == distance(1, math.nan) == math.inf
    assert distance(1.5, 1) == 0.5


@pytest.mark.parametrize("size", [1.0, 1e-30, 3e25])
def test_norms_do_not_overflow(size):
    values = [torch.full((2, 8), size), torch.zeros(3), torch.tensor([-3 * size])]
    assert total_norm(values) == pytest.approx(5 * size)
    assert total_norm([*values, torch.tensor([math.inf])]) == math.inf
    assert math.isnan(total_norm([*values, torch.tensor([math.nan])]))
    assert total_norm([torch.zeros(2)]) == total_norm([]) == 0


def test_gradients_of_batch_normalization_that_cancel_are_judged_by_their_terms():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 16, 16, generator=generator)
    mean, invstd = x.mean((0, 2, 3)), 1 / x.std((0, 2, 3), correction=0)
    normalized = (x - mean.view(1, -1, 1, 1)) * invstd.view(1, -1, 1, 1)
    noise = torch.randn(x.shape, generator=generator)
    backward = torch.ops.aten.native_batch_norm_backward.default

    def is_sound(grad: torch.Tensor, error: torch.Tensor) -> bool:
        arguments = (grad, x, torch.ones(8), None, None, mean, invstd, True, 1e-5, [True] * 3)
        results = list(backward(*arguments))
        results[0] = results[0] + error
        return all(judgement.sound for judgement in compare(backward, arguments, {}, results))

    rounding = 12 * 2**-24 * noise  # of the terms, which add up to about 10
    assert is_sound(3 * normalized + 1e-4 * noise, rounding)  # the result is about 1e-4
    assert not is_sound(3 * normalized + 1e-4 * noise, 100 * rounding)
    assert not is_sound(noise, 1e-3 * noise)


def test_running_statistics_of_batch_normalization_are_judged():
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0)) + 1
    forward = torch.ops.aten.native_batch_norm.default
    before = (x, torch.ones(8), torch.zeros(8), torch.zeros(8), torch.ones(8), True, 0.1, 1e-5)
    arguments = widen(before, None)
    mean, variance, *results = outputs_of(forward, forward(*arguments), arguments, {})
    assert torch.equal(mean, arguments[3]) and not torch.equal(variance, torch.ones(8))
    assert all(one.sound for one in compare(forward, before, {}, [mean, variance, *results]))
    biased = 0.9 + (variance - 0.9) * 31 / 32  # divided by the number of values instead of one less
    sound = [one.sound for one in compare(forward, before, {}, [mean, biased, *results])]
    assert sound == [True, False, True, True, True]


def test_results_as_good_as_the_16_bit_kernel_of_the_cpu_are_sound():
    """In bfloat16 the CPU's batch normalization with a bfloat16 weight rounds scale and shift before it adds them."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 8, 16, 16, generator=generator) + 30).bfloat16()
    weight, bias = (torch.rand(8, generator=generator).bfloat16() for _ in range(2))
    forward = torch.ops.aten.native_batch_norm.default
    arguments = (x, weight, bias, None, None, True, 0.1, 1e-5)
    results = list(forward(*arguments))
    exact = call(forward, widen(arguments, torch.float64), {})[0]
    yardstick = call(forward, widen(arguments, torch.float32), {})[0].bfloat16()
    assert not judge(results[0], exact, yardstick, noisy=True).sound
    assert all(judgement.sound for judgement in compare(forward, arguments, {}, results))
    worse = exact + 4 * (results[0] - exact)
    assert not compare(forward, arguments, {}, [worse.bfloat16(), *results[1:]])[0].sound
