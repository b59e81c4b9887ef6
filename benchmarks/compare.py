"""Two runs of ``benchmarks/peers.py --json`` or ``portable-rnn bench --json`` side by side.

Run ``python benchmarks/compare.py OLD.json NEW.json``. It prints this library's ratios to torch and to the floor (the
matrix products alone, at the rate measured in the same run), and exits with 1 where one grew by more than 15 %, with 2
where the files don't fit. ``benchmarks/history/`` has a file for each release.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from portable_rnn.bench.command import read_json
from portable_rnn.bench.report import SLOWER, compare
from portable_rnn.errors import InputError


def main(argv: list[str] | None = None) -> int:
    """Print the comparison; the exit code says whether something became slower."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--limit", type=float, default=SLOWER, help="by how much a ratio may grow (%(default)s)")
    args = parser.parse_args(argv)
    try:
        old, new = read_json(args.old), read_json(args.new)
        text, slower = compare(old, new, args.limit)
    except InputError as error:
        print(f"compare.py: error: {error}", file=sys.stderr)
        return 2
    for key in ("machine", "versions", "settings"):
        if old[key] != new[key]:
            print(f"{key}: {old[key]}\n      -> {new[key]}")
    print(text)
    print("\n".join(["", "Slower:", *slower] if slower else ["", "Nothing became slower."]))
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
