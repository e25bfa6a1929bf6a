"""Models loaded in actors that Ray restarts: an actor that dies of it, again and again, says what of and ends.

Ray Data restarts an actor that died as often as it takes, and says nothing. An actor that was killed by something else
is to be restarted, so only deaths while loading count, and only those without a successful one between.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

import ray

from catdog import stall
from catdog.errors import CatdogError

Loaded = TypeVar("Loaded")

# Deaths in a row while loading, though nothing was wrong in the trial: something else kills the process.
_MOST_DEATHS = 10
_TRIAL_SECONDS = 600.0
_NAMESPACE = b"catdog"
_TRIAL = "from catdog import restarts; restarts.run_trial()"


def load_in_actor(what: str, load: Callable[..., Loaded], *arguments: object) -> Loaded:
    """Loads something in the constructor of an actor.

    If the actor has died of it before, it is first loaded in another process, which tells how it ends.

    Args:
        what: that is loaded, for the message: "the model".
        load: a function of a module.
        arguments: of the function; they can be pickled.

    Returns:
        What the function returned.

    Raises:
        CatdogError: loading ends its process, or every process in which it was tried was ended by something else.
    """
    from ray.experimental import internal_kv

    key = f"loading {ray.get_runtime_context().get_actor_id()}"
    deaths = count_start(key)
    if deaths >= _MOST_DEATHS:
        raise CatdogError(f"an actor died {deaths} times in a row while it loaded {what}, and something else killed it")
    if deaths:
        _require_safe(what, load, arguments)
    stall.beat()
    loaded = load(*arguments)
    internal_kv._internal_kv_del(key, namespace=_NAMESPACE)
    return loaded


def count_start(key: str) -> int:
    """Counts a start in the cluster, where the count outlives the process.

    Args:
        key: of what is started.

    Returns:
        How often it was started before.
    """
    from ray.experimental import internal_kv

    before = int(internal_kv._internal_kv_get(key, namespace=_NAMESPACE) or 0)
    internal_kv._internal_kv_put(key, str(before + 1), namespace=_NAMESPACE)
    return before


def _require_safe(what: str, load: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """Loads in a process of its own.

    Raises:
        CatdogError: a signal ended the process.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", _TRIAL],
        input=pickle.dumps((load, arguments)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=_TRIAL_SECONDS,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if done.returncode >= 0:  # an exception comes again here, with its message
        return
    name = str(-done.returncode)
    with contextlib.suppress(ValueError):
        name = signal.Signals(-done.returncode).name
    hint = "; is there enough memory for it?" if -done.returncode == signal.SIGKILL else ""
    raise CatdogError(f"loading {what} ends its process with {name}, on node {ray.util.get_node_ip_address()}{hint}")


def run_trial() -> None:
    """Loads what standard input says, in the process that `load_in_actor` started, which wrote it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    load, arguments = pickle.loads(sys.stdin.buffer.read())
    load(*arguments)
