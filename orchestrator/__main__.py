"""The command line from its first moment on: `sfumato`, and `python -m orchestrator`."""

import sys


def main() -> None:
    """Entry point; Ctrl-C while packages are imported ends as it does later."""
    try:
        from orchestrator.cli import main as command_line
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
    command_line()


if __name__ == "__main__":
    main()
