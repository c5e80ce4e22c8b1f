"""A training step never makes the host wait for the device, which would leave the device idle.

The operators that wait are counted on the CPU: those that read a value back, select by a mask, or copy a tensor that
the host has made of numbers. Operators inside fused ones, such as those of optimizers, are not seen.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from centernet.diagnostics.check import training_options
from centernet.diagnostics.scenario import Scenario
from centernet.engine.precision import MixedPrecision

CPU = torch.device("cpu")
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "lift_fresh", "_unique2"}
INDEXING = {"index", "index_put", "index_put_"}


class Waits(TorchDispatchMode):
    """Counts the operators for which the host waits, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        sizes = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITING or masks or sizes:
            self.found[name] += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x[0] > 0), "_local_scalar_dense"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.clone().masked_fill_(x > 0, 0).nonzero(), "nonzero"),
        (lambda x: x.new_tensor([1.0, 2.0]), "lift_fresh"),
        (lambda x: torch.repeat_interleave((x > 0).long()), "repeat_interleave"),
    ],
)
def test_waits_are_counted(function, name):
    x = torch.randn(5)
    with Waits() as waits:
        function(x)
    assert waits.found[name]


RECIPES = {
    "ctdet": [],
    "ctdet fast": ["--preset", "fast"],
    "ctdet ciou": ["--box_loss", "ciou"],
    "ctdet mse": ["--mse_loss", "--cat_spec_wh"],
    "ctdet dense": ["--dense_wh", "--ema", "0.99", "--accumulate", "2"],
    "ctdet skip": ["--on_nan", "skip", "--clip_grad", "10", "--amp", "bf16"],
    "multi_pose": [],
    "multi_pose diou": ["--box_loss", "diou"],
    "exdet": [],
    "ddd": [],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_does_not_wait(recipe):
    task = recipe.split()[0]
    size = ["--input_res", "64"] if task != "ddd" else ["--input_h", "64", "--input_w", "96"]
    options = [task, "--arch", "res_18", "--head_conv", "16", "--pretrained", "none", "--device", "cpu", *size]
    scenario = Scenario(training_options([*options, *RECIPES[recipe]]), CPU, log=lambda *_: None)
    trainer = scenario.trainer(CPU)
    first, second = scenario.raw_batches(2)
    trainer.step(scenario.finish(first, CPU))  # the state of the optimizer is made
    with Waits() as waits:
        trainer.step(scenario.finish(second, CPU))
    assert not waits.found


def test_counting_updates_of_fp16_does_not_wait():
    """GradScaler skips an update whose gradients are not finite; SGD does not count, so that we do."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.1, fused=True)
    precision = MixedPrecision("bf16", CPU)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        precision.backward(weight.sum() * factor)
        with Waits() as waits:
            precision.update(optimizer)
        assert not waits.found
    assert precision.updates(optimizer) == 2
