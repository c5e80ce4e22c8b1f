"""Handling of non-finite losses (``--on_nan``): stop and save the batch, or skip updates and count them."""

from pathlib import Path

from ..errors import UserError
from ..models.weights import write_checkpoint
from ..options import Options
from .processes import Distributed

MAX_SKIPPED = 50  # consecutive updates that --on_nan skip leaves out before it gives up
MAX_WARNINGS = 3  # consecutive ones that are reported


class NanGuard:
    """Reports iterations whose loss is not finite, by the images of their batch, and ends the run if it must.

    Attributes:
        in_a_row: consecutive iterations without a finite loss so far.
    """

    def __init__(self, opt: Options, env: Distributed) -> None:
        self.opt, self.env, self.in_a_row = opt, env, 0

    def finite(self) -> None:
        """Note an iteration with a finite loss."""
        self.in_a_row = 0

    def not_finite(self, epoch: int, iteration: int, position: int, losses: dict[str, float], loader) -> None:
        """Report an iteration whose loss is not finite. Called on all processes.

        Args:
            epoch: its epoch, from 1.
            iteration: its number in the run, from 1.
            position: its number in the epoch, from 0.
            losses: the loss and its terms.
            loader: the loader of the batch.

        Raises:
            UserError: ``--on_nan stop``, or too many in a row. The batch has been written to the run directory.
        """
        terms = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        event = f"iteration {iteration} of epoch {epoch}: the loss is not finite ({terms})"
        keys = loader.batch_sampler.whole(position)
        images = _names(loader.dataset.dataset, [index for _, index in keys])
        self.in_a_row += 1
        if self.opt.on_nan == "skip" and self.in_a_row < MAX_SKIPPED:
            if self.in_a_row <= MAX_WARNINGS:
                self.env.print(f"warning: {event}; its update is skipped; {images}")
            return
        if self.opt.on_nan == "skip":
            event += f", as in the {MAX_SKIPPED - 1} iterations before"
        path = self._dump(iteration, keys, loader)
        self.env.barrier()  # every process has written its share
        raise UserError(f"{event}; {images}; the batch is in {path}; try a lower --lr, or --on_nan skip")

    def _dump(self, iteration: int, keys: list[tuple[int, int]], loader) -> Path:
        """Write this process's share of a batch to the run directory: ids, names, and the output of the loader."""
        samples, share = loader.dataset, keys[loader.batch_sampler.share]
        path = Path(self.opt.save_dir) / f"not_finite_{iteration}_rank{self.env.rank}.pth"
        batch = loader.collate_fn([samples[key] for key in share])
        batch.pop("meta", None)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "iteration": iteration,
            "image_ids": [samples.dataset.image_ids[index] for _, index in share],
            "file_names": [samples.dataset.file_names[index] for _, index in share],
            "batch": batch,
        }
        write_checkpoint(path, content)
        return path


def _names(dataset, indices: list[int], shown: int = 4) -> str:
    names = ", ".join(f"{dataset.image_ids[index]} ({dataset.file_names[index]})" for index in indices[:shown])
    return f"images {names}" + (f" and {len(indices) - shown} more" if len(indices) > shown else "")
