"""Builds the command line, runs the subcommand, and turns user errors into one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import NoReturn

from ..files import reason, remedy
from . import convert, demo, grid, info, presets, report, sample

PROGRAM = "autoguide-fast"
PLUGIN_GROUP = "autoguide_fast.commands"
INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended

# What a user can cause: bad values, missing files, samples that turn NaN, a broken installation.
_USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, ImportError)

_EXAMPLES = """\
examples:
  autoguide-fast demo
  autoguide-fast sample --model digits --guidance 1.5 --seeds 0-63 --out samples/
  autoguide-fast info --json
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with this package's subcommands and those of installed plugins.

    A plugin is an entry point in the group `autoguide_fast.commands` that names a function
    `add_command(subparsers)`. It adds a parser and sets `run`, a function of the parsed arguments
    that returns an exit code or None.
    """
    parser = _Parser(
        prog=PROGRAM,
        description="Sample diffusion models with autoguidance, fast.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    parser.add_argument(
        "--traceback", action="store_true", help="show the whole traceback of an error"
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for module in (demo, sample, grid, report, presets, convert, info):
        module.add_command(subparsers)
    for plugin in sorted(entry_points(group=PLUGIN_GROUP), key=lambda plugin: plugin.name):
        try:
            plugin.load()(subparsers)
        except Exception as error:  # one broken plugin must not take the other commands with it
            print(
                f"{PROGRAM}: the command {plugin.name} cannot be loaded: {error}", file=sys.stderr
            )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 success, 2 user error, 130 interrupted.

    Args:
        argv: the arguments after the program's name; default: those of the process.
    """
    name, traceback = PROGRAM, False
    try:
        arguments = build_parser().parse_args(argv)
        name, traceback = f"{PROGRAM} {arguments.command}", arguments.traceback
        return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        return 0
    except _USER_ERRORS as error:
        if traceback:
            raise
        # A library function names itself first; do not say the command's name twice.
        message = _sentence(error).removeprefix(f"{name.removeprefix(PROGRAM).strip()}: ")
        print(f"{name}: {message}", file=sys.stderr)
        return 2


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:  # as the system raised it
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{reason(error)}; {remedy(error)}"
    return " ".join(str(error).split()) or type(error).__name__


def _version() -> str:
    try:
        return version("autoguide_fast")
    except PackageNotFoundError:
        return "(not installed)"
