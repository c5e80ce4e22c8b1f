"""Presets: values of several options at once. An option that is given on the command line takes precedence."""

from typing import Any

from ..tasks.specs import NOT_WITH_IOU

# Learns several times faster from few images than the reference's recipe (benchmarks/time_to_ap.py).
FAST: dict[str, Any] = {
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "lr": 2e-3,
    "batch_size": 16,
    "lr_schedule": "cosine",
    "warmup_iters": 100,
    "clip_grad": 10.0,
    "ema": 0.99,
    "not_rand_crop": True,
    "shift": 0.05,
    "scale": 0.3,
}
# What only detection has.
FAST_CTDET: dict[str, Any] = {"box_loss": "giou", "box_samples": "gaussian", "augment": "light", "exact_boxes": True}
# In place of its box loss, where given options exclude that.
L1 = {"box_loss": "l1", "box_samples": "center"}


def preset_values(name: str, task: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a preset sets for a task, without those that contradict ``given`` ones."""
    if name == "reference":
        return {}
    if task != "ctdet":
        return FAST
    excluded = given.get("box_loss") == "l1" or any(given.get(other) for other in NOT_WITH_IOU)
    return {**FAST, **FAST_CTDET, **(L1 if excluded else {})}
