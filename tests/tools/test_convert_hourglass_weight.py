"""convert_hourglass_weight.py, and ``--load_model`` of the files it reads."""

import os
import pickle
import subprocess
import sys

import pytest
import torch
from tests.helpers.training import ENVIRONMENT, ROOT

from centernet.errors import UserError
from centernet.models import create_model, load_model, read_checkpoint

SCRIPT = ROOT / "src" / "tools" / "convert_hourglass_weight.py"
# Names of ExtremeNet's heads, and those of exdet.
HEADS = {
    "t_heats": "hm_t",
    "l_heats": "hm_l",
    "b_heats": "hm_b",
    "r_heats": "hm_r",
    "ct_heats": "hm_c",
    "t_regrs": "reg_t",
    "l_regrs": "reg_l",
    "b_regrs": "reg_b",
    "r_regrs": "reg_r",
}


def convert(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def write_extremenet(path, prefix=""):
    """A file with some of ExtremeNet's names, as PyTorch 0.4 wrote it; the expected names and values."""
    torch.manual_seed(0)
    names = ["pre.0.conv.weight", "kps.0.up1.0.conv1.weight", "cnvs_.0.0.weight", "tl_tags.0.1.weight"]
    names += [f"{head}.{stack}.1.bias" for head in HEADS for stack in range(2)]
    state = {name: torch.rand(3) for name in names}
    torch.save({prefix + name: value for name, value in state.items()}, path, _use_new_zipfile_serialization=False)
    return {
        ".".join([HEADS.get(name.split(".")[0], name.split(".")[0]), *name.split(".")[1:]]): state[name]
        for name in state
    }


@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_are_converted(tmp_path, prefix):
    path = tmp_path / "ExtremeNet_500000.pkl"
    expected = write_extremenet(path, prefix)
    done = convert(path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'ExtremeNet_500000.pth'}: 22 entries, ")
    written = read_checkpoint(tmp_path / "ExtremeNet_500000.pth")
    assert written["epoch"] == 0 and list(written["state_dict"]) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in written["state_dict"].items())
    assert {"hm_c.0.1.bias", "hm_t.1.1.bias", "reg_r.0.1.bias", "tl_tags.0.1.weight"} <= written["state_dict"].keys()


def test_the_network_of_extreme_points_reads_the_file_itself(tmp_path):
    """Every entry of exdet's hourglass is found under ExtremeNet's name, without conversion."""
    heads = {**dict.fromkeys(("hm_t", "hm_l", "hm_b", "hm_r", "hm_c"), 3), **{f"reg_{side}": 2 for side in "tlbr"}}
    torch.manual_seed(1)
    model = create_model("hourglass", heads, 64)
    original = {own: theirs for theirs, own in HEADS.items()}
    state = {}
    for name, value in model.state_dict().items():
        head, _, rest = name.partition(".")
        state[f"module.{original.get(head, head)}.{rest}"] = value
    torch.save(state, tmp_path / "a.pkl", _use_new_zipfile_serialization=False)
    other, logged = create_model("hourglass", heads, 64), []
    load_model(other, tmp_path / "a.pkl", log=logged.append)
    assert logged == [f"loaded {tmp_path / 'a.pkl'}, epoch unknown"]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


class Payload:
    def __reduce__(self):
        return os.mkdir, ("PWNED",)


def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"t_heats.0.1.bias": Payload()}))
    done = convert(path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {path}: refused") and not (tmp_path / "PWNED").exists()
    with pytest.raises(UserError, match="refused"):
        read_checkpoint(path)


def test_mistakes_end_with_one_line(tmp_path):
    done = convert(tmp_path / "missing.pkl")
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path / 'missing.pkl'}: no such checkpoint file\n")
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(1)}, path)
    done = convert(path)
    assert done.returncode == 2 and "would be overwritten; name another file with --output" in done.stderr
    torch.save({"epoch": 3}, path)
    done = convert(path, "--output", tmp_path / "b.pth")
    assert (done.returncode, done.stderr) == (2, f"error: {path}: this file has no weights\n")
