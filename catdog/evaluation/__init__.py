"""Evaluation of predictions: metrics with their intervals, calibration, and the unbiased log loss of a choice."""

from catdog.exports import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "Figures": "metrics",
        "fit_calibration": "calibration",
        "loss_interval": "metrics",
        "losses": "metrics",
        "summarise": "metrics",
    },
)
