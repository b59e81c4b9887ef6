"""``python -m portable_rnn`` is ``portable-rnn``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
