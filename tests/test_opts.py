"""The command line: every option of the reference, derived values, and errors."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from centernet.options import NEVER, ROOT, chunk_sizes, process_shares, recipe
from centernet.opts import opts

# Option and default, as printed by the reference's parser.
# fmt: off
DEFAULTS = {
    "dataset": "coco", "exp_id": "default", "test": False, "debug": 0, "demo": "", "load_model": "",
    "resume": False, "gpus": "0", "num_workers": 4, "not_cuda_benchmark": False, "seed": 317,
    "print_iter": 0, "hide_data_time": False, "save_all": False, "metric": "loss", "vis_thresh": 0.3,
    "debugger_theme": "white", "arch": "dla_34", "head_conv": -1, "down_ratio": 4,
    "input_res": -1, "input_h": -1, "input_w": -1,
    "lr": 1.25e-4, "lr_step": "90,120", "num_epochs": 140, "batch_size": 32, "master_batch_size": -1,
    "num_iters": -1, "val_intervals": 5, "trainval": False,
    "flip_test": False, "test_scales": "1", "nms": False, "K": 100, "not_prefetch_test": False,
    "fix_res": False, "keep_res": False,
    "not_rand_crop": False, "shift": 0.1, "scale": 0.4, "rotate": 0, "flip": 0.5, "no_color_aug": False,
    "aug_rot": 0, "aug_ddd": 0.5, "rect_mask": False, "kitti_split": "3dop",
    "mse_loss": False, "reg_loss": "l1", "hm_weight": 1, "off_weight": 1, "wh_weight": 0.1, "hp_weight": 1,
    "hm_hp_weight": 1, "dep_weight": 1, "dim_weight": 1, "rot_weight": 1, "peak_thresh": 0.2,
    "norm_wh": False, "dense_wh": False, "cat_spec_wh": False, "not_reg_offset": False,
    "agnostic_ex": False, "scores_thresh": 0.1, "center_thresh": 0.1, "aggr_weight": 0.0,
    "dense_hp": False, "not_hm_hp": False, "not_reg_hp_offset": False, "not_reg_bbox": False,
    "eval_oracle_hm": False, "eval_oracle_wh": False, "eval_oracle_offset": False, "eval_oracle_kps": False,
    "eval_oracle_hmhp": False, "eval_oracle_hp_offset": False, "eval_oracle_dep": False,
}
# fmt: on
DERIVED = {
    *("gpus", "lr_step", "test_scales", "fix_res", "head_conv", "master_batch_size"),
    *("input_res", "input_h", "input_w"),
}


def parse(*args):
    return opts().parse(["ctdet", *args])


def fails(capsys, monkeypatch, *args):
    """Parse a whole command line that is wrong; returns what stderr got, which has to be one line."""
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as end:
        opts().parse(list(args))
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert captured.out == ""
    assert captured.err.endswith("\n") and captured.err.count("\n") == 1 and len(captured.err) > 20
    return captured.err


@pytest.mark.parametrize("name", DEFAULTS)
def test_option_has_the_reference_default(name):
    parser = opts().parser
    options = {option: action for action in parser._actions for option in action.option_strings}
    assert f"--{name}" in options
    assert options[f"--{name}"].help
    default = parser.get_default(name)
    assert default == DEFAULTS[name]
    assert isinstance(default, bool) == isinstance(DEFAULTS[name], bool)


def test_finished_options_keep_every_default():
    opt = parse()
    assert {name: getattr(opt, name) for name in DEFAULTS if name not in DERIVED} == {
        name: value for name, value in DEFAULTS.items() if name not in DERIVED
    }
    assert opt.task == "ctdet"


def test_every_flag_can_be_given():
    for name, default in DEFAULTS.items():
        if default is False:
            assert getattr(opts().parser.parse_args(["ctdet", f"--{name}"]), name) is True


@pytest.mark.parametrize(
    ("batch_size", "master", "count", "expected"),
    [
        (128, 9, 8, [9] + [17] * 7),
        (96, 5, 8, [5] + [13] * 7),
        (114, 18, 4, [18, 32, 32, 32]),
        (24, 4, 5, [4, 5, 5, 5, 5]),
        (64, 1, 8, [1] + [9] * 7),
        (16, 7, 2, [7, 9]),
        (33, -1, 2, [16, 17]),
        (34, 5, 4, [5, 10, 10, 9]),
        (16, 4, 1, [4]),
        (32, -1, 1, [32]),
        (32, -1, 4, [8, 8, 8, 8]),
    ],
)
def test_chunk_sizes(batch_size, master, count, expected):
    assert chunk_sizes(batch_size, master, count) == expected
    args = ["--batch_size", str(batch_size), "--gpus", ",".join(str(k) for k in range(count))]
    opt = parse(*args, *(["--master_batch", str(master)] if master != -1 else []))
    assert opt.chunk_sizes == expected
    assert opt.master_batch_size == expected[0]


@pytest.mark.parametrize(
    ("args", "processes", "expected"),
    [
        (["--batch_size", "32"], 1, [32]),
        (["--batch_size", "32"], 4, [8, 8, 8, 8]),
        (["--batch_size", "33", "--gpus", "0,1,2,3"], 4, [8, 9, 8, 8]),
        (["--batch_size", "114", "--master_batch", "18", "--gpus", "0,1,2,3"], 4, [18, 32, 32, 32]),
        (["--batch_size", "114", "--master_batch", "18"], 4, [18, 32, 32, 32]),
    ],
)
def test_process_shares(args, processes, expected):
    assert process_shares(parse(*args), processes) == expected


def test_one_process_takes_the_whole_batch():
    """The reference computes a chunk for a single device and does not use it."""
    assert process_shares(parse("--batch_size", "16", "--master_batch", "4"), 1) == [16]


@pytest.mark.parametrize(
    ("short", "name", "value"),
    [
        ("--master_batch=7", "master_batch_size", 7),
        ("--master=7", "master_batch_size", 7),
        ("--batch=6", "batch_size", 6),
        ("--num_epoch=3", "num_epochs", 3),
        ("--load=x.pth", "load_model", "x.pth"),
        ("--exp_i=name", "exp_id", "name"),
        ("--not_rand", "not_rand_crop", True),
        ("--keep", "keep_res", True),
        ("--test", "test", True),
        ("--flip_t", "flip_test", True),
        ("--eval_oracle_of", "eval_oracle_offset", True),
        ("--dense_w", "dense_wh", True),
    ],
)
def test_abbreviations(short, name, value):
    assert getattr(parse(short), name) == value


@pytest.mark.parametrize("short", ["--num", "--dense", "--eval_oracle"])
def test_ambiguous_abbreviations(short, capsys, monkeypatch):
    assert "ambiguous" in fails(capsys, monkeypatch, "ctdet", short)


def understood(parser, name, text):
    """The options that ``--text`` sets, when ``--name`` takes the value; none when it is refused."""
    action = parser._option_string_actions[f"--{name}"]
    unset = dict.fromkeys(vars(parser.parse_args(["ctdet"])))
    for value in [None] if action.nargs == 0 else [action.choices[-1]] if action.choices else ["3", "0.5"]:
        given = argparse.Namespace(**unset)
        try:
            parser.parse_args(["ctdet", f"--{text}", *([] if value is None else [value])], given)
        except SystemExit:
            continue
        return {option for option, value in vars(given).items() if value is not None} - {"task"}
    return set()


def test_every_abbreviation_of_the_reference_still_works():
    """No option that the reference does not have may make one of its abbreviations ambiguous."""
    parser, broken = opts().parser, []
    for name in DEFAULTS:
        assert understood(parser, name, name) == {name}
        for end in range(1, len(name)):
            prefix = name[:end]
            if prefix not in DEFAULTS and sum(other.startswith(prefix) for other in (*DEFAULTS, "help")) == 1:
                if understood(parser, name, prefix) != {name}:
                    broken.append(prefix)
    assert broken == []


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [("0", [0]), ("3", [0]), ("2,3", [0, 1]), ("0,1,2,3", [0, 1, 2, 3]), ("-1", [-1])],
)
def test_gpus_are_logical_ids(gpus, expected):
    opt = parse("--gpus", gpus)
    assert opt.gpus == expected
    assert opt.gpus_str == gpus


def test_lists_become_numbers():
    opt = parse("--lr_step", "45,60", "--test_scales", "0.5,0.75,1,1.25")
    assert opt.lr_step == [45, 60]
    assert opt.test_scales == [0.5, 0.75, 1.0, 1.25]
    assert parse().lr_step == [90, 120]
    assert parse().test_scales == [1.0]
    assert parse("--lr_step", "").lr_step == []


def test_resolution_modes():
    assert parse().fix_res is True
    assert parse("--keep_res").fix_res is False


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], (True, True, True, True)),
        (["--not_reg_offset"], (False, True, True, True)),
        (["--not_reg_bbox"], (True, False, True, True)),
        (["--not_hm_hp"], (True, True, False, False)),
        (["--not_reg_hp_offset"], (True, True, True, False)),
    ],
)
def test_negations(args, expected):
    opt = parse(*args)
    assert (opt.reg_offset, opt.reg_bbox, opt.hm_hp, opt.reg_hp_offset) == expected


@pytest.mark.parametrize(
    ("arch", "head_conv", "pad", "num_stacks"),
    [
        *((f"{family}_{depth}", 64, 31, 1) for family in ("res", "resdcn") for depth in (18, 34, 50, 101, 152)),
        ("dla_34", 256, 31, 1),
        ("dlav0_34", 256, 31, 1),
        ("hourglass", 64, 127, 2),
    ],
)
def test_values_of_the_architecture(arch, head_conv, pad, num_stacks):
    opt = parse("--arch", arch)
    assert (opt.head_conv, opt.pad, opt.num_stacks) == (head_conv, pad, num_stacks)
    assert parse("--arch", arch, "--head_conv", "0").head_conv == 0
    assert parse("--arch", arch, "--head_conv", "32").head_conv == 32


def test_trainval_never_validates():
    assert parse("--trainval", "--val_intervals", "1").val_intervals == NEVER == 100000000
    assert parse("--val_intervals", "1").val_intervals == 1


def test_debug_takes_one_image_at_a_time():
    args = ["--gpus", "0,1", "--batch_size", "16", "--master_batch", "7", "--num_workers", "3"]
    opt = parse(*args, "--debug", "2")
    assert (opt.num_workers, opt.batch_size, opt.gpus) == (0, 1, [0])
    assert (opt.chunk_sizes, opt.master_batch_size) == ([1], 1)
    opt = parse(*args)
    assert (opt.num_workers, opt.batch_size, opt.gpus, opt.chunk_sizes) == (3, 16, [0, 1], [7, 9])


def test_folders():
    opt = parse("--exp_id", "night")
    assert opt.root_dir == str(ROOT)
    assert (ROOT / "src" / "centernet" / "opts.py").is_file()
    assert opt.data_dir == str(ROOT / "data")
    assert opt.exp_dir == str(ROOT / "exp" / "ctdet")
    assert opt.save_dir == str(ROOT / "exp" / "ctdet" / "night")
    assert opt.debug_dir == str(ROOT / "exp" / "ctdet" / "night" / "debug")
    assert opt.load_model == ""
    assert parse("--data_path", "/somewhere").data_dir == "/somewhere"
    assert parse("--exp_dir", "/runs", "--exp_id", "night").save_dir == str(Path("/runs") / "ctdet" / "night")


@pytest.mark.parametrize(
    ("exp_id", "folder"), [("foo", "foo"), ("foo_TEST", "foo_"), ("fooTEST", "foo"), ("TESTfoo", "TESTfoo")]
)
def test_resume_finds_the_last_checkpoint(exp_id, folder):
    opt = parse("--resume", "--exp_id", exp_id)
    assert opt.load_model == str(ROOT / "exp" / "ctdet" / folder / "model_last.pth")
    assert opt.save_dir == str(ROOT / "exp" / "ctdet" / exp_id)


def test_resume_from_a_named_checkpoint():
    opt = parse("--resume", "--exp_id", "fooTEST", "--load_model", "other.pth")
    assert opt.load_model == "other.pth"
    assert opt.resume


@pytest.mark.parametrize(
    ("args", "sizes"),
    [
        ([], (512, 512, 128, 128, 512, 128)),
        (["--dataset", "pascal"], (384, 384, 96, 96, 384, 96)),
        (["--input_res", "256"], (256, 256, 64, 64, 256, 64)),
        (["--input_res", "256", "--input_w", "320"], (256, 320, 64, 80, 320, 80)),
        (["--input_h", "384"], (384, 512, 96, 128, 512, 128)),
        (["--input_h", "96", "--input_w", "160"], (96, 160, 24, 40, 160, 40)),
    ],
)
def test_input_size(args, sizes):
    opt = parse(*args)
    assert (opt.input_h, opt.input_w, opt.output_h, opt.output_w, opt.input_res, opt.output_res) == sizes


@pytest.mark.parametrize(
    ("dataset", "classes", "max_objs", "mean", "std"),
    [
        ("coco", 80, 128, (0.40789654, 0.44719302, 0.47026115), (0.28863828, 0.27408164, 0.27809835)),
        ("pascal", 20, 50, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_values_of_the_data_set(dataset, classes, max_objs, mean, std):
    opt = parse("--dataset", dataset)
    assert (opt.num_classes, opt.max_objs) == (classes, max_objs)
    assert len(opt.class_names) == len(opt.category_ids) == classes
    for values, expected in ((opt.mean, mean), (opt.std, std)):
        assert values.shape == (1, 1, 3) and values.dtype == np.float32
        assert np.array_equal(values.reshape(3), np.float32(expected))


@pytest.mark.parametrize(
    ("args", "heads"),
    [
        ([], {"hm": 80, "wh": 2, "reg": 2}),
        (["--dataset", "pascal"], {"hm": 20, "wh": 2, "reg": 2}),
        (["--dataset", "pascal", "--cat_spec_wh"], {"hm": 20, "wh": 40, "reg": 2}),
        (["--dataset", "pascal", "--dense_wh"], {"hm": 20, "wh": 2, "reg": 2}),
        (["--not_reg_offset"], {"hm": 80, "wh": 2}),
    ],
)
def test_heads_of_ctdet(args, heads):
    assert list(parse(*args).heads.items()) == list(heads.items())


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ([], "task"),
        (["nonsense"], "nonsense"),
        (["ctdet", "--dataset", "nonsense"], "nonsense"),
        (["ctdet", "--arch", "dla_35"], "dla_35"),
        (["ctdet", "--arch", "res"], "res_18"),
        (["ctdet", "--arch", "hourglass_104"], "hourglass_104"),
        (["ctdet", "--no_such_option"], "no_such_option"),
        (["ctdet", "stray"], "stray"),
        (["ctdet", "--lr", "fast"], "fast"),
        (["ctdet", "--lr", "0"], "--lr"),
        (["ctdet", "--lr", "nan"], "--lr"),
        (["ctdet", "--lr", "inf"], "--lr"),
        (["ctdet", "--lr_step", "90,"], "--lr_step"),
        (["ctdet", "--lr_step", "ninety"], "ninety"),
        (["ctdet", "--batch_size", "0"], "--batch_size"),
        (["ctdet", "--batch_size", "2.5"], "2.5"),
        (["ctdet", "--batch_size"], "--batch_size"),
        (["ctdet", "--num_workers", "-1"], "--num_workers"),
        (["ctdet", "--num_epochs", "0"], "--num_epochs"),
        (["ctdet", "--num_iters", "0"], "--num_iters"),
        (["ctdet", "--num_iters", "-5"], "--num_iters"),
        (["ctdet", "--seed", "-1"], "--seed"),
        (["ctdet", "--seed", "9223372036854775808"], "from 0 to 9223372036854775807"),
        (["ctdet", "--K", "0"], "--K"),
        (["ctdet", "--debug", "5"], "--debug"),
        (["ctdet", "--flip", "1.5"], "--flip"),
        (["ctdet", "--wh_weight", "-1"], "--wh_weight"),
        (["ctdet", "--gpus", "a"], "--gpus"),
        (["ctdet", "--gpus", ""], "--gpus"),
        (["ctdet", "--test_scales", ""], "--test_scales"),
        (["ctdet", "--test_scales", "1,0"], "--test_scales"),
        (["ctdet", "--test_scales", "1,x"], "--test_scales"),
        (["ctdet", "--test_scales", "1,inf"], "--test_scales"),
        (["ctdet", "--test_scales", "1,nan"], "--test_scales"),
        (["ctdet", "--reg_loss", "l2"], "l2"),
        (["ctdet", "--debugger_theme", "gray"], "gray"),
        (["ctdet", "--down_ratio", "8"], "--down_ratio"),
        (["ctdet", "--input_res", "100"], "100"),
        (["ctdet", "--input_h", "384", "--arch", "hourglass", "--input_w", "500"], "500"),
        (["ctdet", "--master_batch_size", "0"], "--master_batch_size"),
        (["ctdet", "--master_batch_size", "33"], "--master_batch_size"),
        (["ctdet", "--exp_id", "a/b"], "--exp_id"),
        (["ctdet", "--exp_id", ".."], "--exp_id"),
        (["ctdet", "--exp_id", ""], "--exp_id"),
        (["ctdet", "--resume", "--test"], "--resume"),
        (["ctdet", "--fix_res", "--keep_res"], "--keep_res"),
        (["ctdet", "--dense_wh", "--cat_spec_wh"], "--dense_wh"),
        (["ctdet", "--norm_wh", "--dense_wh"], "--norm_wh"),
        (["ctdet", "--norm_wh", "--cat_spec_wh"], "--norm_wh"),
        (["ctdet", "--eval_oracle_wh", "--dense_wh"], "--eval_oracle_wh"),
        (["ctdet", "--eval_oracle_wh", "--cat_spec_wh"], "--eval_oracle_wh"),
        (["ctdet", "--eval_oracle_offset", "--not_reg_offset"], "--eval_oracle_offset"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_errors_end_with_one_line(args, word, capsys, monkeypatch):
    assert word in fails(capsys, monkeypatch, *args)


def test_only_the_first_process_reports_an_error(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    for world_size, lines in (("2", 0), ("1", 1)):  # in a single process the variable was left behind
        monkeypatch.setenv("WORLD_SIZE", world_size)
        with pytest.raises(SystemExit) as end:
            parse("--lr", "0")
        assert end.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_arguments_of_the_process(monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py", "ctdet", "--batch_size", "12"])
    assert opts().parse().batch_size == 12
    assert opts().parse(["ctdet", "--batch_size", "13"]).batch_size == 13
    assert opts().init(["ctdet", "--dataset", "pascal"]).num_classes == 20


def test_notes_name_options_of_other_tasks():
    parser = opts()
    notes = parser.notes(parser.parse(["ctdet", "--dense_wh", "--aug_ddd", "0.1", "--agnostic_ex"]))
    assert len(notes) == 2
    assert all("\n" not in note for note in notes)
    assert any("--aug_ddd" in note for note in notes) and any("--agnostic_ex" in note for note in notes)
    assert parser.notes(parser.parse(["ctdet", "--norm_wh"])) == []


def test_a_home_directory_that_the_shell_has_left_in_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    opt = opts().parse(["ctdet", "--load_model=~/a.pth", "--exp_dir=~/runs", "--data_path=~", "--pretrained=~/b.pth"])
    assert (opt.load_model, opt.pretrained) == ("/home/me/a.pth", "/home/me/b.pth")
    assert (opt.save_dir, opt.data_dir) == ("/home/me/runs/ctdet/default", "/home/me")


@pytest.mark.parametrize("word", ["--local-rank=1", "--local_rank=0"])
def test_arguments_of_torch_distributed_launch_are_accepted(word):
    opt = opts().parse([word, "ctdet", "--lr", "1e-3"])
    assert (opt.lr, opt.given) == (1e-3, ["lr", "task"]) and not hasattr(opt, "local_rank")


def test_the_demo_of_3d_boxes_names_its_camera(tmp_path):
    camera = tmp_path / "camera.txt"
    camera.write_text("700 0 320 0 700 240 0 0 1\n")
    parser = opts("demo.py")
    (note,) = parser.notes(parser.parse(["ddd", "--demo", "a.png"]))
    assert note.startswith("note: without --calib, depths and locations are")
    assert parser.notes(parser.parse(["ddd", "--demo", "a.png", "--calib", str(camera)])) == []
    assert parser.notes(parser.parse(["ddd"]), "test.py") == []


def test_recipe_holds_what_changes_the_curve():
    """Two runs are comparable when only their names, workers and devices differ."""
    same = recipe(parse("--exp_id", "a", "--num_workers", "0", "--load_model", "/one/x.pth"))
    assert same == recipe(parse("--exp_id", "b", "--gpus", "0,1", "--load_model", "/two/x.pth"))
    for args in (["--lr", "1e-4"], ["--batch_size", "16"], ["--flip", "0"], ["--wh_weight", "1"], ["--seed", "1"]):
        assert recipe(parse("--load_model", "/one/x.pth", *args)) != same
