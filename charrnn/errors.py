"""What can go wrong and is not a bug.

The library raises these; the command line prints the message as one line and exits with
``exit_code``. A message says what was given, what is allowed and what to do.
"""

from __future__ import annotations


class CharRNNError(Exception):
    """Base of every error that a user can cause or cure."""

    exit_code = 2


class InputError(CharRNNError):
    """A wrong option, text, checkpoint or path. Nothing has been written."""


class Diverged(CharRNNError):
    """The loss or the gradient is no longer finite; the last good checkpoint is kept."""

    exit_code = 3


class SaveError(CharRNNError):
    """A checkpoint or log could not be written; the one before is whole."""

    exit_code = 4
