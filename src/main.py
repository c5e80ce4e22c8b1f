"""Train a detector: ``python src/main.py ctdet --dataset pascal ...``; in several processes through ``torchrun``."""

import datetime
import math
import time
from pathlib import Path

import torch

from centernet.analysis.report import write_report
from centernet.datasets import get_dataset, read_dataset
from centernet.datasets.loader import Samples, TrainBatches, explain_dataloader_crash, make_loader
from centernet.engine import processes as engine_processes
from centernet.engine.checkpoints import Checkpoints, load
from centernet.engine.precision import check_amp, set_precision
from centernet.engine.run_directory import RunDirectory
from centernet.engine.run_state import check_plan, check_recipe, follow_restart
from centernet.engine.signals import ShutdownHandler
from centernet.engine.trainer import Trainer
from centernet.errors import UserError
from centernet.models import create_model
from centernet.options import NEVER, model_metadata, process_shares
from centernet.opts import opts
from centernet.tasks import get_task


@explain_dataloader_crash()
def main(parser: opts, opt) -> None:
    """The story of a run: build, epochs, save, evaluate."""
    started = time.perf_counter()
    if opt.keep_res and not opt.test:
        raise UserError("--keep_res: training needs images of one size; it is for --test")
    processes = engine_processes.start(opt)
    say = processes.print
    follow_restart(opt, processes, log=say)
    for note in parser.notes(opt):
        say(note)
    check_amp(opt.amp, processes.device)
    torch.manual_seed(opt.seed)
    set_precision(opt.precision)
    if opt.precision == "tf32" and processes.device.type == "cpu":
        say("note: --precision tf32 changes nothing on a CPU")
    torch.backends.cudnn.benchmark = not opt.not_cuda_benchmark and not opt.test

    # Dataset and network.
    task, dataset = get_task(opt.task), get_dataset(opt.dataset)
    processes.local_main_process_first(lambda: dataset.prepare(dataset.locate(Path(opt.data_dir)), log=say))
    pretrained = None if opt.resume else opt.pretrained
    model = processes.local_main_process_first(
        lambda: create_model(opt.arch, opt.heads, opt.head_conv, pretrained, log=say)
    )
    validates = opt.test or 0 < opt.val_intervals < NEVER
    val_set = read_dataset(opt, "val", processes) if validates else None
    train_set = read_dataset(opt, "train", processes) if not opt.test else None
    for split in (train_set, val_set):
        if split is not None:
            split.check_images_exist()
            for note in split.notes:
                say(note)
    if "metric" not in opt.given:
        opt.metric = opt.main_score  # "loss" of the reference's options says little about detections
    lower_is_better = opt.metric in (*task.Loss.names, "time")
    if validates and not lower_is_better and opt.metric not in val_set.score_names:
        known = ", ".join((*task.Loss.names, "time", *val_set.score_names))
        raise UserError(f"--metric {opt.metric}: choose from {known}")
    if train_set is not None:
        shares = process_shares(opt, processes.count)
        batches = TrainBatches(len(train_set), shares, processes.rank, opt.seed, opt.num_iters)
        if len(batches) == 0:
            raise UserError(f"--batch_size {opt.batch_size}: there are only {len(train_set)} images to train on")
    if opt.prepare_only:
        for split in (train_set, val_set):
            if split is not None:
                say(f"{split.annotation_file}: {len(split)} images")
        return

    engine_processes.tune_malloc(processes.device)

    # Optimizer, checkpoint, run folder. Convolutions are faster when the channels of a pixel lie together.
    model.to(processes.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), opt.lr, fused=processes.device.type in ("cpu", "cuda"))
    state = load(opt, model, optimizer, processes, log=say)
    if opt.test:
        run = RunDirectory(opt, processes, task.Loss.names) if processes.is_main else None
        say(lines(Trainer(opt, task, model, optimizer, processes, run).evaluate(state.epoch, val_set)))
        return
    check_plan(state, [len(train_set), opt.batch_size, opt.seed, opt.num_iters], len(batches), log=say)
    check_recipe(state, opt, log=say)
    processes.check_equal({"options": state.recipe, "training data": train_set.summary()})
    run = RunDirectory(opt, processes, task.Loss.names, state) if processes.is_main else None
    requests = ShutdownHandler()
    trainer = Trainer(opt, task, model, optimizer, processes, run, state, requests)
    checkpoints = Checkpoints(model_metadata(opt, train_set.default_image_info()), trainer, processes, run)
    trainer.save = checkpoints.save
    trainer.resume()

    loader = make_loader(Samples(train_set, opt, train=True), batches, opt.num_workers, trainer.pin_memory)
    say(
        f"{opt.task}/{opt.exp_id}: {opt.arch} on {opt.dataset}, {len(train_set)} images, input {opt.input_w} x "
        f"{opt.input_h}, {opt.num_epochs} epochs of {len(batches)} iterations of {opt.batch_size} images, "
        f"{processes.count} process(es) on {processes.device.type}"
    )

    def due(epoch: int) -> bool:
        return validates and (epoch % opt.val_intervals == 0 or epoch == opt.num_epochs)

    def finish_epoch() -> None:
        """Validation, logs and checkpoint of an epoch that has been trained."""
        epoch, train_log, val_log = state.epoch, state.unlogged, None
        if due(epoch):
            val_log = trainer.evaluate(epoch, val_set)
            value, best = val_log[opt.metric], state.best.get(opt.metric)
            # A score of data without any object is not a number.
            if best is None or math.isnan(best) or (value < best if lower_is_better else value > best):
                state.best = {opt.metric: value}
                checkpoints.save_best()
        if run is not None:
            run.write_epoch(epoch, train_log, val_log)
        state.unlogged = None
        checkpoints.save()
        if epoch in opt.lr_step or (opt.save_all and val_log):
            checkpoints.save(f"model_{epoch}.pth")
        finals.update(train_log=train_log, val_log=val_log)
        say(f"epoch {epoch}: {line(train_log)}" + (f" | val {line(val_log)}" if val_log else ""))

    finals = {"train_log": None, "val_log": None}
    with requests.listening():
        if state.unlogged is not None:  # it was left in its validation
            finish_epoch()
        for epoch in range(state.epoch + 1, opt.num_epochs + 1):
            # The rate falls after the epochs of --lr_step: the epoch after is the first with the lower one.
            for group in optimizer.param_groups:
                group["lr"] = opt.lr * 0.1 ** sum(step < epoch for step in opt.lr_step)
            with requests.waiting():
                state.end_epoch(trainer.train(epoch, loader))
                checkpoints.save() if due(epoch) else finish_epoch()
            if due(epoch):
                finish_epoch()

    train_log, val_log = finals["train_log"], finals["val_log"]
    if run is not None:
        run.close()
        score = f"{opt.main_score}: {val_log[opt.main_score]:.4f}" if val_log else "score: not validated"
        print(f"images per second: {trainer.images_per_second:.1f}")
        print(f"final loss: {train_log['loss']:.4f}" if train_log else "final loss: no epoch was left to train")
        print(f"final {score}")
        print(f"duration: {datetime.timedelta(seconds=round(time.perf_counter() - started))}")
        print(f"weights and logs: {run.path}")
        if train_log:
            print(f"report: {write_report(run.path, *(run.validated or ()))}")


def line(log: dict[str, float]) -> str:
    """Losses and main scores in one line, without the scores of single classes."""
    return " | ".join(f"{name} {value:.4f}" for name, value in log.items() if "/" not in name)


def lines(log: dict[str, float]) -> str:
    """The same with a line for every class."""
    return "\n".join([line(log), *(f"{name} {value:.4f}" for name, value in log.items() if "/" in name)])


if __name__ == "__main__":
    engine_processes.run_script(main, opts())
