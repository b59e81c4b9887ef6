"""Read pytest's junit XML: fail where a test was skipped without an allowed reason, or where no test ran.

``check_skips.py REPORT [--allow REGEX ...]`` checks against the expressions given and those in allowed_skips.txt;
``check_skips.py REPORT --summary NAME`` prints one line of counts.
"""

from __future__ import annotations

import argparse
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ALLOWED = Path(__file__).with_name("allowed_skips.txt")


def outcomes(report: Path) -> tuple[Counter[str], Counter[str]]:
    """How many tests ended how, and how often each reason for a skip was given."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
        elif skip is None:
            counts["passed"] += 1
        elif skip.get("type") != "pytest.xfail":
            counts["skipped"] += 1
            message = skip.get("message") or ""
            if message == "collection skipped":  # of a whole module: the reason is in the text alone
                message = skip.text or ""
            reasons[message.strip().partition("\n")[0]] += 1  # below the first line: hypothesis's example
    return counts, reasons


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--allow", action="append", default=[], metavar="REGEX")
    parser.add_argument("--summary", metavar="NAME")
    options = parser.parse_args()
    counts, reasons = outcomes(options.report)
    if options.summary:
        numbers = ", ".join(f"{counts[key]} {key}" for key in ("passed", "failed", "skipped"))
        print(f"{options.summary}: {numbers}")
        return 0
    lines = ALLOWED.read_text(encoding="utf-8").splitlines()
    patterns = [*options.allow, *(line for line in lines if line and not line.startswith("#"))]
    bad = [r for r in reasons if not r or not any(re.search(pattern, r) for pattern in patterns)]
    for reason, count in reasons.most_common():
        print(f"{'REFUSED' if reason in bad else 'allowed'}: {count} skipped: {reason or 'without a reason'}")
    if not counts["passed"]:
        print("no test passed: expected some")
    return 1 if bad or counts["failed"] or not counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
