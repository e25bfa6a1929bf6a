"""What the server counts, in Prometheus's text format."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one server.

    Attributes:
        working: requests that are worked on.
        predicted: pictures by verdict and predicted class.
        batch: size of the batch that each picture was predicted in.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "catdog_requests", "Requests, by route and status code.", ["route", "code"], registry=self._registry
        )
        self._seconds = Histogram(
            "catdog_request_seconds",
            "Time from a request to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.working = Gauge("catdog_requests_working", "Requests that are worked on.", registry=self._registry)
        self.predicted = Counter(
            "catdog_pictures", "Pictures, by verdict and class.", ["status", "class_name"], registry=self._registry
        )
        self.batch = Histogram(
            "catdog_batch_images",
            "Size of the batch that a picture was predicted in.",
            buckets=_IMAGES,
            registry=self._registry,
        )

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts an answer.

        Args:
            scope: of the request; only known routes are named, so that visitors cannot make up names.
            status: the HTTP status code.
            seconds: from the request to its answer.
        """
        route = getattr(scope.get("route"), "path", "other")
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)
