"""Results for people: the report, and the Kaggle file, written and checked."""

from catdog.exports import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "Report": "report",
        "build_report": "report",
        "check_submission": "submission",
        "write_submission": "submission",
    },
)
