"""Every fuzzing target takes its seeds, and what the fuzzer found."""

import pytest
from tests.fuzzing.targets import TARGETS, run, seeds

FINDINGS: list[tuple[str, bytes]] = []


@pytest.mark.parametrize("name", TARGETS)
def test_valid_contents_are_read(tmp_path, name):
    contents = seeds(name, tmp_path)
    assert contents
    (tmp_path / "work").mkdir()
    for content in contents:
        TARGETS[name][0](tmp_path / "work", content)


@pytest.mark.parametrize(("name", "content"), FINDINGS)
def test_findings(tmp_path, name, content):
    run(name, tmp_path, content)
