"""--save_init and --load_model: trainings on two machines start from the same weights."""

import torch
from tests.helpers.training import losses, small


def test_a_training_from_saved_initial_weights_is_the_same(main, tmp_path, tiny_voc):
    init = tmp_path / "init.pth"
    more = ("--num_epochs", "1", "--val_intervals", "0", "--device", "cpu")
    prepared = main(*small(tmp_path / "a", tiny_voc, *more, "--save_init", str(init), "--prepare_only"))
    assert prepared.returncode == 0 and f"initial weights: {init}" in prepared.stdout, prepared.stderr
    assert not (tmp_path / "a/exp").exists()
    content = torch.load(init, weights_only=True)
    assert content["epoch"] == 0 and content["model"]["arch"] == "res_18" and "optimizer" not in content
    for name, start in (("a", ()), ("b", ("--load_model", str(init))), ("c", ("--load_model", str(init)))):
        done = main(*small(tmp_path / name, tiny_voc, *more, *start))
        assert done.returncode == 0, done.stderr
    curves = {name: losses(tmp_path / name / "exp/ctdet/default") for name in "abc"}
    assert curves["a"] == curves["b"] == curves["c"] and len(curves["a"]) == 4
    # Another seed gives another start, unless the start is loaded.
    for name, start in (("d", ()), ("e", ("--load_model", str(init), "--save_init", str(tmp_path / "again.pth")))):
        done = main(*small(tmp_path / name, tiny_voc, *more, "--seed", "5", "--prepare_only", *start))
        assert done.returncode == 0, done.stderr
    again = torch.load(tmp_path / "again.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(value, again[name]) for name, value in content["state_dict"].items())


def test_it_is_for_new_trainings(main, tmp_path, tiny_voc):
    for more in (["--resume"], ["--test"]):
        done = main(*small(tmp_path, tiny_voc, "--save_init", str(tmp_path / "a.pth"), *more))
        assert done.returncode == 2 and "--save_init" in done.stderr and not (tmp_path / "a.pth").exists()
