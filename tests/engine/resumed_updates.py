"""Run by test_processes.py in several processes: uninterrupted updates, and the same with a restart in between.

The first argument is the JSON file that rank 0 writes: which tensors differ. The options are those of main.py.
"""

import copy
import json
import sys
from pathlib import Path

import torch

from centernet.datasets import get_dataset
from centernet.datasets.loader import Samples, TrainBatches, collate, finish_batch
from centernet.engine import processes as engine_processes
from centernet.engine.trainer import Trainer
from centernet.models import create_model
from centernet.options import OptionParser, Options, process_shares
from centernet.tasks import build_task

UPDATES = 4


def main(opt: Options) -> None:
    processes = engine_processes.start(opt)
    torch.set_num_threads(1)
    task, dataset = build_task(opt), get_dataset(opt.dataset)
    samples = Samples(dataset(task, "train"), train=True)
    batches = TrainBatches(len(samples.dataset), process_shares(opt, processes.world_size), processes.rank, opt.seed)

    def new_trainer() -> Trainer:
        torch.manual_seed(opt.seed)
        model = create_model(opt.arch, opt.heads, opt.head_conv)
        model.to(processes.device, memory_format=torch.channels_last)
        return Trainer(opt, task, model, torch.optim.Adam(model.parameters(), opt.lr, fused=True), processes)

    def update(trainer: Trainer, epoch: int) -> None:
        batches.epoch = epoch
        batch = collate([samples[key] for key in next(iter(batches))])
        trainer.step(finish_batch(batch, task))

    def state(trainer: Trainer) -> dict:
        return copy.deepcopy({"model": trainer.network.state_dict(), "optimizer": trainer.optimizer.state_dict()})

    def tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
        found = {f"weight {name}": value for name, value in trainer.network.state_dict().items()}
        for index, entry in trainer.optimizer.state_dict()["state"].items():
            found |= {f"{name} {index}": value for name, value in entry.items()}
        if trainer.averaged is not None:
            found |= {f"average {name}": value for name, value in trainer.averaged.state.items()}
        return found

    whole, kept, averages = new_trainer(), [], []
    for k in range(UPDATES):
        kept.append(state(whole))
        if whole.averaged is not None:
            averages.append(
                copy.deepcopy({"updates": whole.averaged.updates, "state_dict": dict(whole.averaged.state)})
            )
        update(whole, k + 1)
    differing = {}
    for first in range(1, UPDATES):
        resumed = new_trainer()
        resumed.network.load_state_dict(kept[first]["model"])
        resumed.optimizer.load_state_dict(kept[first]["optimizer"])
        if averages:
            resumed.averaged.load(averages[first])
        for k in range(first, UPDATES):
            update(resumed, k + 1)
        pairs = tensors(whole), tensors(resumed)
        differing[first] = [
            name for name in pairs[0] | pairs[1] if name not in pairs[1] or not torch.equal(*(p[name] for p in pairs))
        ]
    everything = processes.gather((differing, len(tensors(whole))))
    if processes.is_main:
        result.write_text(json.dumps(everything))


if __name__ == "__main__":
    result = Path(sys.argv.pop(1))
    engine_processes.run_script(main, OptionParser().parse())
