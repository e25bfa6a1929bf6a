"""One training run on Ray Train: options and a catalog in, a model bundle out."""

from catdog.exports import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "RECIPES": "recipes",
        "TrainConfig": "request",
        "TrainResult": "train",
        "train_model": "train",
    },
)
