"""An actor that dies while it loads a model."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import ray

from catdog import restarts


@ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0)
class Loader:
    """An actor as Ray Data starts them."""

    def __init__(self, *load: object) -> None:
        self._loaded = restarts.load_in_actor("the model", *load)  # type: ignore[arg-type]

    def loaded(self) -> object:
        return self._loaded


@pytest.mark.usefixtures("two_cpus")
def test_an_actor_that_dies_of_loading_is_not_restarted_for_ever() -> None:
    with pytest.raises(ray.exceptions.RayActorError, match="loading the model ends its process with SIGABRT, on node"):
        ray.get(Loader.remote(signal.raise_signal, signal.SIGABRT).loaded.remote(), timeout=120)


@pytest.mark.usefixtures("two_cpus")
def test_an_actor_that_is_killed_while_loading_loads_again(tmp_path: Path) -> None:
    # Kills its parent, an actor, the first two times; between them are trials, in other processes.
    script = f"echo >> {tmp_path}/tries; case $(wc -l < {tmp_path}/tries) in 1|3) kill -9 $PPID;; esac"
    actor = Loader.remote(subprocess.check_output, ["sh", "-c", script])
    assert ray.get(actor.loaded.remote(), timeout=120) == b""
    assert (tmp_path / "tries").read_text() == 5 * "\n"
    ray.kill(actor)
