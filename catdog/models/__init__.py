"""What can be trained: the registry of architectures, their pretrained weights, and batch-norm done faster."""

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
