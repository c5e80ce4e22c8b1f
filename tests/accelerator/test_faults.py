"""Every fault of the simulated accelerator against every level of the check.

``UPDATE_TABLE=1 python -m pytest -m soak tests/accelerator/test_faults.py`` writes the table between the markers
``BEGIN`` and ``END`` of docs/ACCELERATORS.md, where they exist; without the variable the test compares it with what it
finds.
"""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.accelerator.findings import is_named
from tests.accelerator.simulation import ROOT, environment

from centernet.diagnostics.scenario import CPU
from centernet.engine.precision import has_bfloat16_instructions

pytestmark = pytest.mark.simulated

HERE = "tests.accelerator.test_faults"
LEVELS = ("probe", "operators", "layers", "steps", "repeat", "processes")
DOCUMENTS = (ROOT / "docs/ACCELERATORS.md", ROOT / "docs/ACCELERATORS.zh-CN.md")
BEGIN, END = "<!-- table of faults: begin -->", "<!-- table of faults: end -->"
SETUP = ("ctdet", "--arch", "resdcn_18", "--input_res", "64", "--head_conv", "16", "--iterations", "6")


def run_levels(fault: str, data: str, result: str) -> None:
    """Run all levels but "processes" (in the simulation) and write their findings."""
    from centernet.diagnostics.check import main

    levels = ",".join(name for name in LEVELS if name != "processes")
    folder = Path(result).parent
    status = main([*SETUP, "--data_path", data, "--exp_dir", str(folder), "--levels", levels])
    report = json.loads((folder / "ctdet/default/device_check.json").read_text())
    Path(result).write_text(json.dumps({"status": status, "levels": report["levels"]}))


def curve_verdict(simulation, fault: str, data: Path, folder: Path) -> str:
    """Train 40 iterations with the fault; the verdict of loss.py about the curve."""
    options = ["ctdet", "--dataset", "sample", "--data_path", data, "--arch", "resdcn_18", "--input_res", "64"]
    options += ["--head_conv", "16", "--batch_size", "4", "--num_iters", "40", "--num_epochs", "1"]
    options += ["--num_workers", "0", "--val_intervals", "0", "--pretrained", "none", "--hide_data_time"]
    reference = folder.parent / "reference"
    if not reference.is_dir():
        simulation.output("main", *options, "--exp_dir", reference, "--device", "cpu")
    done = simulation.run("main", *options, "--exp_dir", folder / "curve", faults=fault)
    log = folder / "curve/ctdet/default/train_log.csv"
    if done.status != 0:
        return "fails"
    with open(log, newline="") as file:
        assert len(list(csv.reader(file))) == 41
    command = [sys.executable, ROOT / "loss.py", "--run", log, "--reference", reference / "ctdet/default/train_log.csv"]
    judged = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder, check=False)
    return {0: "passes", 1: "fails"}.get(judged.returncode, judged.stderr.strip())


@pytest.mark.soak
def test_every_fault_is_found_and_named(simulation, tmp_path, sample_data):
    sys.path.insert(0, str(ROOT / "tests/accelerator/backend"))
    descriptions = json.loads(simulation.output(f"{HERE}:describe"))
    only = os.environ.get("ONLY_FAULTS", "").split(",") if os.environ.get("ONLY_FAULTS") else list(descriptions)
    rows, wrong = [], []
    for name in only:
        fault = type("Fault", (), descriptions[name])
        folder = tmp_path / name
        folder.mkdir()
        result = folder / "levels.json"
        done = simulation.run(f"{HERE}:run_levels", name, sample_data, result, faults=name)
        assert result.is_file(), (name, done.errors[-2000:], done.output[-1000:])
        levels = {level["name"]: level["findings"] for level in json.loads(result.read_text())["levels"]}
        levels["processes"] = processes_findings(name, sample_data, folder)
        named = [
            (level, finding) for level, findings in levels.items() for finding in findings if is_named(fault, finding)
        ]
        if not named:
            wrong.append((name, {level: [one["text"] for one in found[:2]] for level, found in levels.items()}))
        cells = [_cell(fault, levels.get(level, [])) for level in LEVELS]
        best = _short(named[0][1]) if named else "-"
        rows.append([fault.text, *cells, curve_verdict(simulation, name, sample_data, folder), best])
        print(" | ".join(rows[-1]), flush=True)
    assert not wrong, wrong
    if only == list(descriptions):
        table = _markdown(rows)
        documents = [document for document in DOCUMENTS if BEGIN in document.read_text(encoding="utf-8")]
        if os.environ.get("UPDATE_TABLE"):
            for document in documents:
                text = document.read_text(encoding="utf-8")
                head, tail = text.split(BEGIN)[0], text.split(END)[1]
                document.write_text(f"{head}{BEGIN}\n{table}{END}{tail}", encoding="utf-8")
        for document in documents:
            assert _marks(_between(document)) == _marks(table), document


def processes_findings(fault: str, data: Path, folder: Path) -> list[dict]:
    """Return the findings of level "processes"; only faults of the collective library need it."""
    if "all_reduce" not in fault:
        return []
    command = [sys.executable, ROOT / "src/tools/check_device.py", *SETUP, "--data_path", data, "--exp_dir", folder]
    command += ["--levels", "processes"]
    subprocess.run(
        list(map(str, command)), env=environment(SIM_FAULTS=fault, SIM_DEVICES="2"), capture_output=True, check=False
    )
    return json.loads((folder / "ctdet/default/device_check.json").read_text())["levels"][0]["findings"]


def describe() -> None:
    """Print the faults as JSON (in the simulation, which knows them)."""
    from simulated_accelerator.faults import FAULTS

    facts = {name: {key: getattr(one, key) for key in ("text", "operators", "passes")} for name, one in FAULTS.items()}
    print(json.dumps(facts))


def _cell(fault, findings: list[dict]) -> str:
    return "named" if any(is_named(fault, one) for one in findings) else "found" if findings else ""


def _short(finding: dict) -> str:
    return re.split(r"; worst|; left", finding["text"])[0]


def _markdown(rows: list[list[str]]) -> str:
    head = ["fault", *LEVELS, "`loss.py`", "named as"]
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |\n" for line in lines)


def _between(document: Path) -> str:
    return document.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].lstrip("\n")


def _marks(table: str) -> list[list[str]]:
    """The table without the verdict of loss.py and the words, which hold numbers that vary with the machine."""
    return [line.split(" | ")[: len(LEVELS) + 1] for line in table.strip().splitlines()]


SOUND = [
    *(("ctdet", "resdcn_18", "64", seed) for seed in range(1, 6)),
    ("ctdet", "dla_34", "128", 1),
    *((task, "res_18", "64", seed) for task in ("multi_pose", "exdet", "ddd") for seed in range(1, 6)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "arch", "size", "seed"), SOUND)
def test_no_alarm_on_a_sound_device_that_rounds_otherwise(simulation, tmp_path, sample_data, task, arch, size, seed):
    check_sound(simulation, tmp_path, sample_data, task, arch, size, seed, "off")


@pytest.mark.slow
@pytest.mark.parametrize(("task", "arch", "size", "seed"), [one for one in SOUND if one[3] == 1])
def test_no_alarm_with_16_bits(simulation, tmp_path, sample_data, task, arch, size, seed):
    check_sound(simulation, tmp_path, sample_data, task, arch, size, seed, "bf16")


@pytest.mark.soak
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_no_alarm_with_hourglass(simulation, tmp_path, sample_data, amp):
    check_sound(simulation, tmp_path, sample_data, "ctdet", "hourglass", "128", 1, amp)


def check_sound(simulation, tmp_path, sample_data, task, arch, size, seed, amp) -> None:
    """All levels find nothing on the simulated device without faults, which sums in another order than the CPU."""
    if amp == "bf16" and not has_bfloat16_instructions(CPU):
        pytest.skip("this CPU, which computes for the simulation, sums gradients of convolutions in bfloat16")
    options = [task, "--arch", arch, "--input_res", size, "--seed", seed, "--amp", amp, "--iterations", "5"]
    options += ["--data_path", sample_data, "--exp_dir", tmp_path]
    options += ["--levels", "settings,probe,operators,layers,steps,repeat"]
    done = simulation.run("tools/check_device", *options, SIM_ROUNDING="1")
    assert done.status == 0, done.output[-4000:] + done.errors[-2000:]
