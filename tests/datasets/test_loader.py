"""Batches: distribution of images over ranks and epochs, and the data transferred from workers."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.helpers import tasks as helpers

from centernet.datasets import get_dataset
from centernet.datasets.loader import (
    EvalBatches,
    Samples,
    TrainBatches,
    apply_color,
    class_repeat_factors,
    collate,
    finish_batch,
    init_worker,
    make_loader,
)
from centernet.errors import UserError
from centernet.options import chunk_sizes
from centernet.opts import opts
from centernet.tasks import build_task
from centernet.tasks.ctdet import Ctdet

KEYS = TrainBatches._keys


def options(*args):
    return opts().parse(["ctdet", "--dataset", "pascal", "--input_res", "64", *args])


def samples_of(data_path, train, *args):
    dataset = get_dataset("pascal")
    split = "train" if train else "val"
    task = build_task(options(*args, "--data_path", str(data_path)))
    return Samples(dataset(task, split), train)


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        if name == "num_target_pixels":
            assert one[name] == other[name]
        elif name != "meta":
            assert one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]), name
    for left, right in zip(one.get("meta", []), other.get("meta", []), strict=True):
        assert all(np.array_equal(left[key], right[key]) for key in left)


# Training


def global_batches(length, shares, seed=1, epoch=1, **more):
    """Return the global batches that all processes of a run receive."""
    samplers = [TrainBatches(length, shares, rank, seed, **more) for rank in range(len(shares))]
    for sampler in samplers:
        sampler.epoch = epoch
    batches = [list(sampler) for sampler in samplers]
    assert all(len(part) == len(sampler) for part, sampler in zip(batches, samplers, strict=True))
    for rank, part in enumerate(batches):
        assert all(len(batch) == shares[rank] for batch in part)
    return [sum((part[i] for part in batches), []) for i in range(len(batches[0]))]


@pytest.mark.parametrize("shares", [[4, 4], [2, 2, 2, 2], [1, 7], [2, 3, 3], chunk_sizes(8, 5, 3)])
def test_processes_share_the_same_global_batches(shares):
    assert sum(shares) == 8
    alone = global_batches(50, [8], epoch=3)
    assert len(alone) == 6
    assert global_batches(50, shares, epoch=3) == alone


def test_an_epoch_holds_every_image_once():
    batches = global_batches(48, [3, 3])
    assert sorted(index for batch in batches for _, index in batch) == list(range(48))
    assert {epoch for batch in batches for epoch, _ in batch} == {1}


def test_incomplete_batches_are_dropped():
    indices = [index for batch in global_batches(50, [4, 4]) for _, index in batch]
    assert len(indices) == len(set(indices)) == 48
    assert global_batches(7, [4, 4]) == []


def test_epochs_and_seeds_are_shuffled_differently():
    orders = {
        tuple(index for batch in global_batches(40, [8], seed=seed, epoch=epoch) for _, index in batch)
        for seed in (1, 2)
        for epoch in (1, 2, 3)
    }
    assert len(orders) == 6 and tuple(range(40)) not in orders
    assert global_batches(40, [8], epoch=2) == global_batches(40, [8], epoch=2)
    assert {epoch for batch in global_batches(40, [8], epoch=2) for epoch, _ in batch} == {2}


def test_num_iters():
    whole = global_batches(50, [4, 4])
    assert global_batches(50, [4, 4], num_iters=2) == whole[:2]
    assert global_batches(50, [4, 4], num_iters=100) == whole
    assert global_batches(50, [4, 4], num_iters=-1) == whole
    assert global_batches(50, [4, 4], num_iters=0) == []


# Validation


@pytest.mark.parametrize(("length", "batch_size", "processes"), [(10, 4, 1), (11, 4, 2), (9, 1, 4), (3, 4, 5)])
def test_validation_covers_everything_once(length, batch_size, processes):
    seen = []
    for rank in range(processes):
        batches = EvalBatches(length, batch_size, rank, processes)
        parts = list(batches)
        assert len(batches) == len(parts) and all(0 < len(part) <= batch_size for part in parts)
        assert list(batches) == parts
        indices = [index for part in parts for epoch, index in part if epoch == 0]
        assert indices == sorted(indices)
        seen += indices
    assert sorted(seen) == list(range(length))


def test_validation_of_some():
    seen = [index for rank in range(2) for part in EvalBatches(10, 2, rank, 2, num_iters=5) for _, index in part]
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert list(EvalBatches(10, 4)) == [[(0, k) for k in range(start, min(start + 4, 10))] for start in (0, 4, 8)]


# Workers


def epochs(samples, workers, numbers):
    """All batches of some epochs from one loader, as a training takes them."""
    sampler = TrainBatches(len(samples.dataset), [2], 0, seed=5)
    loader = make_loader(samples, sampler, workers, pin_memory=False)
    result = []
    for epoch in numbers:
        sampler.epoch = epoch
        result.append(list(loader))
    return result


def test_batches_do_not_depend_on_workers(tiny_voc):
    """Three epochs from workers that live on, against the main process alone, and a later start."""
    samples = samples_of(tiny_voc, True)
    alone, with_workers = epochs(samples, 0, (1, 2, 3)), epochs(samples, 2, (1, 2, 3))
    assert [len(batches) for batches in with_workers] == [3, 3, 3]
    for one, other in zip(alone, with_workers, strict=True):
        for left, right in zip(one, other, strict=True):
            same(left, right)
    for left, right in zip(epochs(samples, 0, (3,))[0], with_workers[2], strict=True):
        same(left, right)


def test_workers_read_on_over_the_end_of_an_epoch(tiny_voc, monkeypatch):
    """While the next epoch is not begun yet its first batches are being made; nothing is made after the last one."""
    asked = []
    monkeypatch.setattr(
        TrainBatches, "_keys", lambda self, order, i: asked.append((self.epoch, i)) or KEYS(self, order, i)
    )
    samples = samples_of(tiny_voc, True, "--num_epochs", "2")
    sampler = TrainBatches(len(samples.dataset), [2], 0, seed=5)
    loader = make_loader(samples, sampler, 1, pin_memory=False)
    assert len(list(loader)) == 3 and asked[3:] == [(2, 0), (2, 1)]
    sampler.epoch = 2
    assert len(list(loader)) == 3 and asked[5:] == [(2, 2)]


def test_a_start_within_an_epoch_and_one_that_was_left(tiny_voc):
    samples = samples_of(tiny_voc, True)
    whole = epochs(samples, 0, (1, 2))
    sampler = TrainBatches(len(samples.dataset), [2], 0, seed=5)
    loader = make_loader(samples, sampler, 1, pin_memory=False)
    sampler.start = 2
    (last,) = loader
    same(last, whole[0][2])
    sampler.epoch, sampler.start = 2, 0
    same(next(iter(loader)), whole[1][0])  # and no further
    for one, other in zip(loader, whole[1], strict=True):
        same(one, other)


def test_epochs_are_augmented_differently(tiny_voc):
    samples = samples_of(tiny_voc, True)
    first, again, second = samples[1, 0], samples[1, 0], samples[2, 0]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["color"], second["color"])
    assert not np.array_equal(first["image"], second["image"])
    other_seed = samples_of(tiny_voc, True, "--seed", "1")[1, 0]
    assert not np.array_equal(first["color"], other_seed["color"])


def test_validation_is_not_augmented(tiny_voc):
    samples = samples_of(tiny_voc, False)
    one, two = samples[0, 1], samples[5, 1]
    assert np.array_equal(one["image"], two["image"]) and np.array_equal(one["color"], two["color"])
    assert one["meta"]["img_id"] == 8
    assert one["meta"]["gt_det"].shape == (2, 6)
    np.testing.assert_allclose(one["color"][:, :3], np.diag(1 / 255 / np.array([0.229, 0.224, 0.225])), rtol=1e-6)


def test_validation_batches(tiny_voc):
    samples = samples_of(tiny_voc, False)
    alone, with_workers = (
        list(make_loader(samples, EvalBatches(4, 3), workers, pin_memory=False)) for workers in (0, 2)
    )
    assert [len(batch["image"]) for batch in with_workers] == [3, 1]
    assert [meta["img_id"] for batch in with_workers for meta in batch["meta"]] == [7, 8, 9, 10]
    for left, right in zip(alone, with_workers, strict=True):
        same(left, right)


# What travels


@pytest.mark.parametrize("args", [[], ["--cat_spec_wh"], ["--mse_loss"], ["--not_rand_crop"]])
def test_workers_send_no_float_images(tiny_voc, args):
    """A uint8 image and some numbers of the objects: no float image and no heatmap."""
    sample = samples_of(tiny_voc, True, *args)[1, 0]
    image = sample.pop("image")
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert "input" not in sample and "hm" not in sample
    for name, value in sample.items():
        assert value.ndim < 3, name
    assert sample["color"].shape == (3, 4) and sample["color"].dtype == np.float32
    objects = sum(value.nbytes for value in sample.values())
    assert objects < (20_000 if "--cat_spec_wh" in args else 2_500)


def test_finished_batches(tiny_voc):
    samples = samples_of(tiny_voc, True)
    batch = collate([samples[1, k] for k in range(3)])
    finished = finish_batch(batch, Ctdet(samples.opt))
    assert finished["input"].shape == (3, 3, 64, 64) and finished["input"].dtype == torch.float32
    assert finished["hm"].shape == (3, 20, 16, 16) and finished["hm"].dtype == torch.float32
    cells = {(b, int(batch["cls"][b, k]), int(batch["ind"][b, k])) for b, k in batch["reg_mask"].nonzero().tolist()}
    peaks = {(b, c, y * 16 + x) for b, c, y, x in finished["hm"].eq(1).nonzero().tolist()}
    assert cells == peaks and peaks
    assert "input" not in batch and "hm" not in batch


def test_apply_color():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (2, 5, 7, 3), dtype=torch.uint8, generator=generator)
    color = torch.randn(2, 3, 4, generator=generator)
    result = apply_color(image, color)
    assert result.shape == (2, 3, 5, 7)
    expected = torch.einsum("bij,bhwj->bihw", color[:, :, :3], image.float()) + color[:, :, 3, None, None]
    torch.testing.assert_close(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_a_loader_process_is_silent_if_its_reader_was_killed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    init_worker(0)
    sys.excepthook(ConnectionResetError, ConnectionResetError("reset"), None)
    assert capsys.readouterr().err == ""
    sys.excepthook(ValueError, ValueError("a defect"), None)
    assert "a defect" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["ctdet", "multi_pose", "exdet", "ddd"])
def test_rare_classes_are_repeated_in_every_task(task):
    """An image with a class that occurs in one of 16 images is repeated; regions that are ignored do not count."""
    opt, rng = helpers.options(task), np.random.default_rng(0)
    built, ids = build_task(opt), list(opt.category_ids)
    of_images = [[ids[-1], ids[0]], *[[ids[0]]] * 14, []]
    if task == "ddd":
        of_images[3] = [ids[0], 9]
    annotations = [helpers.annotation(rng, (128, 128), [category]) for image in of_images for category in image]
    objects = built.read_objects(annotations, {category: cls for cls, category in enumerate(ids)})
    start = np.cumsum([0, *map(len, of_images)])
    factors = class_repeat_factors(SimpleNamespace(opt=opt, objects=objects, start=start), 0.25)
    assert factors.tolist() == [1 if task == "multi_pose" else 2, *[1] * 15]


def test_objects_without_classes_are_not_repeated():
    with pytest.raises(UserError, match="--repeat_threshold: the objects of task ctdet have no classes"):
        class_repeat_factors(SimpleNamespace(opt=options(), objects={}, start=[0]), 0.5)
