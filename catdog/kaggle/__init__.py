"""Data from the internet and submissions to Kaggle: archives downloaded, CSV files sent, scores awaited."""

from catdog.exports import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "download_archive": "download",
        "expected_score": "submission",
        "send_submission": "submission",
        "wait_for_score": "submission",
    },
)
