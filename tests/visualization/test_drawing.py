import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from centernet.errors import UserError
from centernet.visualization import drawing as vis

THEMES = ("white", "black")


def gray(height=120, width=200):
    return np.full((height, width, 3), 90, dtype=np.uint8)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("num_classes", [0, 1, 20, 80, 1000])
def test_colors_differ(num_classes, theme):
    colors = vis.class_colors(num_classes, theme)
    assert colors.shape == (num_classes, 3)
    assert colors.dtype == np.uint8
    assert len({tuple(color) for color in colors.tolist()}) == num_classes
    assert colors.max(initial=0) <= (153 if theme == "white" else 255)
    np.testing.assert_array_equal(colors[:7], vis.class_colors(1500, theme)[: min(7, num_classes)])


def test_colors_of_the_themes_have_the_same_hue():
    for white, black in zip(vis.class_colors(30, "white"), vis.class_colors(30, "black"), strict=True):
        np.testing.assert_allclose(white, black * 0.6, atol=1)


def test_unknown_theme():
    with pytest.raises(UserError, match="pink"):
        vis.class_colors(3, "pink")
    with pytest.raises(UserError, match="pink"):
        vis.blend(gray(), gray(), "pink")


@pytest.mark.parametrize("theme", THEMES)
def test_heat_map_of_a_wide_image(theme):
    hm = np.zeros((3, 4, 10), dtype=np.float32)
    hm[0, 1, 8] = 1.0
    hm[2, 1, 8] = 0.25
    hm[1, 3, 0] = 0.5
    before = hm.copy()
    image = vis.heat_map_image(hm, theme, (40, 100))
    np.testing.assert_array_equal(hm, before)
    assert image.shape == (40, 100, 3)
    assert image.dtype == np.uint8
    colors = vis.class_colors(3, theme).astype(np.float32)
    if theme == "white":
        colors = 255 - colors
    small = vis.heat_map_image(hm, theme, (4, 10))
    np.testing.assert_allclose(small[1, 8], np.maximum(colors[0], 0.25 * colors[2]), atol=0.5)
    np.testing.assert_allclose(small[3, 0], 0.5 * colors[1], atol=0.5)
    assert small[0, 0].tolist() == [0, 0, 0]
    y, x = np.unravel_index(image.sum(axis=2).argmax(), (40, 100))
    assert (y // 10, x // 10) == (1, 8)


def test_heat_map_with_bad_values():
    hm = np.array([[[np.nan, np.inf, -3.0, 7.0]]], dtype=np.float32)
    image = vis.heat_map_image(hm, "black", (1, 4))
    color = vis.class_colors(1, "black")[0].tolist()
    assert image[0].tolist() == [[0, 0, 0], color, [0, 0, 0], color]


def test_blend_by_hand():
    image = np.full((2, 3, 3), 101, dtype=np.uint8)
    colored = np.full((2, 3, 3), 200, dtype=np.uint8)
    assert (vis.blend(image, colored, "black") == 170).all()  # 0.3 · 101 + 0.7 · 200 = 170.3
    assert (vis.blend(image, colored, "white") == 69).all()  # 0.3 · 101 + 0.7 · 55 = 68.8
    assert (image == 101).all()
    assert (colored == 200).all()


def test_white_theme_shows_the_color_on_white():
    hm = np.array([[[1.0, 0.0]]])
    white = np.full((1, 2, 3), 255, dtype=np.uint8)
    blended = vis.blend(white, vis.heat_map_image(hm, "white", (1, 2)), "white")
    np.testing.assert_allclose(blended[0, 0], 0.3 * 255 + 0.7 * vis.class_colors(1, "white")[0], atol=1)
    assert blended[0, 1].tolist() == [255, 255, 255]


def test_restore_image():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    mean = np.array([0.485, 0.456, 0.406], dtype=np.float32)
    std = np.array([0.229, 0.224, 0.225], dtype=np.float32)
    normalized = ((image / 255.0 - mean) / std).transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(vis.restore_image(normalized, mean, std), image)
    np.testing.assert_array_equal(vis.restore_image(normalized, mean.reshape(1, 1, 3), std.reshape(3, 1, 1)), image)
    assert vis.restore_image(np.full((3, 1, 1), 99.0), mean, std).tolist() == [[[255, 255, 255]]]
    assert vis.restore_image(np.full((3, 1, 1), -99.0), mean, std).tolist() == [[[0, 0, 0]]]


def test_saving(tmp_path, capsys):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert vis.show_or_save({"pred": image, "gt": 255 - image}, tmp_path / "new" / "debug", "12", show=False) == -1
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "new" / "debug" / "12pred.png")), image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "new" / "debug" / "12gt.png")), 255 - image)
    assert capsys.readouterr() == ("", "")


def test_no_display(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vis.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for prefix in ("1", "2"):
        vis.show_or_save({"out": gray()}, tmp_path, prefix, show=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1out.png", "2out.png"]
    assert capsys.readouterr().err == f"no display: images go to {tmp_path}\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such variables")
def test_a_display_that_cannot_be_reached(tmp_path, capsys, monkeypatch):
    """As after an SSH connection with X forwarding was closed: Qt would end the process."""
    monkeypatch.setenv("DISPLAY", ":7731")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not vis.has_display()
    vis.show_or_save({"out": gray()}, tmp_path, "", show=True)
    assert (tmp_path / "out.png").exists()
    assert capsys.readouterr().err == f"no display: images go to {tmp_path}\n"


def test_a_display_is_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(vis.sys, "platform", "linux")
    monkeypatch.setattr(
        vis.subprocess, "run", lambda command, **_: tried.append(command) or SimpleNamespace(returncode=0)
    )
    monkeypatch.setenv("DISPLAY", "one:7731")
    assert vis.has_display() and vis.has_display() and len(tried) == 1


def test_display(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(vis, "has_display", lambda: True)
    monkeypatch.setattr(vis.cv2, "imshow", lambda name, image: shown.append(name))
    monkeypatch.setattr(vis.cv2, "waitKey", lambda delay: 27 if delay == 0 else -1)
    assert vis.show_or_save({"a": gray(), "b": gray()}, tmp_path, "", show=True) == 27
    assert vis.show_or_save({"a": gray()}, tmp_path, "", show=True, delay=1) == -1
    assert shown == ["a", "b", "a"]
    assert not list(tmp_path.iterdir())


def test_opencv_without_windows(tmp_path, monkeypatch, capsys):
    def imshow(name, image):
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(vis, "has_display", lambda: True)
    monkeypatch.setattr(vis.cv2, "imshow", imshow)
    vis.show_or_save({"a": gray()}, tmp_path, "", show=True)
    assert (tmp_path / "a.png").exists()
    assert "no display" in capsys.readouterr().err


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a.png: cannot be written"):
        vis.show_or_save({"a": gray()}, tmp_path / "file", "", show=False)
