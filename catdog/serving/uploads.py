"""The pictures of a request: files of a form, or the address of one on the web."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pydantic
from starlette.datastructures import UploadFile
from starlette.requests import Request

from catdog.data import fallback
from catdog.errors import CatdogError, UsageError
from catdog.serving.config import Limits
from catdog.serving.errors import RefusedError
from catdog.serving.schemas import Address

# As of `catdog.data.web.fetch_url`: the URL, `max_bytes` and `seconds`.
Fetch = Callable[..., bytes]

FIELD = "files"
_FORM, _JSON = "multipart/form-data", "application/json"
_ADDRESS_BYTES = 65_536
_NAME_CHARACTERS = 200


class Upload(NamedTuple):
    """A picture that somebody sent.

    Attributes:
        name: of its file, for showing.
        data: the bytes of the file.
    """

    name: str
    data: bytes


def request_body(most: int) -> dict[str, Any]:
    """The description of such a request for OpenAPI.

    Args:
        most: files in a request.
    """
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": most}
    form = {"type": "object", "properties": {FIELD: files}, "required": [FIELD], "additionalProperties": False}
    content = {_FORM: {"schema": form}, _JSON: {"schema": Address.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


async def read_uploads(request: Request, limits: Limits, most: int, fetch: Fetch) -> list[Upload]:
    """Reads the pictures of a request.

    Args:
        request: with a form, or with JSON.
        limits: of the server.
        most: files in this request.
        fetch: downloads from an address.

    Raises:
        RefusedError: there are none, too many or too large ones, or they cannot be had.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _FORM:
        uploads = await _read_form(request, most)
    elif kind == _JSON:
        uploads = [await _read_address(request, limits, fetch)]
    else:
        raise RefusedError(415, f'received {kind or "no content type"}, expected {_FORM} or {_JSON} with {{"url": …}}')
    await asyncio.to_thread(require_size, uploads, limits)
    return uploads


async def _read_form(request: Request, most: int) -> list[Upload]:
    # One more than allowed, so that the message is this module's.
    async with request.form(max_files=most + 1, max_fields=16) as form:
        items = form.multi_items()
        strange = [name for name, value in items if name != FIELD or not isinstance(value, UploadFile)]
        if strange or not items:
            received = f"the field {strange[0]!r}" if strange else "no file"
            raise RefusedError(400, f"received {received}, expected pictures as files in fields named {FIELD}")
        files = [value for _, value in items if isinstance(value, UploadFile)]
        if len(files) > most:
            raise RefusedError(413, f"received more than {most} file{'s' * (most > 1)}; send fewer at a time")
        return [Upload(_name(file.filename or "", "picture"), await file.read()) for file in files]


async def _read_address(request: Request, limits: Limits, fetch: Fetch) -> Upload:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _ADDRESS_BYTES:
            raise RefusedError(413, f"received more than {_ADDRESS_BYTES:,} bytes of JSON, expected an address")
    try:
        url = Address.model_validate_json(bytes(body)).url
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusedError(400, f'{where or "the body"}: {first["msg"]}; expected {{"url": "https://…"}}') from error
    try:
        data = await asyncio.to_thread(fetch, url, max_bytes=limits.bytes, seconds=0.8 * limits.seconds)
    except UsageError as error:
        raise RefusedError(400, str(error)) from error
    except CatdogError as error:
        raise RefusedError(422, str(error)) from error
    return Upload(_name(urlsplit(url).path, urlsplit(url).hostname or url), data)


def require_size(uploads: list[Upload], limits: Limits) -> None:
    """Makes sure that no picture has too many pixels, before it is decoded.

    Args:
        uploads: pictures.
        limits: of the server.

    Raises:
        RefusedError: one has.
    """
    for upload in uploads:
        size = fallback.declared_size(upload.data)
        if size and size[0] * size[1] > limits.pixels:
            raise RefusedError(
                413,
                f"{upload.name} has {size[0]:,} × {size[1]:,} pixels, more than {limits.pixels / 1e6:g} million; "
                "send a smaller picture",
            )


def _name(path: str, otherwise: str) -> str:
    """The last part of a path, in characters that can be shown."""
    last = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    shown = "".join(letter for letter in last if letter.isprintable())[:_NAME_CHARACTERS]
    return shown or otherwise
