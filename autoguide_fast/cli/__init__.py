"""The command `autoguide-fast`: one module per subcommand, plugins by entry point."""

from autoguide_fast.cli.entry import main

__all__ = ["main"]
