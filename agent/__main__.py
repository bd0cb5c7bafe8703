"""`python -m agent` and the console script."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command line and run it. The imports are inside, so that Ctrl-C during them ends quietly too."""
    try:
        from agent.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
