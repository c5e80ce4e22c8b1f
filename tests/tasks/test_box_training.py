"""IoU losses of ctdet, exact boxes, presets, and augmented samples: from options to batches."""

import numpy as np
import pytest
import torch

from centernet import api
from centernet.datasets import get_dataset
from centernet.datasets.loader import Samples, TrainBatches, collate, finish_batch
from centernet.engine.setup import sampling_plan
from centernet.options import recipe
from centernet.opts import opts
from centernet.tasks import build_task
from centernet.tasks.option import TRAIN
from centernet.tasks.specs import NOT_WITH_IOU
from centernet.transforms import full_view, sample_rng

IOU = ("--box_loss", "giou", "--box_samples", "gaussian")
BOXES = np.array([[4, 6, 40, 30], [50, 20, 90, 90], [60, 30, 96, 60], [0, 80, 33, 96]], np.float32)

# Of 17 joints each box has the middle, apart from the third, which has none.
JOINTS = np.zeros((4, 17, 3), np.float32)
JOINTS[:, 0, :2], JOINTS[[0, 1, 3], 0, 2] = (BOXES[:, :2] + BOXES[:, 2:]) / 2, 2


def options(*more, task="ctdet"):
    return opts().parse([task, "--dataset", "sample" if task == "ctdet" else "sample_hp", *more])


def samples_of(arguments, split="train"):
    opt = opts().parse(arguments)
    return Samples(get_dataset(opt.dataset)(build_task(opt), split), train=split == "train")


def batch_of(opt, train=False, count=2):
    task = build_task(opt)
    image = np.full((96, 96, 3), 100, np.uint8)
    objects = {"boxes": BOXES, "cls": np.array([0, 1, 2, 3])}
    if opt.task == "multi_pose":
        objects |= {"cls": np.zeros(4, np.int64), "joints": JOINTS}
    samples = []
    for k in range(count):
        rng = sample_rng(1, 1, k) if train else None
        samples.append(task.encode(image, {name: values[k:] for name, values in objects.items()}, rng, train))
    for sample in samples:
        sample.pop("meta", None)
    return task, finish_batch(collate(samples), task)


def perfect_maps(task, batch):
    """Maps that the criterion and decoding read as the ground truth, at every supervised cell."""
    size = batch["hm"].shape[2:]
    maps = {"hm": torch.logit(batch["hm"].clamp(1e-6, 1 - 1e-6)), "wh": torch.ones(len(batch["hm"]), 2, *size)}
    maps["reg"] = torch.zeros_like(maps["wh"])
    ys, xs = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    for b in range(len(batch["hm"])):
        slot = batch["box_slot"][b]
        ind = batch["ind"][b][slot]
        used = batch["box_weight"][b] > 0
        for axis, (grid, cell) in enumerate(((xs, ind % size[1]), (ys, ind // size[1]))):
            maps["wh"][b, axis][used] = batch["wh"][b, :, axis][slot][used]
            maps["reg"][b, axis][used] = (cell + batch["reg"][b, :, axis][slot] - grid)[used]
    return maps


def test_perfect_maps_have_no_box_loss_and_decode_to_the_boxes():
    opt = options(*IOU, "--exact_boxes", "--K", "20")
    task, batch = batch_of(opt)
    maps = perfect_maps(task, batch)
    _, terms = task.criterion(opt)([maps], batch)
    assert list(terms) == ["loss", "hm_loss", "box_loss"] and abs(float(terms["box_loss"])) < 1e-5
    found = task.decode(maps)[0]
    found = found[found[:, 4] > 0.99]
    assert len(found) == len(BOXES)
    order = found[:, 5].argsort()
    np.testing.assert_allclose(found[order, :4] * 4, BOXES, atol=1e-3)


def test_persons_without_joints_and_rotated_images_have_no_box_samples():
    opt = options(*IOU, task="multi_pose")
    task, batch = batch_of(opt, count=1)
    assert list(task.criterion(opt).names)[-1] == "box_loss" and "wh_loss" not in task.criterion(opt).names
    weights = batch["box_weight"][0].flatten()[batch["ind"][0][: len(BOXES)]]
    assert (weights[[0, 1, 3]] > 0).all()
    assert set(batch["box_slot"][batch["box_weight"] > 0].tolist()) == {0, 1, 3}
    maps = perfect_maps(task, batch)
    for name, channels in task.heads.items():
        maps.setdefault(name, torch.zeros(1, channels, *batch["hm"].shape[2:]))
    _, terms = task.criterion(opt)([maps], batch)
    assert abs(float(terms["box_loss"])) < 1e-5
    maps["wh"] = maps["wh"] + 1
    assert task.criterion(opt)([maps], batch)[1]["box_loss"] > 0.01

    rotated, turned = batch_of(options(*IOU, "--aug_rot", "1", "--rotate", "20", task="multi_pose"), train=True)
    assert turned["rotated"].all() and not turned["box_weight"].any()
    maps = {name: torch.zeros(2, channels, 24, 24) for name, channels in rotated.heads.items()}
    loss, terms = rotated.criterion(rotated.opt)([maps], turned)
    assert loss.isfinite() and terms["box_loss"] == 0


@pytest.mark.parametrize("task", ["ctdet", "multi_pose"])
@pytest.mark.parametrize("samples", ["center", "gaussian"])
def test_losses_of_micro_batches_add_up(samples, task):
    opt = options("--box_loss", "ciou", "--box_samples", samples, task=task)
    task, batch = batch_of(opt, train=True, count=4)
    criterion = task.criterion(opt)
    generator = torch.Generator().manual_seed(3)
    maps = {
        name: torch.randn(4, channels, 24, 24, generator=generator, dtype=torch.float64).requires_grad_()
        for name, channels in task.heads.items()
    }
    whole, terms = criterion([maps], batch)
    whole_grads = torch.autograd.grad(whole, list(maps.values()))
    total, sums = 0, 0
    for part in (slice(0, 1), slice(1, 4)):
        piece = {name: value if name == "num_target_pixels" else value[part] for name, value in batch.items()}
        loss, part_terms = criterion(
            [{name: value[part] for name, value in maps.items()}], piece, criterion.normalizers(batch)
        )
        total, sums = total + loss, sums + part_terms["box_loss"]
    torch.testing.assert_close(total, whole, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(sums, terms["box_loss"], rtol=1e-6, atol=1e-9)
    for one, other in zip(torch.autograd.grad(total, list(maps.values())), whole_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_validation_of_an_image_without_objects_is_finite():
    opt = options(*IOU)
    task, batch = batch_of(opt, count=1)
    empty = task.encode(np.zeros((96, 96, 3), np.uint8), {"boxes": BOXES[:0], "cls": np.zeros(0, int)}, None, False)
    empty.pop("meta")
    batch = finish_batch(collate([empty]), task)
    maps = {name: torch.zeros(1, channels, 24, 24) for name, channels in task.heads.items()}
    loss, terms = task.criterion(opt)([maps], batch)
    assert loss.isfinite() and terms["box_loss"] == 0


def test_exact_boxes_reach_the_edge_and_survive_a_flip():
    image_width = 96
    boxes = np.array([[0, 0, 96, 96], [80, 10, 96, 20]], np.float32)
    for exact, expected in ((True, [0, 0, 24, 24]), (False, [0, 0, 23, 23])):
        view = full_view(96, 96, options())
        view.exact = exact
        np.testing.assert_allclose(view.boxes_to_output(boxes, image_width)[0], expected)
        view.flipped = True
        flipped = view.boxes_to_output(boxes, image_width)[1]
        np.testing.assert_allclose(flipped[[0, 2]], [0, 4] if exact else [0, 3.75])


@pytest.mark.parametrize("train", [False, True])
def test_exact_boxes_is_used_by_ctdet(train):
    more = ["--not_rand_crop", "--shift", "0", "--scale", "0", "--flip", "0"]
    sides = [batch_of(options(*more, *exact), train)[1]["wh"][0, :4, 0] for exact in ([], ["--exact_boxes"])]
    assert sides[1][2] - sides[0][2] == 1  # the third box ends at x = 96
    assert torch.equal(sides[0][[0, 1]], sides[1][[0, 1]])


@pytest.mark.parametrize("option", [["--exact_boxes"], ["--augment", "light"], ["--plain_epochs", "3"]])
def test_options_of_ctdet_are_noted_elsewhere(option):
    parser = opts()
    opt = parser.parse(["multi_pose", "--dataset", "sample_hp", *option])
    assert parser.notes(opt) == [f"note: {option[0]} has no effect on task multi_pose"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--box_samples", "gaussian"], "--box_samples gaussian: needs --box_loss giou, diou or ciou"),
        (["--box_loss", "giou", "--cat_spec_wh"], "--box_loss giou and --cat_spec_wh exclude each other"),
        (["--box_loss", "ciou", "--not_reg_offset"], "--box_loss ciou and --not_reg_offset exclude each other"),
        (["multi_pose", "--box_loss", "ciou", "--not_reg_offset"], "--box_loss ciou and --not_reg_offset exclude"),
    ],
)
def test_options_that_do_not_fit(arguments, message, capsys):
    task = "multi_pose" if arguments[0] == "multi_pose" else "ctdet"
    with pytest.raises(SystemExit):
        options(*[argument for argument in arguments if argument != task], task=task)
    assert message in capsys.readouterr().err


def test_presets_set_what_was_not_given():
    opt = options("--preset", "fast", "--lr", "0.004", "--optimizer", "sgd")
    assert (opt.lr, opt.optimizer, opt.lr_schedule, opt.box_loss, opt.ema) == (0.004, "sgd", "cosine", "giou", 0.99)
    pose = opts().parse(["multi_pose", "--dataset", "sample_hp", "--preset", "fast"])
    assert pose.optimizer == "adamw" and pose.augment == "reference"
    assert recipe(options("--preset", "reference")) == recipe(options())


@pytest.mark.parametrize("given", [[], ["--box_loss", "l1"]])
@pytest.mark.parametrize("other", NOT_WITH_IOU)
def test_a_preset_gives_way_to_what_its_box_loss_excludes(other, given):
    opt = options("--preset", "fast", f"--{other}", *given)
    assert getattr(opt, other) and (opt.box_loss, opt.box_samples, opt.lr_schedule) == ("l1", "center", "cosine")


def test_a_preset_gives_way_to_l1_and_to_flags_turned_off():
    opt = options("--preset", "fast", "--box_loss", "l1")
    assert (opt.box_loss, opt.box_samples, opt.exact_boxes, opt.not_rand_crop) == ("l1", "center", True, True)
    opt = options("--preset", "fast", "--exact_boxes=false", "--not_rand_crop=False", "--trainval=true")
    assert (opt.exact_boxes, opt.not_rand_crop, opt.trainval) == (False, False, True)
    assert {"exact_boxes", "not_rand_crop", "trainval"} <= set(opt.given)


def test_false_turns_off_a_flag_of_a_preset_in_python():
    opt = api._parse(TRAIN, "ctdet", {"dataset": "sample", "preset": "fast", "exact_boxes": False, "trainval": False})
    assert (opt.exact_boxes, opt.trainval, opt.not_rand_crop) == (False, False, True)


@pytest.mark.parametrize("word", ["--exact_boxes=no", "--lr=false", "--exact_boxs=false"])
def test_only_flags_can_be_turned_off(word, capsys):
    with pytest.raises(SystemExit):
        options("--preset", "fast", word)
    assert "error: " in capsys.readouterr().err


def test_the_recipe_names_what_differs_from_the_reference():
    assert not {"box_loss", "augment", "optimizer", "exact_boxes"} & recipe(options()).keys()
    assert {"box_loss": "giou", "augment": "light", "optimizer": "adamw"}.items() <= recipe(
        options("--preset", "fast")
    ).items()


def test_augmented_samples_depend_on_their_key_alone(tiny_voc):
    arguments = ["ctdet", "--dataset", "pascal", "--data_path", str(tiny_voc), "--input_res", "64"]
    augmented = [*arguments, "--augment", "strong", "--num_epochs", "10"]
    samples = samples_of(augmented)
    first = [samples[(2, index)] for index in range(6)]
    again = [samples[(2, index)] for index in reversed(range(6))][::-1]
    plain = samples_of(arguments)
    changed = 0
    for index, (one, other) in enumerate(zip(first, again, strict=True)):
        assert all(np.array_equal(one[name], other[name]) for name in one)
        changed += not np.array_equal(one["image"], plain[(2, index)]["image"])
    assert changed >= 5
    val, val_plain = samples_of(augmented, "val"), samples_of(arguments, "val")
    assert np.array_equal(val[(1, 0)]["image"], val_plain[(1, 0)]["image"])


def test_the_last_epochs_have_no_mosaics(tiny_voc):
    arguments = ["ctdet", "--dataset", "pascal", "--data_path", str(tiny_voc), "--input_res", "64"]
    plain = samples_of(arguments)
    light = samples_of([*arguments, "--augment", "light", "--num_epochs", "10", "--plain_epochs", "3"])
    same = [
        [np.array_equal(light[(epoch, k)]["image"], plain[(epoch, k)]["image"]) for k in range(6)]
        for epoch in range(1, 11)
    ]
    assert all(all(epoch) for epoch in same[7:]) and not any(all(epoch) for epoch in same[:7])


def test_rare_classes_are_repeated():
    factors = np.array([1.0, 1.0, 2.5, 1.0, 1.5, 1.0])
    batches = TrainBatches(6, [2], 0, 3, factors=factors)
    assert len(batches) == 4  # eight images per epoch
    counts = np.zeros(6)
    for epoch in range(1, 201):
        batches.epoch = epoch
        indices = [index for batch in batches for _, index in batch]
        assert len(indices) == 8
        once = np.bincount(indices, minlength=6)
        assert ((once == np.floor(factors)) | (once == np.ceil(factors))).all()
        counts += once
    np.testing.assert_allclose(counts / 200, factors, atol=0.15)


def test_a_changed_repeat_threshold_changes_the_sampling_plan():
    plans = [sampling_plan(options("--repeat_threshold", value), 6) for value in ("0", "0.1", "0.2")]
    assert len(set(map(tuple, plans))) == 3 and plans[0] == [6, 32, 317, -1]
