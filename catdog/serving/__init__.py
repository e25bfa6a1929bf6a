"""The page and the API: a FastAPI app on Ray Serve, behind which the predictor of scoring answers."""

from catdog.exports import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "Limits": "config",
        "ServeConfig": "config",
        "application": "deployment",
        "build_app": "app",
        "running": "server",
    },
)
