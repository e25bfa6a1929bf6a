"""Experiments of several runs: cross-validation, hyperparameter search and the label audit."""

from catdog.exports import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "OutOfFold": "cross_validation",
        "cross_validate": "cross_validation",
        "run_search": "tuning",
    },
)
