"""`python -m agent` and the console script."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Load the command line and run it. The imports are inside, so that Ctrl-C during them ends quietly too."""
    try:
        from agent.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # The process is about to end: a last search for garbage in all that was loaded would take up to 0.2 s and free nothing.
        gc.freeze()


if __name__ == "__main__":
    main()
