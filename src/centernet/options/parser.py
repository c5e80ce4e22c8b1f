"""The command line of all programs."""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from ..models import describe
from ..ops.keypoints import KeypointSchema
from ..tasks import TASKS, all_specs, get_spec
from ..tasks.option import CHECK, DEMO, EXPORT, TEST, TRAIN, Option
from ..utils import environment
from ..utils.files import inaccessible
from ..utils.help import HelpFormatter
from .derive import as_pixel, check, check_sizes, derive, derive_sizes
from .presets import preset_values
from .table import GENERAL, GROUPS, NEVER, Draft, Options

DESCRIPTIONS = {
    TRAIN: "Train a detector; with --test, score a checkpoint as validation does.",
    TEST: "Score a detector on a dataset.",
    DEMO: "Detect in images, videos or a webcam stream, and draw the results.",
    EXPORT: "Export a network to ONNX, OpenVINO, torch.export or TorchScript.",
    CHECK: "Check a dataset before training, and draw samples as the network will see them.",
}
EXAMPLES = {
    TRAIN: (
        "ctdet --dataset pascal --arch resdcn_18 --input_res 384 --num_epochs 70 --lr_step 45,60",
        "ctdet --dataset custom --data_path DIR --exp_id mine --resume",
    ),
    TEST: (
        "ctdet --load_model exp/ctdet/mine/model_best.pth --flip_test",
        "ctdet --load_model ctdet_coco_dla_2x.pth --arch dla_34 --keep_res",
    ),
    DEMO: (
        "ctdet --demo street.jpg --load_model exp/ctdet/mine/model_best.pth",
        "multi_pose --demo clip.mp4 --load_model FILE --output_dir out",
    ),
    EXPORT: (
        "ctdet --load_model exp/ctdet/mine/model_best.pth --output mine.onnx",
        "ctdet --load_model FILE --output mine.onnx --with_decode --K 50",
    ),
    CHECK: (
        "ctdet --dataset custom --data_path DIR",
        "ctdet --dataset pascal --data_path DIR --output_dir samples",
    ),
}
SCRIPTS = {TRAIN: "src/main.py", TEST: "src/test.py", DEMO: "src/demo.py", EXPORT: "src/export.py",
           CHECK: "src/tools/check_data.py"}  # fmt: skip
DETECTING = (TEST, DEMO, EXPORT)  # programs whose checkpoint describes the network
# What torch.distributed.launch adds to a command line; the environment says the same (utils.environment.place).
LOCAL_RANK = re.compile(r"--local[-_]rank=\d+")


class OptionParser:
    """The command line of a program: its options, what follows from them, and its help.

    Every program accepts the options of all programs, so that commands can be copied; ``--help`` shows its own, and
    ``notes`` names those that a program does not use.

    Attributes:
        script: the program (``main.py``, ...).
        parser: the underlying ``argparse`` parser.
    """

    def __init__(self, script: str = TRAIN, raises: bool = False) -> None:
        """Declare the options of a program; ``raises``: mistakes raise UserError instead of exiting."""
        self.script = script
        program = os.path.basename(sys.argv[0] or "centernet")
        start = f"python {SCRIPTS[script]}" if program.endswith(".py") else program
        examples = "\n".join(f"  {start} {example}" for example in EXAMPLES[script])
        self.parser = _ArgumentParser(
            prog=program,
            usage="%(prog)s task [options]",
            description=f"{DESCRIPTIONS[script]}\nOptions may be abbreviated as long as they are unambiguous.",
            epilog=f"examples:\n{examples}\n\n--help_all shows the options of all programs.",
            formatter_class=lambda prog: HelpFormatter(prog, max_help_position=28),
            add_help=False,
        )
        self.parser.raises = raises
        self._add_options()

    def parse(self, args: Sequence[str] | str = "") -> Options:
        """Return the finished options of a command line.

        ``args``: list of arguments; the empty string: those of the process. A mistake ends the process with one line
        on stderr and status 2, or raises UserError.
        """
        unset = Draft(**dict.fromkeys(self._defaults()))
        line = [word for word in (sys.argv[1:] if args == "" else args) if not LOCAL_RANK.fullmatch(word)]
        words, off = self._without_flags_turned_off(line)
        opt = self.parser.parse_args(words, unset)
        for name in off:
            setattr(opt, name, False)
        for name, value in vars(opt).items():
            if isinstance(value, str) and value.startswith("~/"):  # shells leave it in --load_model=~/a.pth as it is
                setattr(opt, name, os.path.expanduser(value))
        # -1 is how a command line leaves the choice to the program.
        opt.given = sorted(name for name, value in vars(opt).items() if value is not None and value != -1)
        try:
            given = {name: getattr(opt, name) for name in opt.given}
            preset = preset_values(opt.preset or "reference", opt.task, given)
            for name, default in {**self._defaults(), **get_spec(opt.task).defaults, **preset}.items():
                if getattr(opt, name) is None:
                    setattr(opt, name, default)
            check(opt)
            derive(opt)
            if self.script not in DETECTING or not opt.load_model or "arch" in opt.given:
                check_sizes(opt)  # else when the checkpoint, which names the network, is read
        except UserError as error:
            self.parser.error(str(error))
        except OSError as error:
            if not (text := inaccessible(error)):
                raise
            self.parser.error(text)
        return opt.finished()

    init = parse  # the reference's entry point for demos and library use

    def update_dataset_info_and_set_heads(self, opt: Options, dataset: Any) -> Options:
        """Return options for a dataset object, as the reference's method of this name.

        ``dataset`` has ``default_resolution``, ``mean``, ``std`` and ``num_classes``, and possibly ``class_name``,
        ``num_joints``, and ``flip_idx``, pairs of joints that a flip exchanges.

        Raises:
            UserError: an input size that the network cannot take, or pairs of joints that do not exist.
        """
        draft = Draft.of(opt)
        draft.mean, draft.std = as_pixel(dataset.mean), as_pixel(dataset.std)
        draft.num_classes = int(dataset.num_classes)
        if len(draft.class_names) != draft.num_classes:
            names = [str(name) for name in getattr(dataset, "class_names", ())]
            draft.class_names = names or [str(k) for k in range(draft.num_classes)]
            draft.category_ids = list(range(1, draft.num_classes + 1))
        if not {"input_res", "input_h", "input_w"} & set(opt.given):
            draft.input_h, draft.input_w = (int(side) for side in np.ravel(dataset.default_resolution))
        num_joints = int(getattr(dataset, "num_joints", len(draft.keypoints)))
        if num_joints != len(draft.keypoints):
            draft.keypoints = KeypointSchema.numbered(num_joints)
        if hasattr(dataset, "flip_idx"):
            draft.keypoints = draft.keypoints.with_flip_pairs(dataset.flip_idx)
        draft.pad = describe(draft.arch)[0].pad
        check_sizes(draft)
        derive_sizes(draft)
        draft.heads = get_spec(draft.task).head_channels(draft)
        return draft.finished()

    def notes(self, opt: Options, script: str = "") -> list[str]:
        """Return lines about given options without effect: on the task, in this program, and with other options."""
        script, spec = script or self.script, get_spec(opt.task)
        others = {option.name for other in all_specs().values() for option in other.options} - {
            option.name for option in spec.options
        }
        others |= set(spec.ignored_options)
        known = {**GENERAL, **{option.name: option for option in spec.options}}
        notes = [f"note: --{name} has no effect on task {opt.task}" for name in opt.given if name in others]
        notes += spec.notes(opt, script)
        used = [name for name in opt.given if name in known and script in known[name].scripts]
        reasons = [(f"in {script}", tuple(name for name in opt.given if name in known and name not in used))]
        reasons += [(reason, tuple(name for name in names if name in used)) for reason, names in _contradicted(opt)]
        for reason, names in reasons:
            if names:
                shown = ", ".join(f"--{name}" for name in names)
                notes.append(f"note: {shown} {'has' if len(names) == 1 else 'have'} no effect {reason}")
        if opt.test and not opt.load_model:
            notes.append("note: --test without --load_model scores a network of random weights")
        oracles = [name for name in used if name.startswith("eval_oracle_") and getattr(opt, name)]
        if oracles and not opt.test:
            shown = ", ".join(f"--{name}" for name in oracles)
            notes.append(f"note: {shown} without --test: the network does not learn what the truth replaces")
        if opt.dry_run and opt.load_model and script in ("demo.py", "test.py", "export.py"):
            notes.append(
                f"note: --dry_run does not read {opt.load_model}, which determines the network and its input size"
            )
        return notes

    def _without_flags_turned_off(self, args: list[str]) -> tuple[list[str], list[str]]:
        """Return arguments without ``--FLAG=false``, and these flags; ``--FLAG=true`` becomes ``--FLAG``."""
        words, off = [], []
        for word in args:
            name, _, value = word.removeprefix("--").partition("=")
            option = self._options.get(name) if word.startswith("--") else None
            if option is None or option.default is not False or value.lower() not in ("true", "false"):
                words.append(word)
            elif value.lower() == "true":
                words.append(f"--{name}")
            else:
                off.append(name)
        return words, off

    def _add_options(self) -> None:
        parser = self.parser
        group = parser.add_argument_group("task")
        group.add_argument("task", help=" | ".join(TASKS))
        group.add_argument("-h", "--help", action=_Help, script=self.script, help="show the options of this program")
        group.add_argument("--help_all", action=_Help, script="", help="show the options of all programs")
        self._options: dict[str, Option] = {}
        sections = [(cls.title, cls.declared) for cls in GROUPS]
        sections += [(f"task {name}", spec.options) for name, spec in all_specs().items()]
        for title, options in sections:
            group = parser.add_argument_group(title)
            for option in options:
                option.add_to(group)
                self._options[option.name] = option
        parser.options = self._options

    def _defaults(self) -> dict[str, Any]:
        return {name: option.default for name, option in self._options.items()}


def _contradicted(opt: Options) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield why options have no effect with the others, and their names."""
    if opt.lr_schedule != "step":
        yield f"on the learning rate with --lr_schedule {opt.lr_schedule}", ("lr_step",)
    elif opt.lr_step and min(opt.lr_step) >= opt.num_epochs:
        yield f"before the last epoch, {opt.num_epochs}", ("lr_step",)
    if not opt.test and not 0 < opt.val_intervals < NEVER:
        yield "without validations", ("save_all", "metric")
    if opt.box_loss == "l1":
        yield "without --box_loss giou, diou or ciou", ("box_weight",)
    else:
        yield f"with --box_loss {opt.box_loss}", ("wh_weight", *(("off_weight", "reg_loss") * (opt.task == "ctdet")))
    if not opt.mse_loss:
        yield "without --mse_loss", ("hm_gauss",)
    if opt.augment == "reference" and not opt.copy_paste:
        yield "without --augment or --copy_paste", ("plain_epochs",)
    if not opt.not_rand_crop and opt.task != "ddd":
        yield "without --not_rand_crop", ("shift", "scale")
    if not opt.aug_rot:
        yield "without --aug_rot", ("rotate",)
    if not opt.print_iter:
        yield "without --print_iter", ("hide_data_time",)
    if opt.keep_res:
        yield "with --keep_res", ("input_res", "input_h", "input_w")


class _ArgumentParser(argparse.ArgumentParser):
    """Reports a mistake in one line, and keeps the reference's abbreviations unambiguous."""

    options: dict[str, Option]
    raises = False

    def _get_option_tuples(self, option_string: str) -> list:
        found = super()._get_option_tuples(option_string)
        new = {"help_all", *(name for name, option in self.options.items() if option.new)}
        return [entry for entry in found if entry[0].dest not in new] or found

    def error(self, message: str):
        if self.raises:
            raise UserError(message)
        if environment.reports():  # all processes of a machine find the same mistake
            print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)


class _Help(argparse.Action):
    """Print the help of the options that ``script`` reads, or of all, and exit."""

    def __init__(self, option_strings: Sequence[str], dest: str, script: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self.dest, self.script = dest, script

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if self.script:
            for action in parser._actions:
                option = parser.options.get(action.dest)
                if option is not None and self.script not in option.scripts:
                    action.help = argparse.SUPPRESS
        parser.print_help()
        parser.exit()
