"""A cluster examined: connected to, its nodes asked, runs planned, and what would hold them back found."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import ray

from catdog import cluster, storage
from catdog.data.catalog import read_catalog
from catdog.doctor import hardware, software
from catdog.doctor.facts import Cluster
from catdog.doctor.plan import Plans, make_plans
from catdog.doctor.problems import Problem
from catdog.doctor.survey import survey_cluster
from catdog.inference import bundle


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        cluster: what it has.
        plans: what would be done there.
        problems: what would hold it back, what stops a run first.
    """

    cluster: Cluster
    plans: Plans
    problems: list[Problem]

    @property
    def stops(self) -> bool:
        """Whether a run could not be made."""
        return any(problem.stops for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        """The same as values of JSON."""
        return dataclasses.asdict(self) | {"stops": self.stops}


def examine_cluster(
    data: str | None = None,
    model: str | None = None,
    image_size: int | None = None,
    runs: str = "runs",
    address: str | None = None,
    debug: bool = False,
) -> Diagnosis:
    """Finds out what a cluster has, what runs would make of it, and what would hold them back; nothing is written.

    Args:
        data: URI of a prepared data set, whose decoded images are to fit into shared memory.
        model: URI of a run or bundle to score with.
        image_size: S of the images that are trained on; None is the model's, or 224.
        runs: URI of the folder of runs.
        address: of the cluster; None is RAY_ADDRESS, or a temporary local one.
        debug: show Ray's own log.

    Raises:
        UsageError: no such data or model.
        CatdogError: they could not be read, or the cluster could not be reached or started.
    """
    catalog = None if data is None else read_catalog(data)
    saved = None if model is None else bundle.read_info(model)
    image = catalog.table["uri"][0].as_py() if catalog is not None and catalog.table.num_rows else None
    temporary = not (address or os.environ.get("RAY_ADDRESS") or ray.is_initialized())
    with cluster.connect(address, debug) as may_grow:
        plans = make_plans(may_grow, catalog, saved, image_size)
        found = survey_cluster(temporary, may_grow, storage.absolute(runs), image)
    return Diagnosis(found, plans, find_problems(found, plans))


def find_problems(found: Cluster, plans: Plans) -> list[Problem]:
    """Finds what would hold runs back, what stops them first.

    Args:
        found: what the cluster has.
        plans: what would be done there.
    """
    problems = [problem for check in (*software.CHECKS, *hardware.CHECKS) for problem in check(found, plans)]
    return sorted(problems, key=lambda problem: not problem.stops)
