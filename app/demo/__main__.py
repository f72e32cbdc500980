"""Where `make demo` begins: with Ctrl-C answered, before anything is loaded that takes a second."""

from __future__ import annotations

import sys

from app.demo import ending


def main() -> int:
    """Run the demo and return its exit status; Ctrl-C ends it with 0 at any time."""
    ending.take_the_terminal()
    ending.listen()
    try:
        from app.demo.show import main as show  # noqa: PLC0415 - it takes a second, in which Ctrl-C may come

        return show()
    except KeyboardInterrupt:
        return 0
    finally:
        ending.give_the_terminal_back()


if __name__ == "__main__":
    sys.exit(main())
