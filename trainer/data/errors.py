"""What can be wrong with one file among many, and with all of them together."""

from __future__ import annotations


def printable(text: object) -> str:
    """A path or text as it can be printed: file names need not be UTF-8, what is printed must."""
    return str(text).encode(errors="backslashreplace").decode()


class UnsuitableError(ValueError):
    """Data that the options do not fit, so that nothing of an output can be gone on with."""


class BrokenFileError(ValueError):
    """A file that cannot be read or decoded; where many are converted, it is named and counted."""

    def __init__(self, where: str, what: str, reason: object, remedy: str | None = None) -> None:
        reason = " ".join(str(reason).split()) or type(reason).__name__
        remedy = remedy or "replace it, or remove it with its label"
        super().__init__(f"dataset: {where} must be {what}, got {reason}; {remedy}")
        self.where, self.reason = where, reason

    def __reduce__(self) -> tuple[type[ValueError], tuple[str]]:
        return ValueError, (str(self),)
