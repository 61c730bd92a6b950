"""Code in Markdown files: Python examples, to be run, and command lines, to be parsed."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = "autoguide-fast"


class Example(NamedTuple):
    """A block of code in a page."""

    place: str  # FILE:LINE of its first line
    language: str
    code: str
    before: str  # the text between it and the block above

    def run(self, **names):
        """Run it with these names; returns those that it leaves behind."""
        self.run_in(names)
        return names

    def run_in(self, names):
        """Run it with the names that others left behind; adds its own to them."""
        exec(compile(self.code, self.place, "exec"), names)


def page(name):
    """The text of a file, by its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def examples(name, language=None):
    """The blocks of code of a page, or those of one language ("" for none), in order."""
    text, found, end = page(name), [], 0
    for match in re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, match.start(2)) + 1
        before, end = text[end : match.start()], match.end()
        found.append(Example(f"{name}:{line}", match[1], match[2], before))
    return [e for e in found if language is None or e.language == language]


def command_lines(name):
    """What this package's program is given in a page's blocks of code: lists of words."""
    blocks = [e.code.replace("\\\n", " ") for e in examples(name, "")]
    return [words for block in blocks for line in block.splitlines() if (words := _words(line))]


def mentioned_commands(name):
    """Likewise in its text, where what matters less is left out."""
    text = re.sub(r"^```.*?^```$", "", page(name), flags=re.DOTALL | re.MULTILINE)
    codes = re.findall(r"`([^`]+)`", text)
    return [words for code in codes if (words := _words(code.replace("\n", " ")))]


def _words(line):
    for start in (f"{PROGRAM} ", "-m autoguide_fast.cli "):
        _, found, rest = line.partition(start)
        if found:
            words = shlex.split(rest, comments=True)
            return [] if "..." in words else words
    return []
