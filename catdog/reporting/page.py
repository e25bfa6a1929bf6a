"""The page: a report as one HTML file that needs nothing else, for a run that was scored or trained.

`Source` is what a page is made of. The sentences are in `templates/report.html`, the figures are of `details`, the
images of `pictures`. The same source gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catdog import buckets
from catdog.inference.bundle import BundleInfo, SavedBundle
from catdog.reporting import details, pictures
from catdog.reporting.pictures import Scores
from catdog.reporting.report import Report, Section

_MAX_LISTED, _MAX_TEXT, _MAX_KEY = 200, 300, 50
# Characters that HTML forbids, or UTF-8.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_SPACE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Stage:
    """A stage whose speed is told.

    Attributes:
        name: in words.
        images: how many were worked on.
        seconds: how long that took.
    """

    name: str
    images: int
    seconds: float


@dataclass(frozen=True)
class Source:
    """What a page is made of.

    Attributes:
        title: what was scored or trained, in a few words.
        command: that makes the results again; "" where that is the one which trained the model.
        report: on the splits with labels.
        scores: by split, the predictions of each image.
        info: of the bundles as one.
        models: the bundles.
        facts: names and values of what made the results, such as fingerprints.
        versions: of packages, by name.
        stages: those whose speed is known.
        is_drawn: the program drew the pictures, so the figures say nothing about photos.
    """

    title: str
    command: str
    report: Report
    scores: Mapping[str, Scores]
    info: BundleInfo
    models: Sequence[SavedBundle]
    facts: Sequence[tuple[str, str]]
    versions: Mapping[str, str]
    stages: Sequence[Stage] = ()
    is_drawn: bool = False


def render_page(source: Source) -> str:
    """Renders a page as the text of an HTML file; reads the few images that it shows.

    Args:
        source: what it is made of.
    """
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("catdog.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "count": lambda value: f"{value:,}",
        "percent": percent,
        "short": lambda text: text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…",
        "ending": lambda text: text if len(text) <= _MAX_KEY else f"…{text[1 - _MAX_KEY :]}",
        "public": buckets.without_secrets,
        "svg": markupsafe.Markup,  # from `figures`, which escapes what it is given
    }
    text = environment.get_template("report.html").render(_content(source))
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text) + "\n"


def percent(share: float) -> str:
    """A share in percent, such as "98.7 %"; what is not quite all is not shown as all, nor not quite nothing as 0."""
    if share in (0.0, 1.0):
        return f"{100 * share:.0f}{_SPACE}%"
    for digits in (1, 2, 3):
        text = f"{100 * share:.{digits}f}"
        if 0.0 < float(text) < 100.0:
            return f"{text}{_SPACE}%"
    return f"{'> 99.999' if share > 0.5 else '< 0.001'}{_SPACE}%"


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _content(source: Source) -> dict[str, Any]:
    """What the template is given."""
    report, scores, models, info = source.report, source.scores, source.models, source.info
    judged = [
        details.section_details(section, scores[section.split], info.prior) for section in report.sections if section.n
    ]
    test = scores.get("test")
    test_grids = pictures.test_grids(test, info.class_names) if test else []
    tiles = [tile for part in judged for grid in part.grids for tile in grid.tiles]
    tiles += [tile for part in judged for tile, _ in part.worst]
    tiles += [tile for grid in test_grids for tile in grid.tiles]
    return {
        "source": source,
        "info": info,
        "first": info.class_names[0],
        "second": info.class_names[1],
        "valid": report.valid,
        "board": details.BOARD,
        "board_svg": _board_svg(report.valid, info.class_names),
        "is_expected": test is not None and report.test is None,
        "curves": [
            curve
            for number, saved in enumerate(models, 1)
            for curve in details.training_curves(saved.info, f"model {number}" if len(models) > 1 else "")
        ],
        "details": judged,
        "test": test,
        "test_grids": test_grids,
        "max_listed": _MAX_LISTED,
        "unreadable": [(each, each.unreadable.slice(0, _MAX_LISTED).to_pylist()) for each in scores.values()],
        "drift": details.compare(report.valid, scores["valid"], test) if report.valid and test else None,
        "trained": [(saved, *_training(saved)) for saved in models],
        "pictures": pictures.number(pictures.read_thumbnails(tile.uri for tile in tiles)),
    }


def _board_svg(valid: Section | None, class_names: tuple[str, str]) -> str:
    return details.draw_board(valid.judgement.figures, class_names) if valid and valid.judgement else ""


def _training(saved: SavedBundle) -> tuple[str, list[tuple[str, str]]]:
    """The command that trained a model, and all its options; nothing where the bundle does not say."""
    command, options = (saved.info.training.get(name) for name in ("command", "options"))
    listed = sorted(options.items()) if isinstance(options, dict) else []
    return command if isinstance(command, str) else "", [(name, json.dumps(value)) for name, value in listed]
