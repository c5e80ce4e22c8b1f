"""Presets: values of several options at once. An option that is given on the command line takes precedence."""

from typing import Any

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
# Options of detection that the loss of a box replaces.
NOT_WITH_BOX_LOSS = ("dense_wh", "norm_wh", "cat_spec_wh", "not_reg_offset")
# What only detection has.
FAST_CTDET: dict[str, Any] = {"box_loss": "giou", "box_samples": "gaussian", "augment": "light", "exact_boxes": True}


def preset_values(name: str, task: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a preset sets for a task, without those that contradict ``given`` ones."""
    if name == "reference":
        return {}
    if task != "ctdet":
        return FAST
    values = {**FAST, **FAST_CTDET}
    if given.get("box_loss") == "l1":
        del values["box_samples"]
    if any(given.get(other) for other in NOT_WITH_BOX_LOSS):
        del values["box_loss"], values["box_samples"]
    return values
