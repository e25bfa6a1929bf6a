"""Many runs for one question: cross-validation, search over options, and the audit of labels."""

from catdog.exports import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "OutOfFold": "cross_validation",
        "cross_validate": "cross_validation",
        "run_search": "tuning",
    },
)
