"""The command ``charrnn``, and ``python -m charrnn``."""

import signal


def main() -> None:
    """Run the command line. Ctrl-C while its modules are read ends the process without a word."""
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # if not ignored
    if raises:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from charrnn.cli import cli

    if raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli(prog_name="charrnn")


if __name__ == "__main__":
    main()
