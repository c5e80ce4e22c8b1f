"""Every fuzzing target reads its seeds, and reads or refuses what remains of them, and what the fuzzer found."""

import pytest
from tests.fuzzing.targets import TARGETS, run, seeds

FINDINGS: dict[str, list[bytes]] = {}  # by target


@pytest.mark.parametrize("name", TARGETS)
def test_valid_contents_are_read(tmp_path, name):
    contents = seeds(name, tmp_path)
    assert contents
    (tmp_path / "work").mkdir()
    for content in contents:
        TARGETS[name][0](tmp_path / "work", content)


@pytest.mark.parametrize("name", TARGETS)
def test_other_contents_are_read_or_refused(tmp_path, name):
    contents = [b"", *(content[: len(content) // 2] for content in seeds(name, tmp_path)), *FINDINGS.get(name, [])]
    (tmp_path / "work").mkdir()
    for content in contents:
        run(name, tmp_path / "work", content)
