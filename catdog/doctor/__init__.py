"""What a cluster has, what training and scoring would make of it, and what would hold them back; nothing is written."""

from catdog.exports import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "Diagnosis": "examine",
        "Problem": "problems",
        "examine_cluster": "examine",
        "find_problems": "examine",
    },
)
