"""Measure training in several processes: images/s, and the share of ideal scaling.

    python benchmarks/scaling.py [--processes 1 2] [--arch resdcn_18] [--size 384] [--batch 4]

Starts ``torchrun`` once for every number of processes, each with its own accelerator, or with its share of the CPU's
cores and gloo. Every process works on ``--batch`` images, so ideally throughput grows with their number. Two
alternatives are compared: the trainer's wrapper, and the unmodified network in ``DistributedDataParallel`` with its
defaults, channels first. The gradients of both are checked to be equal.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import torch
from torch.nn.parallel import DistributedDataParallel
from train_step import make_batch

from centernet.datasets.loader import finish_batch, to_device
from centernet.engine import processes as engine_processes
from centernet.engine.trainer import distribute
from centernet.opts import opts
from centernet.tasks.ctdet import Ctdet

PLAIN, OURS = "default wrapper, channels first", "ours"


def main() -> None:
    """Start the runs and print the table."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", help="default: 1 and the number of devices or cores")
    parser.add_argument("--arch", default="resdcn_18")
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--batch", type=int, default=4, help="images per process")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)  # passed to the processes that torchrun starts
    args = parser.parse_args()
    if args.report is not None:
        work(args)
        return
    device = common.start(args)
    most = torch.accelerator.device_count() if device.type != "cpu" else args.threads
    numbers = args.processes or sorted({1, most})
    threads = 1 if device.type == "cpu" else args.threads
    print(f"{args.arch}, {args.size} x {args.size}, {args.batch} images and {threads} CPU thread(s) per process")
    alone: dict[str, float] = {}
    for number in numbers:
        for name, (middle, least, greatest) in run(number, threads, args).items():
            rate = number * args.batch / middle
            alone.setdefault(name, rate / number)
            print(
                f"  {number} process(es), {name:34}{1000 * middle:9.1f} ms ({1000 * least:.1f} - {1000 * greatest:.1f})"
                f"{rate:10.1f} images/s, efficiency {rate / number / alone[name]:.2f}",
                flush=True,
            )


def run(number: int, threads: int, args) -> dict[str, list[float]]:
    """Return median, minimum and maximum seconds of a step, by alternative, for a number of processes."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={number}",
            __file__,
        ]
        for name in ("arch", "size", "batch", "repeats"):
            command += [f"--{name}", str(getattr(args, name))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([*command, "--threads", str(threads), "--report", report], env=environment, check=True)
        return json.loads(report.read_text())


def work(args) -> None:
    """Run one process."""
    torch.set_num_threads(args.threads)
    opt = opts().parse(["ctdet", "--dataset", "coco", "--arch", args.arch, "--input_res", str(args.size)])
    processes = engine_processes.start(opt)
    criterion = Ctdet.criterion(opt)
    sent, gradients, ways = make_batch(args, opt), {}, {}
    for name in (PLAIN, OURS):
        network = common.make_network(args.arch).to(processes.device)
        if name == OURS:
            network = network.to(memory_format=torch.channels_last)
            model = distribute(network, opt, processes)
        else:
            for unused in getattr(network, "unused_parameters", ()):
                network.get_parameter(unused).requires_grad_(False)
            model = network if processes.world_size == 1 else DistributedDataParallel(network)
        optimizer = torch.optim.Adam(network.parameters(), opt.lr, fused=name == OURS or None)

        def step(model=model, optimizer=optimizer, ours=name == OURS) -> None:
            batch = finish_batch(to_device(sent, processes.device), Ctdet(opt))
            x = batch["input"] if ours else batch["input"].contiguous()
            loss, _ = criterion(model(x), batch, processes.sum(criterion.normalizers(batch)))
            optimizer.zero_grad(set_to_none=True)
            (loss * processes.world_size).backward()
            optimizer.step()

        step()
        gradients[name] = next(p.grad for key, p in network.named_parameters() if key.split(".")[0] in common.HEADS)
        ways[name] = step
    if processes.is_main:
        common.check("gradients", gradients[OURS], gradients[PLAIN], 1e-3)
    seconds, _ = common.take_turns(ways, args.repeats, processes.device, by_clock=True)
    if processes.is_main:
        numbers = {name: [sorted(v)[len(v) // 2], min(v), max(v)] for name, v in seconds.items()}
        args.report.write_text(json.dumps(numbers))
    processes.barrier()


if __name__ == "__main__":
    main()
