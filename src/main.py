"""Train a detector: ``python src/main.py ctdet --dataset pascal ...``; in several processes through ``torchrun``."""

from centernet import cli

if __name__ == "__main__":
    cli.train()  # parses the command line before the imports below, which take seconds, and does not return

import contextlib
import datetime
import time
from collections.abc import Callable

from centernet.analysis.report import RunningReport, finish_report, is_report_missing
from centernet.datasets.base import CocoStyleDataset
from centernet.engine import processes, setup
from centernet.engine.checkpoints import Checkpoints, load
from centernet.engine.evaluate import evaluate
from centernet.engine.optim import build_optimizer, freeze
from centernet.engine.run_directory import RunDirectory
from centernet.engine.run_state import TrainingState, check_plan, check_recipe, follow_restart
from centernet.engine.signals import ShutdownHandler
from centernet.engine.trainer import Trainer, train_one_epoch
from centernet.errors import UserError
from centernet.options import Options, model_metadata
from centernet.tasks import build_task


def main(opt: Options) -> None:
    """Train a model end to end, or score a checkpoint with ``--test``."""
    started = time.perf_counter()
    if opt.keep_res and not opt.test:
        raise UserError("--keep_res: training needs images of one size; it is for --test")
    env = processes.start(opt)
    opt = follow_restart(opt, env, log=env.print)
    setup.configure_backends(opt, env)

    # Task, data, model
    task = build_task(opt)
    setup.prepare_dataset(opt, env)
    model = setup.build_model(opt, env)
    train_set, val_set = setup.build_datasets(task, env)
    metric = setup.Metric(opt, task.criterion.names, val_set)
    opt = opt.replace(metric=metric.name)
    if train_set is not None:
        setup.save_initial_weights(opt, model, model_metadata(opt, train_set.default_image_info()), env)
    if opt.prepare_only:
        env.print("\n".join(describe(split) for split in (train_set, val_set) if split is not None))
        return
    processes.tune_malloc(env.device)
    model = setup.to_device(model, env)

    # Score a checkpoint
    if opt.test:
        assert val_set is not None
        setup.load_weights(opt, model, env)
        run = RunDirectory(opt, env, task.criterion.names) if env.is_main else None
        env.print(setup.format_metrics(evaluate(opt, task, model, val_set, env, run), per_class=True))
        return

    # Optimizer, checkpoint, run directory
    assert train_set is not None
    optimizer = build_optimizer(opt, freeze(opt, model), env.device)
    state = load(opt, model, optimizer, env, log=env.print)
    loader = setup.build_train_loader(opt, train_set, env)
    check_plan(state, setup.sampling_plan(opt, len(train_set)), len(loader), task.criterion.names, log=env.print)
    check_recipe(state, opt, log=env.print)
    env.check_equal({"options": state.recipe, "training data": train_set.summary()})
    run = RunDirectory(opt, env, task.criterion.names, state) if env.is_main else None
    trainer = Trainer(opt, task, model, optimizer, env, state)
    trainer.resume()
    checkpoints = Checkpoints(model_metadata(opt, train_set.default_image_info()), trainer, env, run)
    env.print(setup.describe_run(opt, len(train_set), len(loader), env))
    if opt.resume:
        env.print(setup.describe_resume(state, opt))

    # Epochs
    shutdown, report, train_log, val_log = ShutdownHandler(), RunningReport(), None, None
    with run or contextlib.nullcontext(), shutdown.installed():
        for epoch in range(state.logged + 1, opt.num_epochs + 1):
            if setup.out_of_patience(opt, state):
                env.print(f"stopping early: {state.stale} validations without a better {metric.name}")
                break
            due = setup.validation_due(opt, epoch)
            with shutdown.deferred():
                if epoch > state.epoch:  # otherwise the run was interrupted in the validation of this epoch
                    state.end_epoch(train_one_epoch(trainer, epoch, loader, run, shutdown, checkpoints.save))
                    if due:
                        checkpoints.save()
                train_log = state.unlogged
                if not due:
                    finish_epoch(opt, state, run, checkpoints, None, log=env.print)
            if due and val_set is not None:
                with trainer.evaluation_model() as evaluated:
                    val_log = evaluate(opt, task, evaluated, val_set, env, run, epoch)
                improved = metric.improve(state.best, val_log)
                state.stale = 0 if improved else state.stale + 1
                if improved:
                    checkpoints.save_best()
                finish_epoch(opt, state, run, checkpoints, val_log, log=env.print)
                if run is not None and epoch < opt.num_epochs and not setup.out_of_patience(opt, state):
                    report.write(run.path, *(run.validated or (None, {})))

    if run is not None:
        print_summary(opt, run, trainer, train_log, val_log, time.perf_counter() - started)


def describe(split: CocoStyleDataset) -> str:
    """Return the annotation file of a split and its number of images."""
    return f"{split.annotation_file}: {len(split)} images"


def finish_epoch(
    opt: Options,
    state: TrainingState,
    run: RunDirectory | None,
    checkpoints: Checkpoints,
    val_log: dict[str, float] | None,
    log: Callable[[str], None],
) -> None:
    """Write logs and checkpoints of an epoch whose training, and validation if it is due, are complete."""
    epoch, train_log = state.epoch, state.unlogged or {}
    if run is not None:
        run.write_epoch(epoch, train_log, val_log)
    state.unlogged = None
    if epoch in opt.lr_step or (opt.save_all and val_log):
        checkpoints.save(f"model_{epoch}.pth")  # before the last one, after which this epoch is not repeated
    checkpoints.save()
    validation = f" | val {setup.format_metrics(val_log)}" if val_log else ""
    log(f"epoch {epoch}: {setup.format_metrics(train_log)}{validation}")


def print_summary(
    opt: Options,
    run: RunDirectory,
    trainer: Trainer,
    train_log: dict[str, float] | None,
    val_log: dict[str, float] | None,
    seconds: float,
) -> None:
    """Print the results of a training, and write its report."""
    if train_log:
        score = f"{opt.main_score}: {val_log[opt.main_score]:.4f}" if val_log else "score: not validated"
        print(f"images per second: {trainer.images_per_second:.1f}")
        print(f"final loss: {train_log['loss']:.4f}")
        print(f"final {score}")
    print(f"duration: {datetime.timedelta(seconds=round(seconds))}")
    print(f"weights and logs: {run.path}")
    if train_log or is_report_missing(run.path):
        finish_report(run.path, *(run.validated or ()))
