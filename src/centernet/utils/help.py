"""Help texts of the programs in the width of the terminal."""

import argparse
import copy
import textwrap
from itertools import groupby
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


class HelpFormatter(argparse.HelpFormatter):
    """Fills the paragraphs of descriptions, and continues long commands, which are indented, with a backslash.

    Words are never broken. Default paths are shown relative to the repository or to the current directory.
    """

    def _expand_help(self, action: argparse.Action) -> str:
        if isinstance(action.default, Path):
            action = copy.copy(action)
            action.default = _relative(action.default)
        return super()._expand_help(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for is_command, part in groupby(text.strip().splitlines(), lambda line: line[:1].isspace() or not line.strip()):
            if is_command:
                for line in part:
                    lines += _continued(line.rstrip(), width)
            else:
                lines += textwrap.wrap(" ".join(part), width, break_long_words=False, break_on_hyphens=False)
        return "\n".join(indent + line for line in lines)


def _relative(path: Path) -> Path:
    folder = next((folder for folder in (REPOSITORY, Path.cwd()) if path.is_relative_to(folder)), None)
    return path.relative_to(folder) if folder else path


def _continued(command: str, width: int) -> list[str]:
    """Return an indented command as lines of at most ``width`` characters, where its words allow it."""
    indent = command[: len(command) - len(command.lstrip())]
    lines = textwrap.wrap(
        command.strip(),
        width - 2,  # for the backslash
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:] or [""]
