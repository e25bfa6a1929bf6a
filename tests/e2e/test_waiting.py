"""A cluster whose CPUs are taken is waited for, but never in silence, and no longer than was said."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import ray

from catdog import waiting
from catdog.data.catalog import Catalog
from catdog.reporting import submission


def hold(cpus: int) -> ray.actor.ActorHandle:
    class Holder:
        def is_there(self) -> bool:
            return True

    actor = ray.remote(num_cpus=cpus)(Holder).remote()
    assert ray.get(actor.is_there.remote())
    return actor


@pytest.mark.usefixtures("two_cpus")
def test_what_is_waited_for_is_said(
    drawn: Catalog, untrained: str, tmp_path: Path, catdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_SAY_AFTER", 0.2)
    monkeypatch.setattr(waiting, "_SAY_AGAIN", 0.6)
    train = ["train", "--data", drawn.root, "--arch", "workshop_cnn", "--image-size", 32, "--epochs", 1]
    train += ["--runs", tmp_path, "--name", "waits", "--workers", 2, "--wait", 1]
    holder = hold(2)
    ended = catdog(*train)
    why = "waiting for 1 CPU: the cluster has 2 CPUs, 0 of them free; in use by Holder (2 CPUs, this job)"
    assert (ended.code, ended.err) == (1, f"catdog: gave up after 1 s (--wait) of {why}\n")
    assert ended.out.count(why) == 2
    assert not (tmp_path / "waits").exists()
    # Without a limit to the waiting, that of every job without progress holds.
    ended = catdog(*train[:-2], "--stall-timeout", 1)
    assert ended.code == 1
    assert ended.err.startswith(f"catdog: gave up after 1 s (--stall-timeout): {why}; ")

    out = tmp_path / "results.csv"
    timer = threading.Timer(1.5, ray.kill, [holder])
    timer.start()
    scored = catdog("score", "--model", untrained, "--data", drawn.root, "--out", out)
    assert scored.code == 0, scored.err
    assert scored.out.index(why) < scored.out.index("Scoring ")
    assert submission.check_submission(str(out), drawn).rows == drawn.count("test")

    # Images are decoded on the CPU that is left, and then both workers are waited for.
    holder = hold(1)
    ended = catdog(*train)
    assert ended.code == 1
    assert "of waiting for 2 CPUs: the cluster has 2 CPUs, 1 of them free; in use by Holder (1 CPU, this " in ended.err
    assert (tmp_path / "waits" / "config.json").exists()
    ray.kill(holder)
