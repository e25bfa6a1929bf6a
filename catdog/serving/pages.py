"""The pages for people: the page itself, and the API's description; rendered on the server, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from fastapi import FastAPI, HTTPException
from fastapi.responses import Response

from catdog import __version__
from catdog.serving.config import Limits

if TYPE_CHECKING:
    from catdog.inference.bundle import BundleInfo

FOLDER = str(Path(__file__).parent / "page")
# The files that the pages ask for, and their media types.
ASSETS = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "review.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def render_home(info: BundleInfo, limits: Limits, random: bool) -> str:
    """Renders the page.

    Args:
        info: of the model.
        limits: of requests.
        random: whether there are random pictures.

    Returns:
        HTML.
    """
    return _template("home.html").render(info=info, limits=limits, random=random, version=__version__)


def render_docs(description: dict[str, Any], base: str) -> str:
    """Renders an OpenAPI description for people.

    Args:
        description: OpenAPI 3.1.
        base: URL of the server.

    Returns:
        HTML.
    """
    schemas = description.get("components", {}).get("schemas", {})
    return _template("docs.html").render(api=description, schemas=schemas, base=base)


def render_review(class_names: tuple[str, str], out: str, hidden: int) -> str:
    """Renders the page of a review.

    Args:
        class_names: of labels 0 and 1.
        out: URI of the CSV of decisions.
        hidden: photos of the audit that are not shown.

    Returns:
        HTML.
    """
    return _template("review.html").render(class_names=class_names, out=out, hidden=hidden)


def add_assets(app: FastAPI) -> None:
    """Adds the files that the pages ask for to an app."""
    contents = {name: (Path(FOLDER) / name).read_bytes() for name in ASSETS}

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in contents:
            raise HTTPException(404)
        return Response(contents[name], media_type=ASSETS[name], headers={"cache-control": "no-cache"})


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(FOLDER)
    environment = jinja2.Environment(loader=loader, autoescape=True)
    environment.filters["type"] = _type_of
    return environment.get_template(name)


def _type_of(schema: dict[str, Any]) -> str:
    """A JSON schema's type in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type_of(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(f'"{value}"' for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return f"list of {_type_of(items)}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type_of(schema['additionalProperties'])}s"
    return "file" if schema.get("format") == "binary" else str(schema.get("type", "anything"))
