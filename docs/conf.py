"""How Sphinx builds the pages in this folder: `sphinx-build -W -b html docs docs/_build`."""

from __future__ import annotations

import re
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "autoguide_fast"
author = "the autoguide_fast authors"
release = version = installed_version("autoguide_fast")
html_title = f"autoguide_fast {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
napoleon_use_rtype = False
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

# Sections of Google's style that napoleon knows, under which lines are indented without being code.
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note):$")
_LETTER = re.compile(r": (\w)\.$", re.MULTILINE)  # "weight: w." is no list
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)(\w?)")


def _as_restructured_text(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Turn what docstrings have of Markdown, code in backticks and indented code, into Sphinx's.

    Sphinx takes one backtick for a reference, and wants no letter after it, as in `Step`s.
    """
    text = _CODE.sub(lambda m: f"``{m[1]}``" + (f"\\ {m[2]}" if m[2] else ""), "\n".join(lines))
    text = _LETTER.sub(r": \\\1.", text)
    found: list[str] = []
    above = ""  # the last line that is not indented
    for line in text.split("\n"):
        starts_block = line.startswith("    ") and found and not found[-1].strip()
        if starts_block and not _SECTION.match(above):
            found += ["::", ""]
            above = "Note:"  # until the next line that is not indented
        if line and not line.startswith(" "):
            above = line
        found.append(line)
    lines[:] = found


def setup(app: Sphinx) -> None:
    """Called by Sphinx; before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=400)
