"""Waiting for CPUs or GPUs that are in use, with messages about what is needed and who holds it."""

from __future__ import annotations

import contextlib
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from catdog.errors import CatdogError
from catdog.events import EventHandler, Waiting

Bundle = Mapping[str, float]
# Seconds before the first message, since released resources take a moment to become free; and between messages.
_SAY_AFTER, _SAY_AGAIN = 5.0, 30.0
_ENTRYPOINT_CHARACTERS = 60
# A resource in a placement group is listed twice, as CPU_group_… and, with the bundle's number, as CPU_group_0_…; only
# the first is counted.
_RESOURCE = re.compile(r"(CPU|GPU)(_group_[0-9a-f]{20,})?")


def wait_for(bundles: Sequence[Bundle], on_event: EventHandler, limit: float | None = None) -> None:
    """Waits until the cluster has room for some workers or actors.

    Ray itself would wait silently. A pending placement group tells an autoscaler what is needed meanwhile.

    Args:
        bundles: CPUs and GPUs of each worker or actor; each bundle must fit on one node.
        on_event: called with `Waiting` after 5 seconds and then every 30.
        limit: seconds to wait at most, or None for no limit.

    Raises:
        CatdogError: the limit is reached.
    """
    started, said = time.monotonic(), 0.0
    with contextlib.ExitStack() as stack:
        queued = None
        while not (queued.wait(0.5) if queued is not None else _fits(bundles)):
            seconds = time.monotonic() - started
            if limit is not None and seconds >= limit:
                raise CatdogError(f"gave up after {limit:g} s (--wait) of {describe_need(bundles)}")
            if queued is None and seconds < _SAY_AFTER:
                time.sleep(0.1)
                continue
            if queued is None:
                queued = ray.util.placement_group([dict(bundle) for bundle in bundles], strategy="SPREAD")
                stack.callback(ray.util.remove_placement_group, queued)
            if not said or seconds - said >= _SAY_AGAIN:
                said = seconds
                on_event(Waiting(seconds, describe_need(bundles), limit))


def _fits(bundles: Sequence[Bundle]) -> bool:
    """Returns whether all bundles fit, each on the first node with room for it."""
    # `ray.available_resources` is a sum over nodes, which does not show whether one node has room for a bundle.
    free = [dict(node) for node in ray._private.state.available_resources_per_node().values()]
    for bundle in bundles:
        for node in free:
            if all(node.get(name, 0.0) >= amount for name, amount in bundle.items()):
                node.update({name: node[name] - amount for name, amount in bundle.items()})
                break
        else:
            return False
    return True


def describe_need(bundles: Sequence[Bundle]) -> str:
    """One line on what is needed, what the cluster has, and who may hold it.

    Args:
        bundles: CPUs and GPUs of each worker or actor.
    """
    needed: dict[str, float] = defaultdict(float)
    for bundle in bundles:
        for name, amount in bundle.items():
            needed[name] += amount
    has, free = ray.cluster_resources(), ray.available_resources()
    there = " and ".join(f"{_text(name, has.get(name, 0.0))}, {free.get(name, 0.0):g} of them free" for name in needed)
    holders = _holders()
    held = f"; in use by {', '.join(holders)}" if holders else ""
    wanted = " and ".join(_text(name, amount) for name, amount in needed.items())
    return f"waiting for {wanted}: the cluster has {there}{held}"


def _text(resource: str, amount: float) -> str:
    return f"{amount:g} {resource}{'s' * (amount != 1)}"


def _holders() -> list[str]:
    """Actors that hold CPUs or GPUs, and jobs whose tasks may, according to Ray's internal tables."""
    found: dict[str, int] = defaultdict(int)
    with contextlib.suppress(Exception):  # the tables are internal to Ray, and only make the message more helpful
        from ray.core.generated.gcs_pb2 import ActorTableData

        state = ray._private.state.state
        jobs = {job["JobID"]: job for job in state.job_table()}
        own = ray.get_runtime_context().get_job_id()
        known = {own}
        for encoded in state._connect_and_get_accessor().get_actor_table(None, "ALIVE"):
            actor = ActorTableData.FromString(encoded)
            held = [
                _text(resource.partition("_group_")[0], amount)
                for resource, amount in actor.required_resources.items()
                if _RESOURCE.fullmatch(resource) and amount
            ]
            if held:
                job = actor.job_id.hex()
                known.add(job)
                whose = "this job" if job == own else _job(jobs.get(job, {"JobID": job, "Entrypoint": "ended"}))
                found[f"{actor.class_name.rpartition('.')[2]} ({' and '.join(held)}, {whose})"] += 1
        for job, about in jobs.items():
            if not about["IsDead"] and job not in known:
                found[f"perhaps tasks of {_job(about)}"] += 1
    return [text if count == 1 else f"{count} × {text}" for text, count in found.items()]


def _job(about: Mapping[str, Any]) -> str:
    return f"job {about['JobID']}: {' '.join(about['Entrypoint'].split())[:_ENTRYPOINT_CHARACTERS]}"
