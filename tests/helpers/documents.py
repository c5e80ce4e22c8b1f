"""Code blocks of documents."""

from pathlib import Path


def blocks(path: Path) -> list[tuple[str, list[str]]]:
    """Language and lines of the fenced blocks."""
    found, inside = [], False
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            inside = not inside
            if inside:
                found.append((line[3:], []))
        elif inside:
            found[-1][1].append(line)
    return found
