"""What becomes of files that are hard to read, by kind: broken, hostile, misnamed, huge.

    python benchmarks/bad_images.py

Each file of tests/bad_images.py is decoded in a process of its own, by the function that training and scoring call.
Prints Markdown.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bad_images import Decoding, decode_each, every_bad_file, find_faults, write

STATUSES = ("ok", "recovered", "unreadable")


def main() -> None:
    """Prints the table, and what ended as it should not."""
    files = list(every_bad_file())
    with tempfile.TemporaryDirectory() as folder:
        found = decode_each([write(bad, Path(folder)) for bad in files])
    by_kind: dict[str, list[Decoding]] = defaultdict(list)
    for bad, each in zip(files, found, strict=True):
        by_kind[bad.kind].append(each)
    print(f"| kind | files | {' | '.join(STATUSES)} | slowest, ms of a core | most memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for kind, each in [*by_kind.items(), (f"**all {len(by_kind)} kinds**", found)]:
        counts = Counter(one.status for one in each)
        slowest, most = max(one.seconds for one in each) * 1000, max(one.megabytes for one in each)
        numbers = " | ".join(str(counts[status]) for status in STATUSES)
        print(f"| {kind} | {len(each)} | {numbers} | {slowest:.0f} | {most:.0f} |")
    faults = find_faults(files, found)
    print(f"\nEnded as they should not: {len(faults)}")
    for name, each in faults:
        print(f"* {name!r}: {each}")


if __name__ == "__main__":
    main()
