"""The command `autoguide-fast`: one module per subcommand, plugins by entry point."""

from .entry import main

__all__ = ["main"]
