"""What the command line reports in one line instead of a traceback."""

READ_NAMED_DATA = "--read-named-data"
"""The option that lets the commands that read records from anywhere read a text from where a record says it lies."""


class InputError(Exception):
    """The user gave something that cannot work.

    The message is one line that says what was given, what was expected and what to do next. The command line
    prints it and exits with code 2.
    """


class NotWrittenError(InputError):
    """A file cannot be written, for instance because the disk is full."""


class DamagedError(InputError):
    """A file that this package has written does not hold what it wrote."""


class MissingQuantityError(InputError, KeyError):
    """A run's record does not hold what is asked of it."""

    __str__ = Exception.__str__  # that of KeyError quotes the message


class TrainingStoppedError(Exception):
    """Training cannot go on, for instance because the loss is not finite; the record so far is kept."""


def printable(text: str) -> str:
    """``text`` as a terminal may show it: control characters and half characters are written out, such as ``\\x1b``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_line(error: BaseException) -> str:
    """What ``error`` says, in one line."""
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__


def refusal(error: Exception) -> Exception:
    """The refusal that caused ``error``, where Hydra reports it as a failure of its own; otherwise ``error``."""
    return error.__cause__ if isinstance(error.__cause__, InputError) else error


def one_line(error: Exception) -> str:
    """What ``error`` says, or the refusal that caused it, without line breaks."""
    return " ".join(str(refusal(error)).split())
