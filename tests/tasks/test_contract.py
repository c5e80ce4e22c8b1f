"""Contract of training, inference and visualization for every task, including one outside of the package."""

import numpy as np
import pytest
import torch
from tests.helpers.tasks import annotation, options, random_batch, random_outputs
from tests.tasks.discs import Discs

from centernet.tasks import TASKS, build_task
from centernet.visualization import build_visualizer

NAMES = ["ctdet", "multi_pose", "exdet", "ddd", "discs"]
# Options that change targets or losses.
VARIANTS = {
    "ctdet": [[], ["--mse_loss"], ["--dense_wh"], ["--cat_spec_wh"], ["--reg_loss", "sl1"], ["--norm_wh"]],
    "multi_pose": [[], ["--mse_loss"], ["--dense_hp"], ["--not_hm_hp"], ["--reg_loss", "sl1"]],
    "exdet": [[], ["--mse_loss"], ["--agnostic_ex"], ["--agnostic_ex", "--not_reg_offset"]],
    "ddd": [[], ["--mse_loss"], ["--not_reg_bbox"], ["--rect_mask"]],
    "discs": [[]],
}
# Options and the loss terms that they switch off.
SWITCHED_OFF = {
    "ctdet": {
        "--not_reg_offset": {"off_loss"},
        "--off_weight 0": {"off_loss"},
        "--wh_weight 0": {"wh_loss"},
        "--wh_weight 0 --off_weight 0": {"wh_loss", "off_loss"},
    },
    "multi_pose": {
        "--not_reg_offset": {"off_loss"},
        "--off_weight 0": {"off_loss", "hp_offset_loss"},
        "--wh_weight 0": {"wh_loss"},
        "--not_hm_hp": {"hm_hp_loss", "hp_offset_loss"},
        "--hm_hp_weight 0": {"hm_hp_loss"},
        "--not_reg_hp_offset": {"hp_offset_loss"},
    },
    "exdet": {"--not_reg_offset": {"off_loss"}, "--off_weight 0": {"off_loss"}},
    "ddd": {
        "--not_reg_offset": {"off_loss"},
        "--not_reg_bbox": {"wh_loss"},
        "--wh_weight 0 --off_weight 0": {"wh_loss", "off_loss"},
        "--dep_weight 0 --dim_weight 0 --rot_weight 0": {"dep_loss", "dim_loss", "rot_loss"},
    },
    "discs": {"--disc_weight 0": {"disc_loss"}},
}


@pytest.fixture(autouse=True)
def fifth_task(monkeypatch):
    monkeypatch.setitem(TASKS, "discs", Discs)


def cases(table):
    return [pytest.param(task, args, id=f"{task} {args}") for task in NAMES for args in table[task]]


def variants():
    return [pytest.param(task, args, id=" ".join([task, *args])) for task in NAMES for args in VARIANTS[task]]


def criterion_of(opt):
    return build_task(opt).criterion(opt)


def test_every_task_is_checked():
    assert sorted(TASKS) == sorted(NAMES)


# Loss


@pytest.mark.parametrize("task", NAMES)
def test_stacks_are_averaged_and_terms_weighted(task):
    weights = sorted(set(TASKS[task].criterion.weights.values()))
    args = [word for k, name in enumerate(weights) for word in (f"--{name}", str(0.3 + 0.4 * k))]
    batch, opt = random_batch(task, *args)
    outputs = random_outputs(batch, opt, stacks=2)
    criterion = criterion_of(opt)
    first, second = (criterion([output], batch)[1] for output in outputs)
    loss, terms = criterion(outputs, batch)
    assert tuple(terms) == criterion.names and terms["loss"] is loss
    assert set(criterion.weights) == set(criterion.names[1:])
    for name in criterion.names[1:]:
        torch.testing.assert_close(terms[name], (first[name] + second[name]) / 2)
    expected = sum(getattr(opt, weight) * terms[name] for name, weight in criterion.weights.items())
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("task", NAMES)
def test_the_loss_does_not_change_its_inputs(task):
    batch, opt = random_batch(task)
    outputs = random_outputs(batch, opt)
    tensors = {name: value for name, value in {**batch, **outputs[0]}.items() if torch.is_tensor(value)}
    before = {name: value.clone() for name, value in tensors.items()}
    first = criterion_of(opt)(outputs, batch)[0]
    first.backward()
    assert all(torch.equal(before[name], tensors[name]) for name in before)
    assert torch.equal(criterion_of(opt)(outputs, batch)[0], first)


@pytest.mark.parametrize(("task", "args"), variants())
def test_losses_of_parts_add_up_to_the_whole_batch(task, args):
    """With the normalizers of the whole batch, losses and gradients of its parts sum to those of the whole."""
    batch, opt = random_batch(task, *args)
    whole, split = random_outputs(batch, opt), random_outputs(batch, opt)
    criterion = criterion_of(opt)
    loss, terms = criterion(whole, batch)
    loss.backward()
    shares = [slice(0, 1), slice(1, 2), slice(2, 4)]  # the second has no object
    parts = [{name: value[share] for name, value in batch.items()} for share in shares]
    normalizers = sum(criterion.normalizers(part) for part in parts)
    sums = dict.fromkeys(terms, 0)
    for share, part in zip(shares, parts, strict=True):
        value, named = criterion([{name: maps[share] for name, maps in split[0].items()}], part, normalizers)
        value.backward()
        sums = {name: sums[name] + named[name].detach() for name in named}
    for name in terms:
        torch.testing.assert_close(sums[name], terms[name].detach())
    for head in whole[0]:
        torch.testing.assert_close(split[0][head].grad, whole[0][head].grad)


@pytest.mark.parametrize(("task", "args"), cases(SWITCHED_OFF))
def test_terms_that_are_switched_off_are_zero_tensors(task, args):
    """The reference leaves integers there, which its training cannot take the mean of."""
    batch, opt = random_batch(task, *args.split())
    outputs = random_outputs(batch, opt)
    loss, terms = criterion_of(opt)(outputs, batch)
    loss.mean().backward()
    assert all(torch.is_tensor(value) and value.shape == () for value in terms.values())
    assert {name for name, value in terms.items() if value == 0} == SWITCHED_OFF[task][args]
    assert all(maps.grad.abs().sum() > 0 for head, maps in outputs[0].items() if head in ("hm", "hm_c", "hm_t"))


@pytest.mark.parametrize(("task", "args"), variants())
def test_training_lowers_the_loss(task, args):
    batch, opt = random_batch(task, *args)
    outputs = random_outputs(batch, opt)
    criterion, values = criterion_of(opt), []
    optimizer = torch.optim.Adam(outputs[0].values(), 0.1)
    for _ in range(30):
        loss, _ = criterion(outputs, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]


# Heads, samples and detections


@pytest.mark.parametrize(("task", "args"), variants())
def test_options_follow_from_the_heads_of_a_checkpoint(task, args):
    opt = options(task, *args)
    flags = [f"--{name}" for name, value in TASKS[task].options_of_heads(opt.heads).items() if value]
    assert build_task(options(task, *flags)).heads == build_task(opt).heads == opt.heads


@pytest.mark.parametrize(("task", "args"), variants())
def test_samples_have_fixed_shapes(task, args):
    """They are stacked into batches, regardless of the number of objects, and have ``meta`` outside training only."""
    for train in (True, False):
        batch, opt = random_batch(task, *args, train=train)
        assert ("meta" in batch) == (not train) and set(build_task(opt).target_inputs) <= set(batch)
        assert batch["image"].dtype == torch.uint8 and batch["input"].shape[1] == 3
        for name, value in batch.items():
            if name.startswith("hm"):
                assert value.dtype == torch.float32 and 0 <= value.min() <= value.max() <= 1


@pytest.mark.parametrize("task", NAMES)
def test_annotations_become_arrays_of_equal_length(task):
    opt = options(task)
    built, class_of = build_task(opt), {category: cls for cls, category in enumerate(opt.category_ids)}
    rng = np.random.default_rng(0)
    for count in (0, 3):
        annotations = [annotation(rng, (128, 128), list(opt.category_ids)) for _ in range(count)]
        objects = built.read_objects(annotations, class_of)
        assert {len(values) for values in objects.values()} == {count}
        assert built.ground_truth_boxes(objects).shape == (count, 4)


@pytest.mark.parametrize("task", NAMES)
def test_detections_become_results(task):
    batch, opt = random_batch(task, train=False)
    built = build_task(opt)
    output = {head: maps.detach().half() for head, maps in random_outputs(batch, opt)[0].items()}
    dets = built.decode(output)
    assert dets.dtype == torch.float32 and dets.shape[::2] == (4, len(built.columns))
    results = built.postprocess(dets, batch["meta"])
    assert len(results) == 4
    for result in results:
        assert all(1 <= cls <= opt.num_classes for cls in result)
        for rows in result.values():
            assert rows.shape[1:] == (built.row_length,)
            assert built.detected_boxes(rows).shape == (len(rows), 5)


@pytest.mark.parametrize("task", NAMES)
def test_the_flip_test_of_equal_maps_changes_nothing(task):
    """Maps of an image and their flipped copies, as a perfectly symmetric network would give them."""
    batch, opt = random_batch(task, train=False)
    built = build_task(opt)
    output = {head: maps.detach() for head, maps in random_outputs(batch, opt)[0].items()}
    unflipped = {name: unflip(output[name]) for name, unflip in built.unflip.items() if name in output}
    both = {name: torch.cat([maps, unflipped.get(name, maps)]) for name, maps in output.items()}
    flipped, plain = built.decode(both, flipped=True), built.decode(output)
    torch.testing.assert_close(flipped[:, : plain.shape[1]], plain)


@pytest.mark.parametrize("task", NAMES)
def test_drawings_are_images_and_change_no_argument(task):
    batch, opt = random_batch(task, train=False)
    built = build_task(opt)
    visualizer = build_visualizer(built)
    output = {head: maps.detach() for head, maps in random_outputs(batch, opt)[0].items()}
    dets = built.decode(output)
    results = built.postprocess(dets, batch["meta"])[0]
    image = np.full((*batch["input"].shape[2:], 3), 90, np.uint8)
    before = image.copy()
    drawings = {
        **visualizer.training_images(batch, output),
        **visualizer.training_images(batch, None),
        **visualizer.network_images(image, output, dets),
        **visualizer.result_images(image, results, batch["meta"][0]),
    }
    assert len(drawings) >= 3
    for drawing in drawings.values():
        assert drawing.dtype == np.uint8 and drawing.ndim == 3 and drawing.shape[2] == 3
    assert np.array_equal(image, before)
