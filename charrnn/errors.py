"""What can go wrong and is not a bug.

The library raises these; the command line prints the message as one line and exits with
``exit_code``. A message says what was given, what is allowed and what to do.
"""

from __future__ import annotations

LONGEST = 1000  # characters of a message


class CharRNNError(Exception):
    """Base of every error that a user can cause or cure.

    A message may quote a file that nobody has looked at: it is made one line, not too long, without
    what would move a terminal's cursor.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        lines = " ".join(message.splitlines())
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in lines))


class InputError(CharRNNError):
    """A wrong option, text, checkpoint or path. Nothing has been written."""


class Ended(InputError):
    """The run has ended, and nothing that was asked for lets it go on.

    For the command line that is no error: who resumes a run until it has ended, in a loop, may kill
    it just behind its last line.
    """

    exit_code = 0


class Diverged(CharRNNError):
    """The loss or the gradient is no longer finite; the last good checkpoint is kept."""

    exit_code = 3


class SaveError(CharRNNError):
    """A checkpoint or log could not be written; the one before is whole."""

    exit_code = 4
