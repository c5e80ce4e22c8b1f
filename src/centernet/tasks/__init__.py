"""What is predicted. A task is a module; this is the list of them and what each must have.

DEFAULT_DATASET
    What ``--dataset`` is when it is not given.
TARGET_INPUTS
    What of a sample only ``draw_targets`` needs, by name.
OPTIONS
    The task's own options (``option.py``). They are all in ``opt``, of the other tasks too.
IGNORED_OPTIONS
    Options of training and tests in general (``opts.py``) that this task does not look at.
heads(opt) -> dict[str, int]
    Head name to channels, in the order of the reference.
options_of_heads(heads) -> dict[str, bool]
    The options with which these are the heads of a network.
read_objects(annotations, class_of) -> dict[str, ndarray]
    The annotations (as in the annotation file) of one image as arrays with one row an object.
make_sample(image, objects, opt, draws, train) -> dict
    In the worker: ``image`` uint8, ``color`` 3x4, small arrays of fixed size, ``pixels`` (as many as maps are drawn,)
    int64, which is added up over a batch and stays on the host, and ``meta`` outside training.
draw_targets(batch, opt) -> dict
    On the device, for the whole batch: the target maps, to be added to the batch.
Loss(opt)
    ``(outputs, batch, counts=None) -> (loss, {name: value})``; ``names`` in the order of the logs; and
    ``counts(batch)``, a tensor of the numbers of peaks, objects, ... by which the parts are divided. A batch may be a
    piece of a larger one (a process's share, or one of ``--accumulate``). With the ``counts`` of the whole the pieces'
    losses add up to its loss, and so do their gradients.
with_oracle(output, batch, opt) -> dict
    The output of a stack with the ground truth in place of the heads that ``--eval_oracle_*`` names.
decode(output, opt, mirrored=False) -> Tensor
    Raw maps of the last stack to detections in output pixels; ``mirrored``: of images and then of their mirror
    images, to be averaged (the flip test).
columns(opt) -> list[str]
    What the numbers of a detection of ``decode`` are.
to_image_coords(dets, metas, opt) -> list[dict[int, ndarray]]
    To image pixels: one ``{class id from 1: rows}`` an image, of one test scale.
merge_outputs(detections, opt) -> dict[int, ndarray]
    The results of one image from those of its test scales.
post_process(dets, metas, opt) -> list[dict[int, ndarray]]
    ``to_image_coords`` and ``merge_outputs`` for images of one scale.
detected_boxes(rows), ground_truth_boxes(objects) -> ndarray
    What of the rows of a class is a box, (n, 5) [x1, y1, x2, y2, score]; and the boxes (n, 4) of what ``read_objects``
    gives.
debug_images(batch, output, opt) -> dict[str, ndarray]
    What ``--debug`` shows in training, by name; what is true alone when ``output`` is None.
ground_truth_images(image, objects, opt) -> dict[str, ndarray]
    What ``--debug`` shows in tests of the objects of an image, by name.
network_images(image, output, dets, opt), result_images(image, results, opt, meta) -> dict[str, ndarray]
    What ``--debug`` shows in tests, by name: of one test scale, and in the end; ``meta`` holds what ``picture_info`` of
    the dataset says.

A task may also have:

ANNOTATIONS
    The task whose annotations it reads, if it is content with those of another one: the datasets for that one are
    for this one too.
CONFLICTS
    Pairs of options of which only one can be given.
derive(opt)
    Sets in ``opt`` what follows from the task's own options; called for every task.
test_view(height, width, opt) -> View
    What a detector sees of an image, where it differs from ``detector.cut``; the same at every test scale.
test_options(opt) -> Namespace
    The options of a detector, where the task does without some kinds of tests.
"""

from types import ModuleType

from ..errors import UserError
from ..registry import Registry

# One line per task: its name and where it is, which is imported on first use.
TASKS: Registry[ModuleType] = Registry(
    {
        "ctdet": "centernet.tasks.ctdet",
        "multi_pose": "centernet.tasks.multi_pose",
        "exdet": "centernet.tasks.exdet",
        "ddd": "centernet.tasks.ddd",
    }
)


def get_task(name: str) -> ModuleType:
    """Return a task; raise UserError for an unknown name."""
    if name not in TASKS:
        raise UserError(f"task {name}: there is no such task; choose from {', '.join(TASKS)}")
    return TASKS[name]
