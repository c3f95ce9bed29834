"""Errors that the command line reports in one line instead of a traceback."""

READ_NAMED_DATA = "--read-named-data"
"""The option that lets a command read text from the place that a record, of whatever origin, names."""


class InputError(Exception):
    """The user's input cannot work.

    The message is one line that says what was given, what was expected and what to do next. The command line
    prints it and exits with code 2.
    """


class NotWrittenError(InputError):
    """A file cannot be written, for instance because the disk is full."""


class DamagedError(InputError):
    """A file written by this package no longer holds what was written."""


class MissingQuantityError(InputError, KeyError):
    """A run's record does not hold the requested quantity."""

    __str__ = Exception.__str__  # KeyError's own quotes the message


class TrainingStoppedError(Exception):
    """Training cannot continue, for instance because the loss is not finite; the record so far is kept."""


def printable(text: str) -> str:
    """``text`` as a terminal may show it: control characters and lone surrogates are escaped, such as ``\\x1b``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_line(error: BaseException) -> str:
    """The first line of ``error``'s message, or the name of its type."""
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__


def refusal(error: Exception) -> Exception:
    """The `InputError` that caused ``error``, if Hydra wrapped one; otherwise ``error``."""
    return error.__cause__ if isinstance(error.__cause__, InputError) else error


def one_line(error: Exception) -> str:
    """The message of ``error``, or of its `refusal`, without line breaks."""
    return " ".join(str(refusal(error)).split())
