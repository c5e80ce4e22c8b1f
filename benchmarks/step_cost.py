"""Measure where the processor time of an iteration goes, in one process and in several that share its batch.

    python benchmarks/step_cost.py [--processes 1 4] [--arch lite] [--batch 16]

Trains on the generated sample with ``--preset fast`` as the quick start does, on the CPU, with ``--threads`` (one) per
process. The batch is the global one: of four processes each takes a quarter. Times are sums over all processes, user
and system time, including the threads that exchange gradients; ``--repeats`` rounds take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from centernet.datasets import get_dataset
from centernet.datasets.loader import Samples, collate, finish_batch
from centernet.engine import processes, setup
from centernet.engine.ddp import without_effect
from centernet.engine.optim import build_optimizer
from centernet.engine.trainer import Trainer
from centernet.opts import opts
from centernet.tasks import build_task

WARM_UP = 5  # iterations that are not measured


def main() -> None:
    """Start the runs and print the table."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--arch", default="lite")
    parser.add_argument("--batch", type=int, default=16, help="images of an iteration, of all processes together")
    parser.add_argument("--iterations", type=int, default=30)
    parser.set_defaults(threads=1, repeats=3)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)  # passed to the processes that are started
    args = parser.parse_args()
    if args.report is not None:
        work(args)
        return
    rounds = [{number: run(number, args) for number in args.processes} for _ in range(args.repeats)]
    found = {
        number: {part: np.median([one[number][part] for one in rounds]) for part in rounds[0][number]}
        for number in args.processes
    }
    print(f"{args.arch}, {args.batch} images per iteration: processor time in ms, medians, all processes together")
    print(f"  {'':10}" + "".join(f"{f'{number} process(es)':>16}" for number in found))
    for part in next(iter(found.values())):
        print(f"  {part:10}" + "".join(f"{1000 * parts[part]:16.1f}" for parts in found.values()))


def run(number: int, args) -> dict[str, float]:
    """Return the processor seconds of the parts of an iteration, summed over ``number`` processes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
        command += [__file__, "--report", folder]
        for name in ("arch", "batch", "iterations", "threads"):
            command += [f"--{name}", str(getattr(args, name))]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(args.threads)}, check=True)
        reports = [json.loads(path.read_text()) for path in Path(folder).iterdir()]
    return {part: sum(report[part] for report in reports) for part in reports[0]}


def work(args) -> None:
    """Run one process, and write the medians of its parts."""
    torch.set_num_threads(args.threads)
    opt = opts().parse(
        ["ctdet", "--dataset", "sample", "--preset", "fast", "--arch", args.arch, "--batch_size", str(args.batch)]
    )
    env = processes.start(opt)
    setup.configure_backends(opt, env)
    task = build_task(opt)
    setup.prepare_dataset(opt, env)
    samples = Samples(get_dataset(opt.dataset)(task, "train"), train=True)
    model = setup.build_model(opt, env)
    processes.tune_malloc(env.device)
    model = setup.to_device(model, env)
    trainer = Trainer(opt, task, model, build_optimizer(opt, model, env.device), env)
    trainer.model.train()
    share = args.batch // env.world_size
    times: dict[str, list[float]] = {}
    for i in range(WARM_UP + args.iterations):
        start = (i * args.batch + env.rank * share) % (len(samples.dataset) - share)
        for part, seconds in step(trainer, samples, range(start, start + share)).items():
            times.setdefault(part, []).append(seconds)
    medians = {part: float(np.median(seconds[WARM_UP:])) for part, seconds in times.items()}
    (args.report / f"{env.rank}.json").write_text(json.dumps(medians))
    env.barrier()


def step(trainer: Trainer, samples: Samples, indices: range) -> dict[str, float]:
    """Make one update as ``Trainer.step`` does, and return the processor seconds of its parts."""
    seconds: dict[str, float] = {}

    def part(name: str, function: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = function()
        seconds[name] = time.process_time() - started
        return result

    env, optimizer = trainer.env, trainer.optimizer
    started = time.process_time()
    batch = part("samples", lambda: collate([samples[1, index] for index in indices]))
    batch = part("targets", lambda: finish_batch(batch, trainer.task))
    counts = part("counts", lambda: env.sum(trainer.loss.normalizers(batch)))
    optimizer.zero_grad(set_to_none=True)
    outputs = part("forward", lambda: trainer.precision.forward(trainer.model, batch["input"]))
    loss, _ = part("loss", lambda: trainer.loss(outputs, batch, counts))
    if env.world_size > 1:
        loss = loss + without_effect(outputs)
    part("backward", lambda: trainer.precision.backward(loss * env.world_size))
    part("update", lambda: trainer.precision.update(optimizer))
    if trainer.averaged is not None:
        part("averages", trainer.averaged.update)
    seconds["in all"] = time.process_time() - started
    return seconds


if __name__ == "__main__":
    main()
