"""The training that is looked at: network, batches and loss as the options configure them, on any device."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

from ..datasets import DATASETS
from ..datasets.loader import Samples, TrainBatches, collate, finish_batch, to_device
from ..datasets.synthetic.base import SyntheticDataset
from ..engine import setup
from ..engine.optim import build_optimizer, freeze
from ..engine.processes import Distributed
from ..engine.trainer import Trainer
from ..options import Options
from ..tasks import build_task

CPU = torch.device("cpu")
NOISE_PLACES = 100_003  # where the noise of a layer may begin in the random numbers


def synthetic_dataset(task: str) -> str:
    """Return the name of a task's synthetic dataset, which needs no download."""
    fitting = (name for name, one in DATASETS.items() if issubclass(one, SyntheticDataset) and one.tasks[0] == task)
    return next(fitting)


class Scenario:
    """A training that starts from the same weights and sees the same batches on every device.

    Attributes:
        opt: finished options.
        device: the device that is checked.
        dtype: 16-bit type of ``--amp``, or None.
        model: the network with its initial weights, on the CPU.
    """

    def __init__(self, opt: Options, device: torch.device, log=print) -> None:
        self.opt, self.device = opt, device
        self.dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[opt.amp]
        self.task = build_task(opt)
        env = Distributed(0, 1, 0, CPU)
        setup.prepare_dataset(opt, env)
        train_set, _ = setup.build_datasets(build_task(opt.replace(val_intervals=0)), env)
        assert train_set is not None  # only tests have none
        self.samples = Samples(train_set, train=True)
        self.epoch_batches = TrainBatches(len(train_set), [opt.batch_size], 0, opt.seed)
        torch.manual_seed(opt.seed)
        self.model = setup.build_model(opt, env)
        setup.load_weights(opt, self.model, env)

    def raw_batches(self, count: int) -> list[dict]:
        """Return the first batches of a training as its loader gives them."""
        keys: list = []
        self.epoch_batches.epoch = 0
        while len(keys) < count:
            self.epoch_batches.epoch += 1
            keys += islice(self.epoch_batches, count - len(keys))
        return [collate([self.samples[key] for key in batch]) for batch in keys]

    def finished_batches(self, count: int) -> list[dict]:
        """Return the same with input and target maps, made on the CPU."""
        with torch.no_grad():
            return [finish_batch(batch, self.task) for batch in self.raw_batches(count)]

    def finish(self, batch: dict, device: torch.device) -> dict:
        """Bring a batch of ``raw_batches`` to a device and finish it there, as a training does."""
        return finish_batch(to_device(batch, device), self.task)

    def trainer(
        self, device: torch.device, dtype: torch.dtype = torch.float32, env: Distributed | None = None
    ) -> Trainer:
        """Return a trainer with the initial weights.

        Args:
            device: where it computes. A CPU computes fp16 slowly, so its yardstick for it is the coarser bf16.
            dtype: type of the weights; float64 for references, which use no mixed precision.
            env: the processes that train together; this one alone by default.
        """
        amp = "off" if dtype == torch.float64 else self.opt.amp
        opt = self.opt.replace(amp="bf16" if device.type == "cpu" and amp == "fp16" else amp, compile=False)
        env = env or Distributed(0, 1, 0, device)
        model = setup.to_device(copy.deepcopy(self.model).to(dtype), env)
        trainer = Trainer(opt, self.task, model, build_optimizer(opt, freeze(opt, model), device), env)
        trainer.model.train()
        return trainer


def place(batch: dict, device: torch.device, dtype: torch.dtype = torch.float32) -> dict:
    """Return a finished batch on a device, its floating-point tensors in ``dtype``."""
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, Tensor)
        else value
        for name, value in batch.items()
    }


def nudge(model: torch.nn.Module, seed: int) -> None:
    """Move every weight by at most one unit in the last place, up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            choice = torch.randint(0, 3, parameter.shape, generator=generator) - 1
            towards = torch.where(choice > 0, torch.inf, -torch.inf).to(parameter.dtype)
            moved = torch.nextafter(parameter, towards)
            parameter.copy_(torch.where(choice == 0, parameter, moved))


@contextmanager
def rounding_noise(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """Add noise of two units in the last place to the results of every layer with weights, within the block.

    The noise is added to the layer's output, to the gradient of that output, and to the gradients of its weights, as
    the rounding errors of a device are that sums in another order.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = torch.empty(0)  # random numbers, of which every use takes a part from another place: drawing all is slow

    def moved(value: Tensor) -> Tensor:
        nonlocal pool
        needed = value.numel() + NOISE_PLACES
        if pool.numel() < needed:
            pool = torch.empty(needed).uniform_(-1, 1, generator=generator)
        place = int(torch.randint(NOISE_PLACES, (), generator=generator))
        noise = pool.as_strided(value.shape, torch.empty_like(value).stride(), place).to(value.dtype)
        # Errors of a sum are those of its terms, so that small results have no smaller ones.
        size = torch.linalg.vector_norm(value.detach(), 1, dtype=torch.float32) / max(value.numel(), 1)
        return torch.add(value, noise, alpha=2 * torch.finfo(value.dtype).eps * float(size))

    def of_output(_module, _inputs, output: Tensor) -> Tensor:
        output = moved(output)
        if output.requires_grad:
            output.register_hook(moved)
        return output

    layers = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    handles = [module.register_forward_hook(of_output) for module in layers]
    handles += [parameter.register_hook(moved) for parameter in model.parameters() if parameter.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def module_paths(model: torch.nn.Module) -> Iterator["Paths"]:
    """Know, within the block, in which module the forward pass is, and to which one a node of autograd belongs."""
    paths = Paths()
    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: paths.enter(name)))
            handles.append(module.register_forward_hook(lambda *_, name=name: paths.leave(), always_call=True))
    try:
        yield paths
    finally:
        for handle in handles:
            handle.remove()


class Paths:
    """Module paths by position in the forward pass.

    Autograd numbers its nodes in the order of the forward pass, so a module owns the numbers that are given away
    between its beginning and its end.
    """

    def __init__(self) -> None:
        self.stack: list[tuple[str, int]] = []
        self.owners: list[tuple[int, int, str]] = []  # first number, end, path; inner modules first

    def enter(self, name: str) -> None:
        self.stack.append((name, torch._C._autograd._get_sequence_nr()))

    def leave(self) -> None:
        name, first = self.stack.pop()
        self.owners.append((first, torch._C._autograd._get_sequence_nr(), name))

    def now(self) -> str:
        """Return the innermost module of the forward pass or of the current node of the backward pass, or "loss"."""
        node = torch._C._current_autograd_node()
        if node is None:
            return self.stack[-1][0] if self.stack else "loss"
        number = node._sequence_nr()
        return next((name for first, end, name in self.owners if first <= number < end), "loss")
