"""The page of a scoring run: what it shows, taken from the run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from catdog import storage
from catdog.reporting import page
from catdog.reporting.page import Source, Stage
from catdog.reporting.pictures import Scores
from catdog.reporting.report import Report
from catdog.scoring.config import ScoreConfig
from catdog.scoring.plan import ScoringJob

_OF_THE_PLACE = {"model", "data", "gpu", "address", "wait", "stall_timeout", "debug"}
_FACTS = (
    "data", "catalog_fingerprint", "bundle_fingerprint", "engine", "precision", "calibration", "temperature", "clip",
)  # fmt: skip


def render_score_page(
    job: ScoringJob, described: Mapping[str, Any], report: Report, scores: Mapping[str, Scores]
) -> str:
    """Renders the page as the text of an HTML file.

    Args:
        job: what was scored with what.
        described: content of `meta.json` that is the same whenever the same command runs.
        report: on the splits with labels, perhaps on none.
        scores: predictions, by split.
    """
    speed = described["speed"]
    return page.render_page(
        Source(
            title=storage.name(job.out),
            command=_command(job.config),
            report=report,
            scores=scores,
            info=job.info,
            models=job.bundles,
            facts=[(name.replace("_", " "), str(described[name])) for name in _FACTS],
            versions=described["versions"],
            stages=[Stage("scoring", speed["images"], speed["seconds"])] if speed else [],
            is_drawn=job.catalog.is_drawn,
        )
    )


def _command(config: ScoreConfig) -> str:
    """The command with these options; those that have their default are left out."""
    words = ["catdog", "score", *(word for model in config.model for word in ("--model", model)), "--data", config.data]
    given = config.model_dump(exclude=_OF_THE_PLACE, exclude_defaults=True)
    words += [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words += [] if config.gpu is None else ["--gpu" if config.gpu else "--cpu"]
    return shlex.join(words)
