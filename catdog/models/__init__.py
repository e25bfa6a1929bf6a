"""Models: the registry of architectures, pretrained weights, and faster batch-norm."""

from catdog.exports import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "ModelSpec": "registry",
        "build_model": "registry",
        "get_architecture": "registry",
        "get_architectures": "registry",
    },
)
