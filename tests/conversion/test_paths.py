"""Files are found by paths from other machines, and only inside the dataset."""

from pathlib import Path

import pytest

from centernet.conversion.paths import PathFinder, is_hidden, plain_parts, readings, walk


@pytest.fixture
def root(tmp_path):
    for name in ("images/a.jpg", "images/sub/b.jpg", "c.jpg", "other/images/d.jpg", "odd\\name.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.jpg", "images/a.jpg"),
        ("c.jpg", "c.jpg"),
        ("images/a.jpg", "images/a.jpg"),
        ("./images/../images/a.jpg", "images/a.jpg"),
        ("images\\sub\\b.jpg", "images/sub/b.jpg"),
        ("D:\\x\\y\\images\\sub\\b.jpg", "images/sub/b.jpg"),
        ("D:a.jpg", "images/a.jpg"),
        ("/content/set/sub/b.jpg", "images/sub/b.jpg"),
        ("../../../set/c.jpg", "c.jpg"),
        ("images", "images"),
        ("odd\\name.jpg", "odd\\name.jpg"),
        ("b.jpg", None),
        ("d.jpg", None),
        ("wrong/b.jpg", None),
        ("", None),
        (".", None),
        ("..", None),
        ("/", None),
        ("a\0.jpg", None),
        ("x" * 9000, None),
        ("~nobody/a.jpg", "images/a.jpg"),
    ],
)
def test_what_is_found(root, text, found):
    finder = PathFinder([root / "images", root])
    assert finder.find(text) == (None if found is None else root / found)


def test_nothing_outside_is_found_by_a_relative_path(root):
    (root.parent / "outside.jpg").write_text("")
    finder = PathFinder([root / "images"])
    for text in ("../../outside.jpg", "..\\..\\outside.jpg", "../c.jpg", "images/../../c.jpg"):
        assert finder.find(text) is None
    assert finder.find(str(root.parent / "outside.jpg")) == root.parent / "outside.jpg"  # of this machine


def test_a_folder_is_listed_once(root, monkeypatch):
    import os

    listed, original = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or original(path))
    finder = PathFinder([root / "images", root])
    for _ in range(100):
        assert finder.find("/content/images/a.jpg")
    assert len(listed) == len(set(listed)) < 10


SPELLINGS = ("images/E\u0301.jpg", "images/x.JPG", "images/y.JPG", "images/y.Jpg", "images/z.jpg", "images/z.JPG")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\u00c9.jpg", "images/E\u0301.jpg"),
        ("images/\u00c9.JPEG", None),
        ("x.jpg", "images/x.JPG"),
        ("set/images/x.Jpg", "images/x.JPG"),
        ("X.jpg", None),  # the extension only
        ("y.jpg", None),  # fits two
        ("z.jpg", "images/z.jpg"),
        ("z.JPG", "images/z.JPG"),
        ("images/%7a.jpg", "images/z.jpg"),
        ("100%25.jpg", "100%25.jpg"),
        ("%2e%2e/c.jpg", "c.jpg"),
        ("z.jpg%00", "images/z.jpg"),
    ],
)
def test_other_spellings(root, text, found):
    for name in (*SPELLINGS, "100%25.jpg", "100%.jpg"):
        (root / name).write_text("")
    finder = PathFinder([root / "images", root])
    assert finder.find(text) == (None if found is None else root / found)
    if "%" not in text and text[0] not in "z":
        assert finder.find(text, other_spellings=False) is None


def test_readings():
    assert readings("a b?.jpg") == ["a b?.jpg"]
    assert readings("/data/local-files/?d=a/b%20c.jpg")[1:] == ["a/b%20c.jpg", "a/b c.jpg"]
    assert readings("https://h/a%20b.jpg?x=1")[1:] == ["https://h/a%20b.jpg", "https://h/a b.jpg"]


def test_parts():
    assert plain_parts("C:\\set\\images\\a.png") == plain_parts("/set/images/a.png") == ["set", "images", "a.png"]
    assert plain_parts("../set//./images/a.png") == ["set", "images", "a.png"]


def test_walk_follows_links_once_and_leaves_hidden_files_out(root):
    (root / "images/loop").symlink_to(root, target_is_directory=True)
    (root / ".hidden").mkdir()
    (root / ".hidden/e.jpg").write_text("")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX/f.jpg").write_text("")
    hidden: list[Path] = []
    files = list(walk(root, hidden))
    assert len(files) == len({path.resolve() for path in files}) == 5
    assert sorted(path.name for path in hidden) == ["e.jpg", "f.jpg"]
    assert is_hidden("._a.jpg") and not is_hidden("a.b.jpg")
