"""Search for contents that break a reader of foreign files, guided by coverage; needs ``pip install atheris``.

    python tests/fuzzing/fuzz.py logs -max_total_time=600

Options after the target are libFuzzer's. A content that breaks the reader is saved in the current folder as
``crash-...`` (or ``timeout-``, ``oom-``) and belongs in ``FINDINGS`` of test_targets.py. Without a target all of them
are listed.
"""

import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / folder) for folder in ("", "src", "src/tools")]

import atheris  # noqa: E402  the path comes first

with atheris.instrument_imports(include=["centernet"]):
    from tests.fuzzing.targets import TARGETS, run, seeds

LIMITS = ["-timeout=20", "-rss_limit_mb=3000", "-max_len=4096"]


def main() -> None:
    """Fuzz one target."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz.py TARGET [option of libFuzzer ...]; targets: {', '.join(TARGETS)}")
    name = sys.argv[1]
    with tempfile.TemporaryDirectory() as temporary:
        folder, corpus = Path(temporary, "work"), Path(temporary, "corpus")
        folder.mkdir()
        corpus.mkdir()
        for k, content in enumerate(seeds(name, Path(temporary))):
            (corpus / f"seed_{k}").write_bytes(content)
        atheris.Setup([sys.argv[0], *LIMITS, *sys.argv[2:], str(corpus)], lambda content: run(name, folder, content))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
