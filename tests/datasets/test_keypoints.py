"""Keypoints of any object: schemas, both layouts, targets, flips, scores, and errors."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tests.helpers.keypoints import FISH, KITE, Kind, scenes, write_coco, write_yolo

from centernet.conversion.keypoints import flips_by_name, read_flips
from centernet.datasets.check import check_split
from centernet.datasets.coco_hp import COCOHP
from centernet.datasets.custom import Custom
from centernet.datasets.loader import collate, finish_batch
from centernet.errors import UserError
from centernet.export import metadata
from centernet.ops.keypoints import COCO_PERSON, DEFAULT_SIGMA, FLIP_INDEX, JOINT_NAMES, KeypointSchema
from centernet.options import apply_model_metadata, model_metadata
from centernet.opts import opts
from centernet.tasks import build_task
from centernet.transforms import AugmentationRng

COUNTS = {"train": 4, "val": 3}
BALL = {"id": 9, "name": "ball"}
UNION = ("head", "left_tip", "right_tip", "middle", "tail", "left_fin", "right_fin", "end")


def parse(root, *arguments, task="multi_pose"):
    return opts().parse([task, "--dataset", "custom", "--data_path", str(root), "--arch", "res_18", *arguments])


def open_split(root, split="train", *arguments):
    return Custom(build_task(parse(root, *arguments)), split)


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def without_keypoints(content):
    content["categories"] = [{"id": one["id"], "name": one["name"]} for one in content["categories"]]
    content["annotations"] = [{**one, "keypoints": []} for one in content["annotations"]]


def perfect(dataset, shift=0.0):
    """Return all objects with their joints moved by ``shift`` pixels; joints of other classes are far away."""
    results = {}
    for index, image_id in enumerate(dataset.image_ids):
        objects = dataset.read_objects(index)
        joints, cls = objects["joints"], objects["cls"]
        points = np.where(joints[:, :, 2:] > 0, joints[:, :, :2] + shift, 1e4).reshape(len(cls), -1)
        rows = np.hstack([objects["boxes"], np.full((len(cls), 1), 0.9), points]).astype(np.float32)
        results[image_id] = {k + 1: rows[cls == k] for k in range(len(dataset.class_names))}
    return results


# Schemas


def test_the_joints_of_two_classes(tmp_path):
    """Joints of the same name are one joint; every class has its own."""
    opt = parse(write_coco(tmp_path, COUNTS))
    schema = opt.keypoints
    assert schema.names == UNION and opt.class_names == ["kite", "fish"]
    assert schema.joints_of(0) == (0, 1, 2, 3, 4) and schema.joints_of(1) == (0, 5, 6, 7)
    assert schema.flip_pairs == ((1, 2), (5, 6)) and schema.skeleton == ((0, 3), (1, 3), (2, 3), (3, 4))
    assert schema.sigmas == (DEFAULT_SIGMA,) * 8 and schema.flips_known
    assert opt.heads == {"hm": 2, "wh": 2, "hps": 16, "reg": 2, "hm_hp": 8, "hp_offset": 2}
    assert KeypointSchema.from_dict(json.loads(json.dumps(schema.as_dict()))) == schema


def test_skeletons_of_classes_with_the_same_joints(tmp_path):
    """They are kept apart where they differ, also in checkpoints."""
    plain, crossed = (Kind(name, KITE.joints, KITE.places, (9, 9, 9)) for name in ("plain", "crossed"))
    crossed = dataclasses.replace(crossed, joints=crossed.joints[::-1], skeleton=((0, 4),))
    schema = parse(write_coco(tmp_path / "a", COUNTS, (KITE, plain, crossed))).keypoints
    assert schema.skeleton == (*KITE.skeleton, (4, 0))
    assert [schema.bones_of(cls) for cls in range(3)] == [KITE.skeleton, (), ((4, 0),)]
    assert KeypointSchema.from_dict(json.loads(json.dumps(schema.as_dict()))) == schema
    with pytest.raises(ValueError, match="not a keypoint schema"):
        KeypointSchema.from_dict({**schema.as_dict(), "skeleton_of_class": [[[0, 5]], [], []]})
    for kinds in ((KITE, FISH), (KITE, dataclasses.replace(plain, skeleton=KITE.skeleton[::-1]))):
        schema = parse(write_coco(tmp_path / kinds[1].name, COUNTS, kinds)).keypoints
        assert schema.skeleton_of_class == () and schema.bones_of(0) == KITE.skeleton
    earlier = {name: value for name, value in schema.as_dict().items() if name != "skeleton_of_class"}
    assert KeypointSchema.from_dict(earlier) == schema


def test_one_class_has_the_joints_in_its_own_order(tmp_path):
    schema = parse(write_coco(tmp_path, COUNTS, (KITE,))).keypoints
    assert schema.names == KITE.joints and schema.of_class == () and list(schema.flip_index) == KITE.flip_index


def test_persons_of_coco_stay_what_they_are(tmp_path):
    """The 17 joints by name, or without names and with their flips, have COCO's sigmas and skeleton."""
    write_coco(tmp_path, COUNTS, (KITE,))
    for names, more in ((list(JOINT_NAMES), {}), ([], {"flip_idx": list(FLIP_INDEX)})):

        def edit(content, names=names, more=more):
            content["categories"][0] = {"id": 3, "name": "person", "keypoints": names, **more}
            for annotation in content["annotations"]:
                annotation["keypoints"] = [5, 6, 2] * 17

        for split in COUNTS:
            change(tmp_path / f"{split}.json", edit)
        assert parse(tmp_path).keypoints == COCO_PERSON
    opt = opts().parse(["multi_pose", "--dataset", "coco_hp"])
    assert opt.keypoints is COCO_PERSON and build_task(opt).keypoints is COCO_PERSON


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (JOINT_NAMES, FLIP_INDEX),
        (("nose", "l_eye", "r_eye"), (0, 2, 1)),
        (("EyeLeft", "EyeRight", "Tail"), (1, 0, 2)),
        (("LEye", "REye", "lEar", "rEar"), (1, 0, 3, 2)),
        (("paw-L", "paw-R", "L_F_Paw", "R_F_Paw"), (1, 0, 3, 2)),
        (("top left", "top right", "bottom left", "bottom right"), (1, 0, 3, 2)),
        (("left_eye", "bright", "collar", "LEFT EAR", "RIGHT EAR"), (0, 1, 2, 4, 3)),
    ],
)
def test_flips_by_name(names, expected):
    assert flips_by_name(names) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0, 2, 1, 3], (0, 2, 1, 3)),
        (["0", "2", "1", "3"], (0, 2, 1, 3)),
        ([[1, 2]], (0, 2, 1, 3)),
        ([["b", "c"], ["a", "d"]], (3, 2, 1, 0)),
        ([1, 2, 0, 3], "not symmetric: joint 0 becomes 1, but joint 1 becomes 2"),
        ([0, 1, 2], "has 3 entries, there are 4 joints"),
        ([0, 1, 2, 4], "have 4, which is not a joint from 0 to 3"),
        ([0, 1, 2, 1.5], "have 1.5, which is not a joint"),
        ([[1, 2], [2, 3]], "have c or d in two pairs"),
        ([[1, 2, 3]], "not a pair of joints"),
    ],
)
def test_flips_that_are_stated(value, expected):
    if isinstance(expected, tuple):
        assert read_flips(value, "abcd") == expected
    else:
        with pytest.raises(ValueError, match=expected):
            read_flips(value, "abcd")


# Layouts


@pytest.mark.parametrize("dimensions", [2, 3])
def test_yolo_is_read_as_coco(tmp_path, dimensions):
    pytest.importorskip("yaml")
    by_coco = open_split(write_coco(tmp_path / "coco", COUNTS, (KITE,)))
    names = f"kpt_names: {{0: [{', '.join(KITE.joints)}]}}\nskeleton: [[0, 3], [1, 3], [2, 3], [3, 4]]\n"
    root = write_yolo(tmp_path / "yolo", COUNTS, dimensions=dimensions, more=f"flip_idx: {KITE.flip_index}\n{names}")
    by_yolo = open_split(root)
    assert by_yolo.opt.keypoints == by_coco.opt.keypoints and len(by_yolo) == len(by_coco)
    for name, values in by_coco.objects.items():
        np.testing.assert_allclose(by_yolo.objects[name], values, atol=1e-4, err_msg=name)
    scores = open_split(root, "val").evaluate(perfect(open_split(root, "val")))
    assert scores["AP"] == pytest.approx(1) and scores["box_AP"] == pytest.approx(1)


def test_joints_of_yolo_that_are_not_labeled(tmp_path):
    pytest.importorskip("yaml")
    write_yolo(tmp_path, COUNTS, dimensions=2)
    (tmp_path / "labels/train/1.txt").write_text("0 0.5 0.5 0.4 0.4 0.5 0.3 0 0 -1 -1 0.5 0.5 0.5 0.7\n")
    joints = open_split(tmp_path).read_objects(0)["joints"]
    assert joints.shape == (1, 5, 3) and joints[0, :, 2].tolist() == [2, 0, 0, 2, 2]
    assert joints[0, 0, :2] == pytest.approx([48, 28.8])


def test_files_of_keypoints_next_to_others(tmp_path):
    """As in COCO itself: poses are read from ``person_keypoints_*``, boxes from ``instances_*``."""
    write_coco(tmp_path, COUNTS)
    (tmp_path / "annotations").mkdir()
    for split in COUNTS:
        for name in ("person_keypoints", "instances"):
            (tmp_path / f"annotations/{name}_{split}2017.json").write_bytes((tmp_path / f"{split}.json").read_bytes())
        (tmp_path / f"{split}.json").unlink()
        change(tmp_path / f"annotations/instances_{split}2017.json", without_keypoints)
    for split, count in COUNTS.items():
        dataset = open_split(tmp_path, split)
        assert dataset.annotation_file.name == f"person_keypoints_{split}2017.json" and len(dataset) == count
    boxes = Custom(build_task(parse(tmp_path, task="ctdet")), "train")
    assert boxes.annotation_file.name == "instances_train2017.json"


def test_keypoints_of_cvat(tmp_path):
    """Its export is not divided; all of it is for training."""
    write_coco(tmp_path, {"train": 4})
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train.json").rename(tmp_path / "annotations/person_keypoints_default.json")
    (tmp_path / "train").rename(tmp_path / "images")
    dataset = open_split(tmp_path)
    assert len(dataset) == 4 and any("nothing divides these images" in note for note in dataset.notes)


def test_joints_of_the_validation_may_be_in_another_order(tmp_path):
    """They are matched by name; results are written in the order of their file."""
    write_coco(tmp_path, COUNTS, (KITE,))
    before = open_split(tmp_path, "val")

    def edit(content):
        content["categories"][0]["keypoints"].reverse()
        content["categories"][0]["skeleton"] = []
        for annotation in content["annotations"]:
            annotation["keypoints"] = np.reshape(annotation["keypoints"], (-1, 3))[::-1].reshape(-1).tolist()

    change(tmp_path / "val.json", edit)
    after = open_split(tmp_path, "val")
    np.testing.assert_array_equal(after.objects["joints"], before.objects["joints"])
    results = perfect(after)
    path = after.save_results(results, tmp_path / "results.json")
    true = after.filtered_annotations()["annotations"][0]
    assert json.loads(path.read_text())[0]["keypoints"][::3] == pytest.approx(true["keypoints"][::3], abs=1e-4)
    assert after.evaluate(results)["AP"] == pytest.approx(1)


def test_joints_without_names_are_matched_by_position(tmp_path):
    """A validation in YOLO's layout whose data.yaml names no joints."""
    pytest.importorskip("yaml")
    write_coco(tmp_path / "coco", COUNTS, (KITE,))
    yaml = write_yolo(tmp_path / "yolo", COUNTS) / "data.yaml"
    named = open_split(tmp_path / "coco", "val")
    val = open_split(tmp_path / "coco", "val", "--val_annotations", str(yaml))
    np.testing.assert_allclose(val.objects["joints"], named.objects["joints"], atol=1e-4)
    assert val.opt.keypoints.names == KITE.joints and val.evaluate(perfect(val))["AP"] == pytest.approx(1)


def test_objects_without_keypoints(tmp_path):
    """They are found as objects, and a note counts them; a class without any joints learns its boxes."""
    write_coco(tmp_path, COUNTS)

    def edit(content):
        content["annotations"][0].pop("keypoints")
        content["categories"].append(BALL)
        image = content["annotations"][0]["image_id"]
        content["annotations"].append({"id": 99, "image_id": image, "category_id": 9, "bbox": [2, 2, 30, 30]})

    change(tmp_path / "train.json", edit)
    dataset = open_split(tmp_path)
    assert any("objects without keypoints: 1" in note for note in dataset.notes)
    assert dataset.opt.keypoints.joints_of(2) == () and dataset.class_names == ["kite", "fish", "ball"]
    objects = dataset.read_objects(0)
    sample = dataset.task.encode(dataset.read_image(0), objects, None, False)
    learned = [
        bool(cls == 2 or seen) for cls, seen in zip(objects["cls"], objects["joints"][:, :, 2].any(1), strict=True)
    ]
    assert sample["reg_mask"][: len(learned)].tolist() == learned and learned.count(False) == 1
    val = open_split(tmp_path, "val")
    scores = val.evaluate(perfect(val))
    assert scores["AP"] == pytest.approx(1) and "AP/ball" not in scores


def test_the_notes_name_the_joints(tmp_path):
    write_coco(tmp_path, COUNTS)
    (note,) = [note for note in open_split(tmp_path).notes if "joints" in note]
    assert "8 joints (head, left_tip," in note and "left_tip and right_tip, left_fin and right_fin" in note
    task = build_task(parse(tmp_path))
    text = "\n".join(check_split(task, "train").lines())
    assert "objects in which each keypoint is labeled:" in text and "left_fin" in text and "PROBLEM" not in text


def test_joints_whose_flips_are_not_known(tmp_path):
    """Without names and flip_idx nothing is flipped unless it is asked for."""
    pytest.importorskip("yaml")
    write_yolo(tmp_path / "unknown", COUNTS)
    opt = parse(tmp_path / "unknown")
    assert opt.keypoints.names[0] == "keypoint_1" and not opt.keypoints.flips_known and opt.flip == 0
    text = "the data do not state which of them a flip exchanges (flip_idx), so images are not flipped"
    assert any(note.endswith(text) for note in open_split(tmp_path / "unknown").notes)
    assert parse(tmp_path / "unknown", "--flip", "0.5").flip == 0.5
    with pytest.raises(UserError, match="--flip_test: the data do not state which joints a flip exchanges"):
        build_task(parse(tmp_path / "unknown", "--flip_test"))
    write_yolo(tmp_path / "known", COUNTS, more=f"flip_idx: {KITE.flip_index}\n")
    assert parse(tmp_path / "known").flip == 0.5


@pytest.mark.parametrize("name", ["{}", "kp_{}", "new point-{}"])
def test_numbers_are_no_names_of_joints(tmp_path, name):
    """CVAT numbers joints that have no names, which says nothing about flips."""
    write_coco(tmp_path, COUNTS, (KITE,))

    def number(content, **more):
        joints = [name.format(k) for k in range(len(KITE.joints))]
        content["categories"][0].update(keypoints=joints, **more)

    for split in COUNTS:
        change(tmp_path / f"{split}.json", number)
    opt = parse(tmp_path)
    assert opt.keypoints.names[1] == name.format(1) and not opt.keypoints.flips_known and opt.flip == 0
    for split in COUNTS:
        change(tmp_path / f"{split}.json", lambda content: number(content, flip_idx=flips_by_name(KITE.joints)))
    assert parse(tmp_path).keypoints.flip_index == flips_by_name(KITE.joints) and parse(tmp_path).flip == 0.5


def test_one_joint_can_be_flipped(tmp_path):
    write_coco(tmp_path, COUNTS, (KITE,))

    def keep_one(content):
        content["categories"][0] = {"id": content["categories"][0]["id"], "name": "kite", "keypoints": ["1"]}
        content["annotations"] = [{**one, "keypoints": one["keypoints"][:3]} for one in content["annotations"]]

    for split in COUNTS:
        change(tmp_path / f"{split}.json", keep_one)
    assert parse(tmp_path).keypoints.flips_known and parse(tmp_path).flip == 0.5


@pytest.mark.parametrize("names", [{}, {"keypoints": []}])
def test_a_class_without_joints_has_no_unknown_flips(tmp_path, names):
    write_coco(tmp_path, COUNTS)
    for split in COUNTS:
        change(tmp_path / f"{split}.json", lambda content: content["categories"].insert(0, {**BALL, **names}))
    opt = parse(tmp_path)
    assert opt.class_names == ["ball", "kite", "fish"] and opt.keypoints.joints_of(0) == ()
    assert opt.keypoints.flips_known and opt.flip == 0.5
    assert not any("images are not flipped" in note for note in open_split(tmp_path).notes)
    build_task(parse(tmp_path, "--flip_test"))


# Targets and decoding


def batch_of(dataset, flipped=False, images=4):
    """Return finished targets of the whole images, flipped or not."""
    samples = []
    for index in range(images):
        draws = [*[["randn", 0.0]] * 3, ["random", 0.9], ["random", 0.0 if flipped else 0.9]]
        rng = AugmentationRng(record={"draws": draws, "color": None})
        samples.append(dataset.task.encode(dataset.read_image(index), dataset.read_objects(index), rng, True))
    return finish_batch(collate(samples), dataset.task)


def raw_outputs(batch, opt):
    """Return raw maps from which decoding gives the objects of the targets back."""
    logit = lambda maps: torch.logit(maps.clamp(1e-4, 1 - 1e-4))  # noqa: E731
    size = batch["hm"].shape[2:]
    output = {"hm": logit(batch["hm"]), "hm_hp": logit(batch["hm_hp"])}
    for head, ind, values in (("wh", "ind", "wh"), ("reg", "ind", "reg"), ("hps", "ind", "hps")):
        maps = torch.zeros(len(batch["hm"]), opt.heads[head], size[0] * size[1])
        for b in range(len(maps)):
            used = batch["reg_mask"][b] > 0
            maps[b, :, batch[ind][b][used]] = batch[values][b][used].T
        output[head] = maps.view(len(maps), -1, *size)
    maps = torch.zeros(len(batch["hm"]), 2, size[0] * size[1])
    for b in range(len(maps)):
        used = batch["hp_mask"][b] > 0
        maps[b, :, batch["hp_ind"][b][used]] = batch["hp_offset"][b][used].T
    return {**output, "hp_offset": maps.view(len(maps), -1, *size)}


PLAIN = ("--not_rand_crop", "--scale", "0", "--shift", "0", "--no_color_aug")


ONE_JOINT = Kind("point", ("tip",), ((0.0, -0.5),), (90, 90, 90))


@pytest.mark.parametrize(("kinds", "count"), [((KITE, FISH), 8), ((KITE,), 5), ((FISH, ONE_JOINT), 5)])
def test_targets_come_back_from_decoding(tmp_path, kinds, count):
    """Boxes and joints of all classes, to a tenth of a pixel: the maps of a shared joint serve both."""
    dataset = open_split(write_coco(tmp_path, COUNTS, kinds), "train", *PLAIN)
    opt, task = dataset.opt, dataset.task
    batch = batch_of(dataset)
    assert batch["hm"].shape[1] == len(kinds) and batch["hm_hp"].shape[1] == count
    dets = task.decode(raw_outputs(batch, opt))
    view = {"c": np.array([48.0, 48.0]), "s": 96.0, "output_size": (opt.output_w, opt.output_h)}
    found = task.postprocess(dets, [view] * 4)
    for index, of_image in enumerate(found):
        assert set(of_image) == set(range(1, len(kinds) + 1)) and of_image[1].shape[1] == 5 + 2 * count
        objects = dataset.read_objects(index)
        for box, joints, cls in zip(objects["boxes"], objects["joints"], objects["cls"], strict=True):
            rows = of_image[cls + 1][of_image[cls + 1][:, 4] > 0.9]
            row = rows[np.abs(rows[:, :4] - box).sum(1).argmin()]
            np.testing.assert_allclose(row[:4], box, atol=0.1)
            own = list(opt.keypoints.joints_of(cls))
            np.testing.assert_allclose(row[5:].reshape(-1, 2)[own], joints[own, :2], atol=0.1)


def test_a_flip_exchanges_the_joints(tmp_path):
    """Targets of a flipped image are the flipped targets, with left and right exchanged in all maps."""
    dataset = open_split(write_coco(tmp_path, COUNTS), "train", *PLAIN, "--flip", "0.5")
    plain, flipped = batch_of(dataset), batch_of(dataset, flipped=True)
    index = list(dataset.opt.keypoints.flip_index)
    assert index == [0, 2, 1, 3, 4, 6, 5, 7]
    peaks = [torch.nonzero(batch["hm_hp"] == 1).tolist() for batch in (plain, flipped)]
    width, count = plain["hm"].shape[3], len(peaks[0])
    unflipped = [[b, index[j], y, width - 1 - x] for b, j, y, x in peaks[0]]
    assert count > 16 and len(peaks[1]) == count
    near = [min(abs(x - v) + abs(y - u) for c, i, u, v in peaks[1] if (c, i) == (b, j)) for b, j, y, x in unflipped]
    assert max(near) <= 1  # a cell: coordinates are flipped at the pixels' centers


def test_the_flip_test_is_symmetric(tmp_path):
    """Averaging the maps of an image and of its flipped copy gives those maps back where the two agree."""
    task = build_task(parse(write_coco(tmp_path, COUNTS), "--flip_test"))
    generator = torch.Generator().manual_seed(1)
    maps = {head: torch.randn(2, channels, 6, 8, generator=generator) for head, channels in task.heads.items()}
    index = list(task.keypoints.flip_index)
    sign = torch.tensor([-1.0, 1.0])[:, None, None]
    flipped = {name: values.flip(3) for name, values in maps.items()}
    flipped["hm_hp"] = flipped["hm_hp"][:, index]
    flipped["hps"] = (flipped["hps"].unflatten(1, (-1, 2))[:, index] * sign).flatten(1, 2)
    averaged = task.average_flipped({name: torch.cat([maps[name], flipped[name]]) for name in maps})
    for name, values in maps.items():
        torch.testing.assert_close(averaged[name], values)


# Scores


def test_scores_are_those_of_pycocotools(tmp_path):
    """Each class with its own sigmas, against pycocotools on the annotations of this class alone."""
    write_coco(tmp_path, {"train": 4, "val": 12})
    sigmas = {"kite": [0.03, 0.1, 0.1, 0.05, 0.2], "fish": [0.03, 0.08, 0.08, 0.3]}
    for split in ("train", "val"):
        change(
            tmp_path / f"{split}.json",
            lambda content: [one.update(sigmas=sigmas[one["name"]]) for one in content["categories"]],
        )
    val = open_split(tmp_path, "val")
    rng = np.random.default_rng(3)
    results = perfect(val)
    for of_image in results.values():
        for rows in of_image.values():
            rows[:, 4] = rng.uniform(0.2, 1, len(rows))
            rows[:, 5:] += rng.normal(0, 3, rows[:, 5:].shape)
    scores = val.evaluate(results)
    entries = json.loads(val.save_results(results, tmp_path / "results.json").read_text())
    content, expected = val.filtered_annotations(), {}
    for category in content["categories"]:
        truth = COCO()
        own = [one for one in content["annotations"] if one["category_id"] == category["id"]]
        truth.dataset = {**content, "categories": [category], "annotations": own}
        truth.createIndex()
        found = truth.loadRes([one for one in entries if one["category_id"] == category["id"]])
        evaluation = COCOeval(truth, found, "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(sigmas[category["name"]])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        expected[category["name"]] = evaluation.stats
    for name, stats in expected.items():
        assert 0.1 < stats[0] < 0.99 and scores[f"AP/{name}"] == pytest.approx(stats[0], abs=1e-12)
    for name, position in (("AP", 0), ("AP50", 1), ("AP75", 2), ("AR", 5)):
        assert scores[name] == pytest.approx(np.mean([stats[position] for stats in expected.values()]), abs=1e-12)
    assert tuple(scores)[: len(COCOHP.score_names)] == COCOHP.score_names == val.score_names
    assert val.evaluate({image_id: {} for image_id in val.image_ids})["AP"] == 0


# Checkpoints


def test_the_metadata_hold_the_joints(tmp_path):
    opt = parse(write_coco(tmp_path, COUNTS))
    metadata = json.loads(json.dumps(model_metadata(opt)))
    assert metadata["keypoints"]["names"] == list(UNION)
    bare = opts().parse(["multi_pose", "--load_model", "model.pth"])
    loaded = apply_model_metadata(bare, metadata)
    assert loaded.keypoints == opt.keypoints and loaded.heads == opt.heads
    assert "keypoints" not in model_metadata(parse(tmp_path, task="ctdet"))
    # Checkpoints of earlier versions are of persons.
    persons = model_metadata(bare)
    assert persons.pop("keypoints")["names"] == list(JOINT_NAMES)
    assert apply_model_metadata(bare, persons).keypoints == COCO_PERSON
    for wrong in ({"names": []}, 5, {**metadata["keypoints"], "flip_index": [1, 2, 0, 3, 4, 5, 6, 7]},
                  {**metadata["keypoints"], "skeleton_of_class": [[]]}):  # fmt: skip
        with pytest.raises(UserError, match="model.pth: its model metadata has an invalid keypoints"):
            apply_model_metadata(bare, {**metadata, "keypoints": wrong})


def test_a_checkpoint_is_tested_on_data_of_some_of_its_classes(tmp_path):
    """Joints keep the places that they have in the network; other joints are refused."""
    metadata = model_metadata(parse(write_coco(tmp_path / "both", COUNTS)))
    opt = apply_model_metadata(parse(write_coco(tmp_path / "fish", COUNTS, (FISH,))), metadata)
    assert opt.keypoints.names == UNION and opt.class_names == ["kite", "fish"]
    val = Custom(build_task(opt), "val")
    assert val.objects["joints"].shape[1] == 8 and set(val.objects["cls"]) == {1}
    assert (val.objects["joints"][:, :, 2] > 0).all(0).tolist() == [name in FISH.joints for name in UNION]
    scores = val.evaluate(perfect(val))
    assert scores["AP"] == scores["AP/fish"] == pytest.approx(1) and "AP/kite" not in scores
    change(tmp_path / "fish/val.json", lambda content: content["categories"][0]["keypoints"].__setitem__(3, "gill"))
    with pytest.raises(UserError, match="the category fish has the joint gill"):
        Custom(build_task(opt), "val")


# Errors


def with_category(**fields):
    return lambda content: content["categories"][0].update(fields)


def with_annotation(**fields):
    return lambda content: content["annotations"][0].update(fields)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (with_category(flip_idx=[1, 2, 0, 3, 4]), "flip_idx of the category kite is not symmetric: joint 0 becomes 1"),
        (with_category(flip_idx=[0, 1]), "flip_idx of the category kite has 2 entries, there are 5 joints"),
        (with_category(flip_pairs=[["left_tip", "x"]]), "flip_pairs of the category kite have 'x'"),
        (with_category(skeleton=[[0, 1]]), r"skeleton of the category kite has \[0, 1\], .* from 1 to 5"),
        (with_category(skeleton=[[1, 6]]), r"skeleton of the category kite has \[1, 6\], .* from 1 to 5"),
        (with_category(sigmas=[0.1]), "sigmas of the category kite are not 5 numbers above 0"),
        (with_category(sigmas=[0.1, 0.1, 0, 0.1, 0.1]), "sigmas of the category kite are not 5 numbers above 0"),
        (with_category(kpt_shape=5, skeleton=[[0, 1]]), r"skeleton of the category kite has \[0, 1\], .* from 1 to 5"),
        (with_category(keypoints=[f"joint {k}" for k in range(2000)]), "more than the 1000 that a network can have"),
        (with_category(keypoints="head"), "keypoints of the category kite are not a list of names"),
        (with_category(keypoints=["a", "b", "a", "c", "d"]), "keypoints of the category kite list a more than once"),
        (lambda content: [one.update(sigmas=[1 / one["id"]] * len(one["keypoints"])) for one in content["categories"]],
         "the sigmas of the classes kite and fish differ for the joint head"),
    ],
)  # fmt: skip
def test_errors_in_categories(tmp_path, capsys, edit, message):
    write_coco(tmp_path, COUNTS)
    change(tmp_path / "train.json", edit)
    with pytest.raises(SystemExit) as ended:
        parse(tmp_path)
    text = capsys.readouterr().err
    assert ended.value.code == 2 and text.count("\n") == 1 and "train.json" in text
    assert re.search(message, text), text


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (with_annotation(keypoints=[1, 2, 2] * 4), "annotation 1 of '1.png' is malformed: its keypoints are not 15 "),
        (with_annotation(keypoints="x"), "annotation 1 of '1.png' is malformed: its keypoints are not"),
        (with_annotation(keypoints=[None] * 15), "annotation 1 of '1.png' is malformed: its keypoints"),
        (lambda content: [one.update(keypoints=[0] * len(one["keypoints"])) for one in content["annotations"]],
         "no keypoint is labeled, so there is nothing to learn"),
    ],
)  # fmt: skip
def test_errors_in_annotations(tmp_path, edit, message):
    write_coco(tmp_path, COUNTS, (KITE,))
    change(tmp_path / "train.json", edit)
    with pytest.raises(UserError, match=message) as raised:
        open_split(tmp_path)
    assert "train.json" in str(raised.value) and "\n" not in str(raised.value)


def test_one_wrong_annotation_among_many(tmp_path, monkeypatch):
    """It is found by looking at each one; categories are still read once, or large files would take forever."""
    write_coco(tmp_path, {"train": 40})
    change(tmp_path / "train.json", with_annotation(keypoints=[1, 2, 3]))
    task, calls = build_task(parse(tmp_path, "--on_bad_image", "skip")), []
    for name in ("classes_of", "joints_of_categories"):
        method = getattr(Custom, name)
        monkeypatch.setattr(Custom, name, lambda *args, method=method, name=name: calls.append(name) or method(*args))
    dataset = Custom(task, "train")
    count = sum(len(objects) for _, objects in scenes(40, 0, (KITE, FISH)))
    assert len(dataset.objects["cls"]) == count - 1 > 40 and len(calls) <= 3


def test_a_joint_that_the_training_does_not_have(tmp_path):
    write_coco(tmp_path, COUNTS)
    change(tmp_path / "val.json", lambda content: content["categories"][0]["keypoints"].__setitem__(1, "ear"))
    with pytest.raises(UserError, match=r"val.json: the category kite has the joint ear, which is not one of the 5"):
        open_split(tmp_path, "val")


def test_data_without_keypoints(tmp_path, capsys):
    write_coco(tmp_path, COUNTS)

    change(tmp_path / "train.json", without_keypoints)
    with pytest.raises(SystemExit):
        parse(tmp_path)
    message = capsys.readouterr().err
    assert "train.json: no keypoints, which multi_pose learns from" in message and message.count("\n") == 1
    parse(tmp_path, task="ctdet")


@pytest.mark.parametrize(
    ("more", "line", "message"),
    [
        ("", "0 0.5 0.5 0.4 0.4 0.5 0.3 2 0.5", r"kpt_shape \[5, 3\] asks for 20 columns, there are 9"),
        ("", "0 0.5 0.5 0.4 0.4" + " 0.5 0.3 2" * 4 + " 0.5 0.3 7", "visibility of a keypoint is 7, not 0, 1 or 2"),
        ("", "0 0.5 0.5 0.4 0.4" + " 48 30 2" * 5, "coordinates of keypoints are fractions of the image"),
        ("flip_idx: [0, 2, 3, 1, 4]\n", "", "flip_idx of the category kite is not symmetric"),
        ("flip_idx: [0, 2, 1]\n", "", "flip_idx of the category kite has 3 entries, there are 5 joints"),
        ("skeleton: [[0, 5]]\n", "", r"skeleton of the category kite has \['0', '5'\], .* from 0 to 4"),
        ("kpt_names: [a, b]\n", "", r"kpt_names of the category kite are 2 names, but kpt_shape is \[5, 3\]"),
    ],
)
def test_errors_of_yolo(tmp_path, capsys, more, line, message):
    pytest.importorskip("yaml")
    write_yolo(tmp_path, COUNTS, more=more)
    if line:
        (tmp_path / "labels/train/1.txt").write_text(line + "\n")
        with pytest.raises(UserError, match=message) as raised:
            open_split(tmp_path)
        assert "line 1" in str(raised.value)
    else:
        with pytest.raises(SystemExit):
            parse(tmp_path)
        assert re.search(message, capsys.readouterr().err)
        parse(tmp_path, task="ctdet")  # which needs none of it


@pytest.mark.parametrize("kinds", [(KITE,), (KITE, FISH)])
def test_exported_models_know_the_joints(tmp_path, kinds):
    opt = parse(write_coco(tmp_path, COUNTS, kinds))
    values = metadata(opt.replace(with_decode=True), ("dets",))
    assert values["keypoints"] == opt.keypoints.as_dict()
    assert values["columns"][5:7] == ["head_x", "head_y"] and len(values["columns"]) == 6 + 2 * len(opt.keypoints)
