"""Properties that hold for all boxes, sizes, classes, random numbers and texts, tested with hypothesis.

The fast suite tries a few that are the same each time, ``-m soak`` five hundred new ones.
"""

import contextlib
import io
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzzing.targets import kitti_texts

from centernet.analysis.read import read_curve
from centernet.conversion.issues import raise_error
from centernet.conversion.voc_devkit import read_annotation
from centernet.conversion.yolo import YoloLayout
from centernet.datasets import get_dataset
from centernet.datasets.loader import Samples, collate, finish_batch
from centernet.errors import UserError
from centernet.models import read_checkpoint
from centernet.ops.keypoints import FLIP_PAIRS
from centernet.ops.oracle import oracle_map
from centernet.opts import opts
from centernet.tasks import TASKS, build_task, get_task
from centernet.transforms import replayed_rng, sample_rng
from centernet.utils.images import read_image

FAST = settings(
    max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
SLOW = settings(FAST, max_examples=500, derandomize=False, print_blob=True)
PROPERTIES = {}


def holds(**strategies):
    """Register a function ``(folder, **drawn)`` that has to end without an exception."""

    def register(function):
        PROPERTIES[function.__name__] = function, strategies
        return function

    return register


def search(name, folder, how):
    function, strategies = PROPERTIES[name]

    @how
    @given(**strategies)
    def check(**drawn):
        function(folder, **drawn)

    check()


# Targets and detections

DATASET = {"ctdet": "coco", "multi_pose": "coco_hp", "exdet": "coco", "ddd": "kitti"}
OPTIONS = {
    task: opts().parse([task, "--dataset", dataset, "--input_h", "64", "--input_w", "96", "--no_color_aug"])
    for task, dataset in DATASET.items()
}
CALIB = np.array([[50, 0, 48, 4], [0, 50, 32, 0.2], [0, 0, 1, 0.003]], dtype=np.float32)

coordinate = st.floats(-50, 400, width=32)
side = st.floats(0, 300, width=32)
thing = st.tuples(coordinate, coordinate, side, side, st.integers(0, 2), st.floats(0.5, 60), st.integers(0, 2**32 - 1))
scene = {
    "size": st.tuples(st.integers(1, 300), st.integers(1, 300)),
    "things": st.lists(thing, max_size=6),
    "seed": st.integers(0, 2**32 - 1),
    "train": st.booleans(),
}


def annotations_of(task, things):
    found = []
    for x, y, w, h, cls, depth, seed in things:
        rng = np.random.default_rng(seed)
        one = {"category_id": OPTIONS[task].category_ids[cls % OPTIONS[task].num_classes], "bbox": [x, y, w, h]}
        joints = np.column_stack([x + w * rng.random(17), y + h * rng.random(17), rng.integers(0, 3, 17)])
        share = rng.random(4)
        one["keypoints"] = joints.ravel().tolist()
        one["extreme_points"] = [
            *([x + w * share[0], y], [x, y + h * share[1]], [x + w * share[2], y + h], [x + w, y + h * share[3]]),
        ]
        one.update(depth=depth, dim=(5 * rng.random(3)).tolist(), alpha=rng.uniform(-math.pi, math.pi))
        found.append(one)
    return found


def batch_of(task, size, things, seed, train):
    """A finished batch of one image, with what the task's trainer would get."""
    opt, module = OPTIONS[task], get_task(task)
    objects = module(opt).read_objects(annotations_of(task, things), {c: k for k, c in enumerate(opt.category_ids)})
    if task == "ddd":
        objects["calib"] = CALIB
    image = np.full((size[1], size[0], 3), 99, np.uint8)
    sample = module(opt).encode(image, objects, sample_rng(seed, 1, 0) if train else None, train)
    return finish_batch(collate([sample]), module(opt))


def check_targets(task, batch):
    for name, values in batch.items():
        if torch.is_tensor(values):
            assert values.double().isfinite().all(), name
    for name, map_ in batch.items():
        if name.startswith("hm"):
            assert map_.min() >= 0 and map_.max() <= 1
    (mask,) = batch["reg_mask"].bool() if task != "ddd" else batch["rot_mask"].bool()
    if task != "exdet":
        hm = batch["hm"][0].flatten(1)
        classes, cells = batch["cls"][0][mask], batch["ind"][0][mask]
        assert (hm[classes, cells] == 1).all()
        if task != "multi_pose":  # persons without joints have a peak, and no mask
            assert (hm == 1).sum() == len({*zip(classes.tolist(), cells.tolist(), strict=True)})
    else:
        for name in "tlbrc":
            cells = batch[f"ind_{name}"][0][mask] if f"ind_{name}" in batch else []
            assert all(batch[f"hm_{name}"][0].flatten(1)[:, cell].max() == 1 for cell in cells)


for _task in TASKS:

    @holds(**scene)
    def targets(_folder, size, things, seed, train, task=_task):
        check_targets(task, batch_of(task, size, things, seed, train))

    PROPERTIES[f"targets_of_{_task}"] = PROPERTIES.pop("targets")


def truth_as_output(task, batch):
    """Return raw maps that equal the targets."""
    height, width = (side // 4 for side in batch["image"].shape[1:3])
    output = {name: torch.zeros(1, channels, height, width) for name, channels in OPTIONS[task].heads.items()}
    for name in ("hm", "hm_hp", "hm_t", "hm_l", "hm_b", "hm_r", "hm_c"):
        if name in output:
            output[name] = torch.logit(batch[name])
    for name, mask in (("wh", "reg_mask"), ("reg", "reg_mask"), ("hps", "reg_mask"), ("dim", "rot_mask")):
        if name in output:
            output[name] = oracle_map(batch[name].float(), batch["ind"], batch[mask], output[name].shape)
    if "hp_offset" in output:
        output["hp_offset"] = oracle_map(
            batch["hp_offset"], batch["hp_ind"], batch["hp_mask"], output["hp_offset"].shape
        )
    return output


def boxes_in_output(batch, mask):
    width = batch["image"].shape[2] // 4
    cells = torch.stack([batch["ind"][0] % width, batch["ind"][0] // width], 1)[mask]
    centers, sizes = cells + batch["reg"][0][mask], batch["wh"][0][mask]
    return torch.cat([centers - sizes / 2, centers + sizes / 2], 1)


@holds(**scene)
def boxes_come_back(_folder, size, things, seed, train):
    """Of ctdet; where objects share a cell, which has one size, at least one of them."""
    batch = batch_of("ctdet", size, things, seed, train)
    (mask,) = batch["reg_mask"].bool()
    dets = get_task("ctdet")(OPTIONS["ctdet"]).decode(truth_as_output("ctdet", batch))[0]
    true, cells, classes = boxes_in_output(batch, mask), batch["ind"][0][mask], batch["cls"][0][mask]
    for k in range(len(true)):
        same = dets[(dets[:, 5] == classes[k]) & (dets[:, 4] > 0.999)]
        candidates = true[cells == cells[k]]
        distance = (same[:, None, :4] - candidates[None]).abs().amax(2)
        assert distance.min() < 1e-3


@holds(size=scene["size"], things=st.lists(thing, min_size=1, max_size=1), seed=scene["seed"], train=st.booleans())
def a_pose_comes_back(_folder, size, things, seed, train):
    """Box and joints of one person; joints outside of the image stay at their displacements."""
    batch = batch_of("multi_pose", size, things, seed, train)
    (mask,) = batch["reg_mask"].bool()
    if not mask.any():
        return
    det = get_task("multi_pose")(OPTIONS["multi_pose"]).decode(truth_as_output("multi_pose", batch))[0, 0]
    assert (det[:4] - boxes_in_output(batch, mask)[0]).abs().max() < 1e-3
    width = batch["image"].shape[2] // 4
    cell = torch.tensor([int(batch["ind"][0][mask]) % width, int(batch["ind"][0][mask]) // width])
    seen = batch["hps_mask"][0][mask].view(17, 2).bool()
    true = batch["hps"][0][mask].view(17, 2) + cell
    # Joints that share a cell share what rounding lost.
    cells = true.floor()[seen]
    shared = len(cells.unique(dim=0)) < len(cells)
    assert ((det[5:39].view(17, 2) - true)[seen].abs() < (1 if shared else 1e-3)).all()


@holds(
    x=st.floats(0, 55), y=st.floats(0, 30), w=st.floats(24, 36), h=st.floats(24, 34), seed=scene["seed"],
    cls=st.integers(0, 2),
)  # fmt: skip
def extreme_points_come_back(_folder, x, y, w, h, seed, cls):
    """Of one object in an image of the input's size."""
    opt, module = OPTIONS["exdet"], get_task("exdet")
    size = (opt.input_res, opt.input_res)
    batch = batch_of("exdet", size, [(x, y, w, h, cls, 1.0, seed)], seed, False)
    output = truth_as_output("exdet", batch)
    for s in "tlbr":
        output[f"reg_{s}"] = oracle_map(
            batch[f"reg_{s}"], batch[f"ind_{s}"], batch["reg_mask"], output[f"reg_{s}"].shape
        )
    det = module(opt).decode(output)[0, 0]
    width = opt.input_res // 4
    cells = {s: divmod(int(batch[f"ind_{s}"][0, 0]), width) for s in "tlbr"}
    # The middle of the outermost cells may be another one than the center's, and too dark to count as a center.
    middle = (cells["t"][0] + cells["b"][0]) // 2, (cells["l"][1] + cells["r"][1]) // 2
    if batch["hm_c"][0, cls][middle] < opt.center_thresh:
        assert det[4] < 0
        return
    assert det[4] > 0.5 and det[13] == cls
    assert (det[:4] - torch.tensor([x, y, x + w, y + h]) / 4).abs().max() < 2e-3


@holds(**{**scene, "train": st.just(False)})
def a_flip_test_of_flipped_maps_changes_nothing(_folder, size, things, seed, train):
    for task in ("ctdet", "multi_pose"):
        output = truth_as_output(task, batch_of(task, size, things, seed, train))
        output = {name: value.clamp(-30, 30) for name, value in output.items()}
        mirror = {name: value.flip(3) for name, value in output.items()}
        if task == "multi_pose":  # left and right joints change places, and displacements their sign
            pairs = [joint for pair in FLIP_PAIRS for joint in (pair, pair[::-1])]
            order = torch.arange(17)
            order[[left for left, _ in pairs]] = torch.tensor([right for _, right in pairs])
            mirror["hm_hp"] = mirror["hm_hp"][:, order]
            hps = mirror["hps"].unflatten(1, (17, 2))[:, order].clone()
            hps[:, :, 0] *= -1
            mirror["hps"] = hps.flatten(1, 2)
        both = {name: torch.cat([output[name], mirror[name]]) for name in output}
        module = get_task(task)
        alone = module(OPTIONS[task]).decode(output)
        averaged = module(OPTIONS[task]).decode(both, flipped=True)
        assert torch.equal(alone, averaged)


whole = st.integers(0, 200)


@holds(
    size=st.tuples(st.integers(2, 200), st.integers(2, 200)),
    boxes=st.lists(st.tuples(whole, whole, whole, whole, st.integers(0, 2**32 - 1)), max_size=4),
    scale=st.sampled_from([0.6, 1.0, 1.3]),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def flipping_twice_is_the_identity(_folder, size, boxes, scale, place):
    """A flipped image with flipped objects, flipped by the augmentation, is the sample of the image itself."""
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    cx, cy = (int(share * (side - 1)) for share, side in zip(place, size, strict=True))
    for task in ("ctdet", "multi_pose"):
        opt, module = OPTIONS[task], get_task(task)
        things = [(x, y, w, h, 0, 1.0, seed) for x, y, w, h, seed in boxes]
        class_of = {c: k for k, c in enumerate(opt.category_ids)}
        objects = module(opt).read_objects(annotations_of(task, things), class_of)
        if "joints" in objects:
            objects["joints"] = objects["joints"].round()
        flipped = {name: values.copy() for name, values in objects.items()}
        flipped["boxes"][:, [0, 2]] = width - objects["boxes"][:, [2, 0]] - 1
        if "joints" in objects:
            flipped["joints"][:, :, 0] = width - objects["joints"][:, :, 0] - 1
            for left, right in FLIP_PAIRS:
                flipped["joints"][:, [left, right]] = flipped["joints"][:, [right, left]]

        def sample(image, objects, center, flip):
            draws = [["choice", scale], ["randint", center], ["randint", cy], ["random", 1.0], ["random", flip]]
            if task == "ctdet":  # noqa: B023
                del draws[3]
            record = replayed_rng({"draws": draws, "color": None})
            return module(opt).encode(image, objects, record, True)  # noqa: B023

        plain = sample(pixels, objects, cx, 0.9)
        twice = sample(pixels[:, ::-1], flipped, width - cx - 1, 0.1)
        for name in plain:
            assert np.array_equal(plain[name], twice[name]), name


# Command lines and logs

OPTION_NAMES = [text for action in opts().parser._actions for text in action.option_strings]
plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
value = st.one_of(
    plain_text, st.integers().map(str), st.floats().map(str), st.sampled_from(["coco", "pascal", "res_18"])
)


@holds(
    task=st.one_of(st.sampled_from(list(TASKS)), plain_text),
    words=st.lists(st.one_of(st.sampled_from(OPTION_NAMES), value), max_size=6),
)
def command_lines_end_with_status_2(folder, task, words):
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        try:
            opt = opts().parse([task, *words])
        except SystemExit as ended:
            assert ended.code == 2 or (ended.code == 0 and {"-h", "--help"} & {*words})
            assert "Traceback" not in errors.getvalue()
        else:
            assert opt.input_h % 4 == 0 and opt.num_epochs >= 1


log_line = st.one_of(
    plain_text,
    st.builds("loss {} ".format, st.floats()),
    st.builds("epoch: {} |loss {} | hm_loss {}".format, st.integers(), st.floats(), st.floats()),
    st.builds(
        "ctdet/a| train: [{}][{}/{}]|Tot: 0:00:01 |ETA: 0:00:01 |loss {} |hm_loss 1 ".format,
        st.integers(0, 3), st.integers(0, 10**20), st.integers(0, 10**20), st.floats(),
    ),
    st.builds("{},{},{}".format, st.integers(), st.integers(), st.floats()),
    st.just("epoch,iteration,loss,hm_loss,lr"),
    st.just("loss"),
)  # fmt: skip


@holds(
    lines=st.lists(log_line, max_size=8),
    rest=st.binary(max_size=8),
    name=st.sampled_from(["train_log.csv", "log.txt", "a.csv"]),
)
def logs_are_read_or_refused(folder, lines, rest, name):
    path = folder / name
    path.write_bytes("\n".join(lines).encode() + rest)
    with contextlib.suppress(UserError):
        loss = read_curve(path).loss
        assert loss.dtype == np.float64 and loss.ndim == 1 and len(loss)


# Annotations, images and checkpoints

junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), plain_text, st.integers(1, 3)),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(plain_text, inner, max_size=3)),
    max_leaves=8,
)


def fields(**right):
    """An object that has some fields as they should be, some that are anything, and lacks some."""
    lacking = object()
    options = {name: st.one_of(given_, given_, given_, junk, st.just(lacking)) for name, given_ in right.items()}
    return st.fixed_dictionaries(options).map(lambda d: {k: v for k, v in d.items() if v is not lacking})


number = st.one_of(st.floats(-10, 100), st.integers(-10, 100))
image_entry = fields(
    id=st.integers(1, 3), file_name=st.sampled_from(["a.png", "b.png", "../a.png"]), width=st.just(32),
    height=st.just(24), calib=st.just(CALIB.tolist()),
)  # fmt: skip
annotation_entry = fields(
    id=st.integers(0, 3), image_id=st.integers(1, 3), category_id=st.integers(1, 3),
    bbox=st.lists(number, min_size=4, max_size=4), keypoints=st.lists(number, min_size=51, max_size=51),
    extreme_points=st.lists(st.lists(number, min_size=2, max_size=2), min_size=4, max_size=4), depth=number,
    dim=st.lists(number, min_size=3, max_size=3), alpha=number, area=number, iscrowd=st.integers(0, 1),
    num_keypoints=st.integers(0, 17), segmentation=st.just([[1, 1, 20, 1, 20, 20]]),
)  # fmt: skip
annotation_file = st.one_of(
    junk,
    fields(
        images=st.lists(st.one_of(image_entry, image_entry, junk), min_size=1, max_size=3),
        annotations=st.lists(st.one_of(annotation_entry, annotation_entry, junk), max_size=4),
        categories=st.just([{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]),
    ),
)
FILES = {
    "ctdet": ("coco", "coco/annotations/instances_{}2017.json", "coco/{}2017"),
    "multi_pose": ("coco_hp", "coco/annotations/person_keypoints_{}2017.json", "coco/{}2017"),
    "exdet": ("coco", "coco/annotations/instances_extreme_{}2017.json", "coco/{}2017"),
    "ddd": ("kitti", "kitti/annotations/kitti_3dop_{}.json", "kitti/images/trainval"),
    "custom": ("custom", "custom/annotations/{}.json", "custom/images"),
}


@holds(
    content=annotation_file,
    kind=st.sampled_from(list(FILES)),
    skip=st.booleans(),
    split=st.sampled_from(["train", "val"]),
)
def annotation_files_are_used_or_refused(folder, content, kind, skip, split):
    name, file, images = FILES[kind]
    path = folder / file.format(split)
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / images.format(split)).mkdir(parents=True, exist_ok=True)
    for one in "ab":
        image = folder / images.format(split) / f"{one}.png"
        if not image.is_file():
            cv2.imwrite(str(image), np.full((24, 32, 3), 99, np.uint8))
    path.write_text(json.dumps(content))
    task = "ctdet" if kind == "custom" else kind
    arguments = [task, "--dataset", name, "--data_path", str(folder / name.removesuffix("_hp")), "--input_res", "64"]
    arguments += ["--on_bad_image", "skip"] if skip else []
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            opt = opts().parse(arguments)
            dataset = get_dataset(name)(build_task(opt), split)
        except (UserError, SystemExit) as error:
            assert not isinstance(error, SystemExit) or error.code == 2
            return
        samples = Samples(dataset, split == "train")
        for index in range(len(dataset)):
            try:
                batch = finish_batch(collate([samples[1, index]]), samples.task)
            except UserError as error:
                assert "images in a row cannot be used" in str(error)
            else:
                assert all(v.double().isfinite().all() for v in batch.values() if torch.is_tensor(v))
        if name != "kitti":  # whose scores need label files or more fields
            dataset.evaluate({image_id: {} for image_id in dataset.image_ids})


tag = st.sampled_from(
    ["annotation", "object", "size", "bndbox", "name", "xmin", "xmax", "ymin", "ymax", "width", "height"]
)
xml_piece = st.one_of(
    tag.map("<{}>".format), tag.map("</{}>".format), plain_text, st.integers().map(str), st.floats().map(str),
    st.just("<size><width>9</width><height>9</height></size>"),
    st.just("<object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>"),
    st.just("<!DOCTYPE a>"), st.just("<!ENTITY b 'c'>"), st.just("&b;"), st.just("<?xml version='1.0'?>"),
)  # fmt: skip


@holds(
    pieces=st.lists(xml_piece, max_size=8),
    whole=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-16", "latin-1"]),
)
def xml_files_are_read_or_refused(folder, pieces, whole, encoding):
    text = "".join(pieces)
    path = folder / "a.xml"
    path.write_bytes((f"<annotation>{text}</annotation>" if whole else text).encode(encoding, errors="replace"))
    for needs_size in (True, False):
        with contextlib.suppress(UserError):
            record = read_annotation(path, needs_size)
            assert all(item["xmin"] <= item["xmax"] and item["ymin"] <= item["ymax"] for item in record["objects"])


word = st.one_of(
    st.floats().map(str), st.integers(-2, 3).map(str), st.floats(0, 1).map(str), plain_text, st.just("nan")
)
label_line = st.lists(word, max_size=9).map(" ".join)


@holds(lines=st.lists(label_line, max_size=4), rest=st.binary(max_size=3))
def yolo_labels_are_read_or_refused(folder, lines, rest):
    (folder / "images").mkdir(exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    if not (folder / "images/a.png").is_file():
        cv2.imwrite(str(folder / "images/a.png"), np.zeros((24, 32, 3), np.uint8))
    (folder / "classes.txt").write_text("a\nb\n")
    (folder / "labels/a.txt").write_bytes("\n".join(lines).encode() + rest)
    images = folder / "images"
    with contextlib.suppress(UserError):
        content = YoloLayout.open(folder, "train", [images]).read_checked(raise_error)
        assert all(math.isfinite(v) for one in content["annotations"] for v in one["bbox"])


kitti_line = st.one_of(
    label_line,
    st.lists(st.floats(-1e3, 1e3).map(str), min_size=14, max_size=15).map(lambda words: " ".join(["Car", *words])),
    st.lists(word, min_size=12, max_size=12).map(lambda words: " ".join(["P2:", *words])),
    st.just("Car 0.00 0 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69 -16.53 2.39 58.49 1.57"),
)


@holds(lines=st.lists(kitti_line, max_size=4), rest=st.binary(max_size=3))
def kitti_texts_are_read_or_refused(folder, lines, rest):
    kitti_texts(folder, "\n".join(lines).encode() + rest)


edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4)), max_size=4)


def mutated(content, edits, keep):
    content = bytearray(content)
    for place, new in edits:
        at = int(place * len(content))
        content[at : at + len(new)] = new
    return bytes(content[: int(keep * len(content)) + 1])


class Payload:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder / "PWNED",)


@holds(edits=edits, keep=st.one_of(st.just(1.0), st.floats(0, 1)), evil=st.booleans(), legacy=st.booleans())
def checkpoints_are_read_or_refused(folder, edits, keep, evil, legacy):
    buffer = io.BytesIO()
    content = {"epoch": 1, "state_dict": {"w": torch.ones(3, 2)}, **({"more": Payload(folder)} if evil else {})}
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    path = folder / "a.pth"
    path.write_bytes(mutated(buffer.getvalue(), edits, keep))
    with contextlib.suppress(UserError):
        assert isinstance(read_checkpoint(path), dict)
    assert not (folder / "PWNED").exists()


IMAGES = [
    cv2.imencode(suffix, np.random.default_rng(0).integers(0, 255, (9, 11, 3), dtype=np.uint8))[1].tobytes()
    for suffix in (".jpg", ".png", ".bmp")
]


@holds(content=st.sampled_from(IMAGES), edits=edits, keep=st.one_of(st.just(1.0), st.floats(0, 1)))
def images_are_read_or_refused(folder, content, edits, keep):
    path = folder / "a.jpg"
    path.write_bytes(mutated(content, edits, keep))
    with contextlib.suppress(UserError):
        image = read_image(str(path))
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(tmp_path, name):
    search(name, tmp_path, FAST)


@pytest.mark.soak
@pytest.mark.parametrize("name", PROPERTIES)
def test_property_at_length(tmp_path, name):
    search(name, tmp_path, SLOW)
