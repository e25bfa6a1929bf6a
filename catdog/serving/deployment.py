"""The Ray Serve application: replicas of the model that batch requests, one that explains, and the app before them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from catdog.data import images, isolation
from catdog.inference import engines, novelty
from catdog.inference.bundle import SavedBundle, merge_infos
from catdog.inference.explanation import Explainer
from catdog.inference.predictor import Predictor
from catdog.serving.app import build_app
from catdog.serving.backend import Predicted, draw
from catdog.serving.config import Limits, Replicas
from catdog.serving.errors import RefusedError
from catdog.serving.pictures import Pictures

NAME = "catdog"
# The longest that a picture waits for others; while one batch is computed, the next one gathers anyway.
_WAIT_SECONDS = 0.004
# Few, because all pictures of a batch are answered when its last one is.
_BATCH = 16
_READY_SECONDS = 5.0


class Model:
    """A replica of the model; requests that arrive together are predicted together.

    Their files are decoded in another process, because one that crashes its decoder would take those of all others
    with it.
    """

    def __init__(self, bundles: list[SavedBundle], replicas: Replicas, seconds: float) -> None:
        if replicas.engine == "tensorflow":
            engines.set_up(replicas.threads, replicas.gpu)
        images.use_one_thread()
        self._predictor = Predictor.load(bundles, replicas.engine, replicas.threads, replicas.batch_size)
        known = all(map(novelty.has_statistics, bundles))
        self._scorer = novelty.NoveltyScorer(bundles) if known else None
        # One, because a predictor is for one thread at a time; and not the event loop's, which must stay responsive.
        self._thread = ThreadPoolExecutor(1)
        self._decoder = isolation.IsolatedDecoder(self._predictor.sizes, seconds)
        self._decoder.start()

    @serve.batch(max_batch_size=_BATCH, batch_wait_timeout_s=_WAIT_SECONDS)
    async def predict(self, files: list[bytes | str]) -> list[Predicted]:
        """Predicts one file; Serve gathers the files of several calls.

        Args:
            files: N files; the caller gives one.

        Returns:
            N; the caller gets one.
        """
        predict, decode = self._predictor.predict_files, self._decoder.decode_batch
        found = await asyncio.get_running_loop().run_in_executor(self._thread, predict, files, decode)
        rows = zip(found.logits.tolist(), found.probabilities.tolist(), found.statuses, found.details, strict=True)
        return [Predicted(*row, batch=len(files)) for row in rows]

    async def novelty(self, data: bytes) -> float | None:
        """Measures how far a readable file is from the training photos; None if nothing is known about them."""
        if self._scorer is None:
            return None
        scores = await asyncio.get_running_loop().run_in_executor(self._thread, self._scorer.scores, [data])
        return float(scores[0])

    async def ready(self) -> bool:
        """Answers once the model is loaded."""
        return True


class Explanations:
    """The replica that explains. It is started by the first request for it, and ended when nobody asks any more."""

    def __init__(self, bundles: list[SavedBundle]) -> None:
        engines.set_up(threads=1, gpu=False)
        images.use_one_thread()
        self._explainer = Explainer.load(bundles)
        self._thread = ThreadPoolExecutor(1)

    async def explain(self, data: bytes, label: int) -> bytes:
        """Draws over a picture what speaks for a class.

        Args:
            data: the bytes of a readable file.
            label: of the class.

        Returns:
            A JPEG file.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, draw, self._explainer, data, label)


class Ingress:
    """The replica that runs the app."""

    def __init__(
        self,
        model: DeploymentHandle,
        explanations: DeploymentHandle,
        bundles: list[SavedBundle],
        limits: Limits,
        pictures: Pictures | None,
        hosts: list[str] | None,
    ) -> None:
        images.use_one_thread()
        info = merge_infos([each.info for each in bundles])
        self._app = build_app(RayBackend(model, explanations), info, limits, pictures, hosts)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app


class RayBackend:
    """Replicas of Ray Serve as the app's backend."""

    def __init__(self, model: DeploymentHandle, explanations: DeploymentHandle) -> None:
        self._model = model
        self._explanations = explanations

    async def predict(self, files: list[bytes]) -> list[Predicted]:
        """Predicts files; each is one call, so that those of several requests can be gathered.

        Raises:
            RefusedError: there is too much to do, or nobody to do it.
        """
        return await _answer_of(asyncio.gather(*(self._model.predict.remote(data) for data in files)))

    async def novelty(self, data: bytes) -> float | None:
        """Measures how far a readable file is from the training photos.

        Raises:
            RefusedError: there is too much to do, or nobody to do it.
        """
        score: float | None = await _answer_of(self._model.novelty.remote(data))
        return score

    async def explain(self, data: bytes, label: int) -> bytes:
        """Draws over a picture what speaks for a class.

        Raises:
            RefusedError: there is too much to do, or nobody to do it.
        """
        drawn: bytes = await _answer_of(self._explanations.explain.remote(data, label))
        return drawn

    async def require_ready(self) -> None:
        """Makes sure that a replica of the model answers.

        Raises:
            RefusedError: none does.
        """
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await _answer_of(self._model.ready.remote())
        except TimeoutError as error:
            raise RefusedError(503, "no replica of the model answers; try again later") from error


async def _answer_of(call: Any) -> Any:
    try:
        return await call
    except BackPressureError as error:
        raise RefusedError(429, "too many pictures are waiting; try again in a second") from error
    except (RayError, DeploymentUnavailableError) as error:
        raise RefusedError(503, f"a replica failed ({type(error).__name__}); try again in a second") from error


def logging_config(debug: bool) -> LoggingConfig:
    """What Ray Serve writes into its log."""
    return LoggingConfig(log_level="INFO" if debug else "ERROR", enable_access_log=debug)


def application(
    bundles: list[SavedBundle],
    replicas: Replicas,
    limits: Limits,
    pictures: Pictures | None = None,
    hosts: list[str] | None = None,
    debug: bool = False,
) -> serve.Application:
    """Describes the application for `serve.run`.

    Args:
        bundles: the model; the logits of several are averaged.
        replicas: how it is started.
        limits: of requests.
        pictures: where random pictures come from; None for nowhere.
        hosts: names that requests may use for this server; None is any.
        debug: write everything into Ray's log.
    """
    common: dict[str, Any] = {
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": 2,
        "max_constructor_retry_count": 2,
        "logging_config": logging_config(debug),
    }
    model = serve.deployment(
        Model,
        ray_actor_options={"num_gpus": 1, "num_cpus": 0} if replicas.gpu else {"num_cpus": replicas.threads},
        max_ongoing_requests=2 * _BATCH,
        # Requests are counted in the app, which answers 429; so none is to be refused here.
        max_queued_requests=limits.requests * limits.files,
        autoscaling_config={
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": _BATCH / 2,
            "upscale_delay_s": 3,
            "downscale_delay_s": 60,
            "look_back_period_s": 15,
        },
        **common,
    )
    # The model's replicas may take every CPU, so that these two must need none.
    explanations = serve.deployment(
        Explanations,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=2,
        max_queued_requests=limits.requests,
        autoscaling_config={"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": 600, "upscale_delay_s": 0},
        **common,
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=10 * limits.requests + 1000,
        **common,
    )
    loaded = model.bind(bundles, replicas, limits.seconds)
    return ingress.bind(loaded, explanations.bind(bundles), bundles, limits, pictures, hosts)
