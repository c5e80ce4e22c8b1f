"""Run by test_processes.py in 1, 2 and 4 processes: one update of the same global batch, written by rank 0.

The last argument but the options is the file to write; the options are those of main.py.
"""

import sys

import torch

from centernet.datasets import get_dataset
from centernet.datasets.loader import Samples, TrainBatches, collate, finish_batch
from centernet.engine import processes as engine_processes
from centernet.engine.trainer import Trainer
from centernet.models import create_model
from centernet.options import OptionParser, Options, process_shares
from centernet.tasks import build_task


def main(opt: Options) -> None:
    processes = engine_processes.start(opt)
    torch.set_num_threads(1)
    torch.manual_seed(opt.seed)
    task, dataset = build_task(opt), get_dataset(opt.dataset)
    model = create_model(opt.arch, opt.heads, opt.head_conv).double()
    trainer = Trainer(opt, task, model, torch.optim.SGD(model.parameters(), opt.lr), processes)
    trainer.model.eval()  # batch statistics belong to a process, so they are left out of the comparison
    samples = Samples(dataset(task, "train"), train=True)
    batches = TrainBatches(len(samples.dataset), process_shares(opt, processes.world_size), processes.rank, opt.seed)
    batch = finish_batch(collate([samples[key] for key in next(iter(batches))]), task)
    # In float64, so that nothing but the arithmetic itself could differ.
    floats = {name: v.double() for name, v in batch.items() if torch.is_tensor(v) and v.is_floating_point()}
    _, parts = trainer.step({**batch, **floats})
    losses = processes.sum(torch.stack([parts[name].detach() for name in task.criterion.names]))
    if processes.is_main:
        gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
        torch.save({"losses": losses, "gradients": gradients}, result)
    processes.barrier()


if __name__ == "__main__":
    result = sys.argv.pop(1)
    engine_processes.run_script(main, OptionParser().parse())
