"""What would hold a run back: from what is known of a cluster to one line for each problem, with what to do.

`hardware` and `software` have a function for each kind. None of them asks anything of the cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Something that would hold a run back.

    Attributes:
        kind: a short name, the same for all problems of a kind.
        text: one line: what was found, and what to do.
        stops: whether a run could not be made; else it would be slower, or exposed, or would wait.
    """

    kind: str
    text: str
    stops: bool = False


def node_names(names: Iterable[str]) -> str:
    """Nodes in a sentence: "node A", "nodes A and B", and of many the first three and how many more."""
    found = list(names)
    if len(found) > 4:
        return f"nodes {', '.join(found[:3])} and {len(found) - 3} others"
    return f"node{'s' * (len(found) > 1)} {' and '.join([', '.join(found[:-1]), found[-1]] if found[1:] else found)}"


def size_text(size: float) -> str:
    """Bytes in words, in binary units: /dev/shm, memory and GPUs are sold and set in these."""
    unit, word = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB") if size >= 2**20 else (2**10, "KiB")
    return f"{size / unit:.{1 if word == 'GiB' and size < 9.95 * unit else 0}f} {word}"
