"""The FastAPI app: its routes, the page, and its errors, each one line of JSON."""

from __future__ import annotations

import asyncio
import base64
import functools
import math
import time
from collections.abc import Collection
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from catdog import __version__
from catdog.data import formats, thumbnails, web
from catdog.errors import CatdogError
from catdog.inference.bundle import BundleInfo
from catdog.serving import metrics, pages, uploads
from catdog.serving.backend import PICTURE_SIDE, Backend, Predicted
from catdog.serving.config import Limits
from catdog.serving.errors import RefusedError, refusal
from catdog.serving.guard import Guard
from catdog.serving.pictures import Pictures
from catdog.serving.schemas import Answer, Failure, Health, Prediction, RandomAnswer
from catdog.serving.uploads import Fetch, Upload

_MEDIA_TYPES = {"JPEG2000": "image/jp2", "HEIF": "image/heic", "PPM": "image/x-portable-anymap"}
_ERRORS = {
    400: "The request is not as described here.",
    404: "There are no random pictures: the server was started without them.",
    408: "The request did not arrive in time.",
    413: "The request has too many bytes, files or pixels.",
    415: "The request is neither a form nor JSON.",
    422: "No picture of the request could be had or read.",
    429: "Too many requests are being answered; try again after a second.",
    503: "There is nobody to answer now; try again after a second.",
    504: "There was no answer in time.",
}


def build_app(
    backend: Backend,
    info: BundleInfo,
    limits: Limits,
    pictures: Pictures | None = None,
    hosts: Collection[str] | None = None,
    fetch: Fetch = web.fetch_url,
) -> ASGIApp:
    """Makes the app.

    Args:
        backend: computes the answers.
        info: of the model.
        limits: of requests.
        pictures: where random pictures come from; None for nowhere.
        hosts: names that requests may use for this server; None is any.
        fetch: downloads a picture from an address.

    Returns:
        An ASGI app.
    """
    counted = metrics.Metrics()
    app = FastAPI(
        title="catdog",
        version=__version__,
        summary=f"{info.class_names[0].capitalize()} or {info.class_names[1]}? A trained model answers.",
        docs_url=None,
        redoc_url=None,
    )
    _answer_errors_in_one_line(app)
    _add_pages(app, info, limits, pictures is not None)
    read = functools.partial(uploads.read_uploads, limits=limits, fetch=fetch)

    async def predict_all(sent: list[Upload], thumbnail: bool, novelty: bool) -> list[Prediction]:
        predicted = await backend.predict([upload.data for upload in sent])
        found = [_prediction(upload, each, info.class_names) for upload, each in zip(sent, predicted, strict=True)]
        for each, prediction in zip(predicted, found, strict=True):
            counted.predicted.labels(each.status, prediction.class_name or "").inc()
            counted.batch.observe(each.batch)
        for upload, prediction in zip(sent, found, strict=True):
            if prediction.class_name is not None:
                prediction.novelty = await backend.novelty(upload.data) if novelty else None
                prediction.thumbnail = await asyncio.to_thread(_thumbnail, upload.data) if thumbnail else None
        return found

    @app.post(
        "/v1/predict",
        response_description="A prediction of each picture.",
        summary="Predict pictures.",
        responses=_failures(400, 408, 413, 415, 422, 429, 503, 504),
        openapi_extra=uploads.request_body(limits.files),
    )
    async def predict(
        request: Request,
        thumbnail: Annotated[bool, Query(description="Whether each picture is sent back, small and upright.")] = False,
        novelty: Annotated[bool, Query(description="Whether it is measured how new each picture is.")] = False,
    ) -> Answer:
        """Predicts the class of each picture: files of a form, or one on the web.

        A picture that cannot be read has the reason in `detail`; if none can be read, the status is 422.
        """
        started = time.perf_counter()
        sent = await read(request, most=limits.files)
        found = await predict_all(sent, thumbnail, novelty)
        if all(each.class_name is None for each in found):
            raise RefusedError(422, "; ".join(f"{each.name} cannot be read: {each.detail}" for each in found))
        return Answer(predictions=found, seconds=time.perf_counter() - started)

    @app.post(
        "/v1/explain",
        response_description="The picture.",
        summary="Show where the model looked.",
        response_class=Response,
        responses=_file("image/jpeg") | _failures(400, 408, 413, 415, 422, 429, 503, 504),
        openapi_extra=uploads.request_body(1),
    )
    async def explain(request: Request) -> Response:
        """Draws a picture as JPEG, and over it in warm colours what spoke for its class (Grad-CAM)."""
        (sent,) = await read(request, most=1)
        (predicted,) = await backend.predict([sent.data])
        if predicted.status == "unreadable":
            raise RefusedError(422, f"{sent.name} cannot be read: {predicted.detail}")
        label = int(predicted.probability >= 0.5)
        return Response(await backend.explain(sent.data, label), media_type="image/jpeg")

    @app.get(
        "/v1/random",
        response_description="A picture and its prediction.",
        summary="Predict a random picture.",
        responses=_failures(404, 413, 422, 429, 503, 504),
    )
    async def random() -> RandomAnswer:
        """Predicts a random picture of those that the server was started with."""
        started = time.perf_counter()
        if pictures is None:
            raise RefusedError(404, "there are no random pictures; start the server with --pictures FOLDER")
        try:
            picture = await asyncio.to_thread(pictures.pick)
        except CatdogError as error:
            raise RefusedError(503, str(error)) from error
        sent = Upload(picture.name, picture.data)
        await asyncio.to_thread(uploads.require_size, [sent], limits)
        (prediction,) = await predict_all([sent], thumbnail=True, novelty=True)
        return RandomAnswer(
            prediction=prediction,
            picture=_data_url(picture.data, _media_type(picture.data)),
            label=picture.label,
            credit=picture.credit,
            source=picture.source,
            seconds=time.perf_counter() - started,
        )

    @app.get(
        "/healthz",
        response_description="It can.",
        summary="Tell whether the server can predict.",
        responses=_failures(503),
    )
    async def healthz() -> Health:
        """Answers once somebody is there to predict."""
        await backend.require_ready()
        return Health(status="ok", architecture=info.architecture, class_names=list(info.class_names))

    @app.get(
        "/metrics",
        response_description="The counters.",
        summary="Count what was answered.",
        response_class=Response,
        responses=_file("text/plain"),
    )
    async def prometheus() -> Response:
        """Counters, and histograms of times and batches, in Prometheus's text format."""
        return Response(counted.text(), media_type=metrics.CONTENT_TYPE)

    return Guard(app, limits, hosts, counted)


def _file(media_type: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}}


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Failure, "description": _ERRORS[status]} for status in statuses}


def _answer_errors_in_one_line(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_request: Request, error: RefusedError) -> JSONResponse:
        return refusal(error.status, error.line)

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> JSONResponse:
        line = (
            f"there is no {request.url.path}; /docs lists what there is" if error.status_code == 404 else error.detail
        )
        return refusal(error.status_code, line, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return refusal(400, f"{first['loc'][-1]} received {first.get('input')!r}: {first['msg']}")

    @app.exception_handler(Exception)
    async def unknown(_request: Request, error: Exception) -> JSONResponse:
        return refusal(500, f"the server failed ({type(error).__name__}); its log has more")


def _add_pages(app: FastAPI, info: BundleInfo, limits: Limits, random: bool) -> None:
    """Adds the page, its style and its script, and the description of the API for people."""
    home = pages.render_home(info, limits, random)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(home)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(pages.render_docs(app.openapi(), str(request.base_url)))

    pages.add_assets(app)


def _prediction(upload: Upload, predicted: Predicted, class_names: tuple[str, str]) -> Prediction:
    readable = not math.isnan(predicted.logit)
    first, second = class_names
    return Prediction(
        name=upload.name,
        status=predicted.status,
        detail=predicted.detail,
        class_name=None if not readable else second if predicted.probability >= 0.5 else first,
        probabilities={first: 1 - predicted.probability, second: predicted.probability} if readable else {},
        logit=predicted.logit if readable else None,
    )


def _thumbnail(data: bytes) -> str | None:
    pixels = thumbnails.thumbnail(data, PICTURE_SIDE)
    return None if pixels is None else _data_url(thumbnails.encode_jpeg(pixels), "image/jpeg")


def _media_type(data: bytes) -> str:
    kind = formats.sniff(data[: formats.HEAD_BYTES])
    return _MEDIA_TYPES.get(kind, f"image/{kind.lower()}") if kind else "application/octet-stream"


def _data_url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
