"""From pixels to a probability: the saved model and the engines that run it, the same for every use."""

from catdog.exports import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "BundleInfo": "bundle",
        "ModelBundle": "bundle",
        "Predictions": "predictor",
        "Predictor": "predictor",
        "apply_view": "views",
    },
)
