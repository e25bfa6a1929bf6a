"""One scoring run on Ray Data: a catalog and a bundle in, Parquet parts, the CSV and the report out."""

from catdog.exports import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "ScoreConfig": "config",
        "ScoreResult": "results",
        "read_parts": "results",
        "score_dataset": "score",
    },
)
