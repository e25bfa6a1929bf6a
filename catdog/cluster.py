"""Joining a Ray cluster, or starting one on this machine for the while."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.job_config import JobConfig

from catdog import imports, interruption
from catdog.errors import CatdogError, UsageError

# Whether the cluster that `connect` joined may grow.
_may_grow = False

# A head that is there answers in milliseconds.
_ANSWER_SECONDS = 10


@contextlib.contextmanager
def connect(address: str | None = None, debug: bool = False) -> Iterator[bool]:
    """Joins the cluster at `address`, else at RAY_ADDRESS, else starts one of this machine's size for the while.

    Args:
        address: what `ray.init` takes, or None.
        debug: shows Ray's own log and what the workers print.

    Yields:
        Whether the cluster may grow: somebody else's may have an autoscaler, one's own has not.

    Raises:
        CatdogError: no cluster there.
    """
    global _may_grow
    if ray.is_initialized():  # by a `connect` around this one, or by somebody who calls the library
        yield _may_grow
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address and address.startswith("http"):
        raise UsageError(
            f"received the address {address}, which is that of the Jobs API; expected HOST:PORT of a head, or auto "
            "(`ray job submit` takes its own from RAY_API_SERVER_ADDRESS)"
        )
    if address and address.startswith("ray://"):
        raise UsageError(
            f"received the address {address}, which is Ray Client's, and Ray Train does not run behind it; expected "
            "HOST:PORT of a head, on one of the cluster's nodes or in a submitted job"
        )
    # Reports reach the Train controller by polling; its two seconds are as long as a small epoch.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if not debug:
        # Ray Data starts its actors in a way that Ray's core calls an error; it is none.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"log_to_driver": debug, "logging_level": logging.INFO if debug else logging.ERROR}
    try:
        if address:
            _require_head(address)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # Nobody reclaims a machine of one's own, and the watcher is one more process to start.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            # Workers that Ray starts before anybody asks are not ready when actors are, and get replaced.
            os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
            # Half of the time Ray knocks at its object store before it listens, and would then sleep for a second.
            os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "20")
            os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "500")
            options["include_dashboard"] = False
        # Ray Data is slow to import, and Ray to start: each mostly waits, so they do it together.
        with quiet_stderr(not debug), ThreadPoolExecutor(1) as meanwhile:
            meanwhile.submit(importlib.import_module, "ray.data")
            # "local": without it Ray would join whatever cluster this machine last heard of.
            with interruption.keeping_handlers():
                ray.init(address=address or "local", job_config=_JobConfig(), **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError, RayError) as error:
        where = f"reach the Ray cluster at {address}" if address else "start Ray on this machine"
        raise CatdogError(f"could not {where}: {_first_line(error)}") from error
    try:
        from ray.data import DataContext

        if not debug:
            for name in ("ray.data", "ray.train"):  # Ray Data's has its level set by importing it
                # Their errors come as exceptions too, of which `cause` makes one line.
                logging.getLogger(name).setLevel(logging.CRITICAL)
        DataContext.get_current().enable_progress_bars = debug
        _may_grow = bool(address)
        yield _may_grow
    finally:
        _may_grow = False
        try:
            if not address:
                _stop_autoscaler(ray.get_runtime_context().gcs_address)
        finally:
            ray.shutdown()


class _JobConfig(JobConfig):
    """Gives Ray's workers this process's path.

    Ray itself puts the working folder first on it, where the `catdog` command does not look, and a `keras.py` there
    would be imported in place of Keras. In a submitted job both have the path of the uploaded folder.
    """

    def _serialize(self) -> str:
        if not self._runtime_env_has_working_dir():
            # Each is put before those that are there.
            self._py_driver_sys_path = imports.driver_path()[::-1]
        return super()._serialize()


def _stop_autoscaler(head: str) -> None:
    """Kills the autoscaler of one's own cluster, which has nothing to scale.

    `ray.shutdown` stops the head before it, which it then tries to reach until it is killed, a second later.
    """
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children():
            words = child.cmdline()
            if f"--gcs-address={head}" in words and any(
                word.endswith("autoscaler/_private/monitor.py") for word in words
            ):
                child.kill()


@contextlib.contextmanager
def quiet_stderr(quiet: bool = True) -> Iterator[None]:
    """Drops what is written to standard error below Python, such as TensorFlow's remarks while it is imported."""
    if not quiet:
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def cause(error: BaseException) -> str:
    """The line of an error from a Ray task, actor or worker that says what went wrong there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b.*: ", line)]
    ours = [line.partition("Error: ")[2] for line in raised if line.startswith("catdog.errors.")]
    theirs = [line for line in raised if not line.startswith("ray.exceptions.")]
    return (ours or theirs or raised or lines or [type(error).__name__])[-1]


def _require_head(address: str) -> None:
    """Asks the head at an address whether it is one and takes our token: Ray would go on trying, and not say why."""
    import grpc
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray._private.services import get_ray_address_from_environment

    where = get_ray_address_from_environment("auto", None) if address == "auto" else address
    host, _, port = where.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return
    token: list[tuple[str, str]] = []
    with contextlib.suppress(RayError):  # there is none
        token = [(name.lower(), value) for name, value in get_auth_headers_if_auth_enabled({}).items()]
    with grpc.insecure_channel(where, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", _ANSWER_SECONDS, token)
            return
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
    if code == grpc.StatusCode.UNAUTHENTICATED and not token:
        raise CatdogError(
            f"the Ray cluster at {where} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH unless ~/.ray/auth_token holds it"
        )
    if code == grpc.StatusCode.UNAUTHENTICATED:
        given = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
        source = given[0] if given else "~/.ray/auth_token"
        raise CatdogError(
            f"the Ray cluster at {where} refused the token of {source}; expected the one that its head has"
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        reason = f"no answer within {_ANSWER_SECONDS} s"
    elif code == grpc.StatusCode.UNIMPLEMENTED or "HTTP/2" in details:
        reason = "what answers there is no Ray head"
    else:
        reason = details.rpartition(": ")[2].rstrip("]")
    raise CatdogError(f"could not reach the Ray cluster at {where}: {reason}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
