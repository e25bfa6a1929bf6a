"""Joining a Ray cluster, or starting a temporary one on this machine."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import secrets
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.job_config import JobConfig

from catdog import imports, interruption
from catdog.errors import CatdogError, UsageError, first_line

# Whether the cluster that `connect` joined may grow: autoscalers run only on clusters that catdog did not start.
_may_grow = False

# A reachable head answers within milliseconds.
_ANSWER_SECONDS = 10


def _give_token_without_home() -> None:
    """Gives a local cluster its token by the environment, where Ray could not write it into the user's home."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    try:
        (Path.home() / ".ray").mkdir(parents=True, exist_ok=True)
        if os.access(Path.home() / ".ray", os.W_OK):
            return
    except (OSError, RuntimeError):  # there is no home, or it cannot be written
        pass
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextlib.contextmanager
def connect(address: str | None = None, debug: bool = False) -> Iterator[bool]:
    """Joins the cluster at `address` or at RAY_ADDRESS; without either it starts a local one until the block ends.

    Args:
        address: an address as for `ray.init`, or None.
        debug: show Ray's own log and the output of workers.

    Yields:
        Whether the cluster may grow: an existing cluster may have an autoscaler, a local one has none.

    Raises:
        CatdogError: the cluster could not be reached or started.
        UsageError: the address is that of the Jobs API.
    """
    global _may_grow
    if ray.is_initialized():  # by an enclosing `connect`, or by the program that uses the library
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
    # The Train controller polls for reports; its default of two seconds is as long as a small epoch.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Then it says that workers cannot be placed; its default is a minute.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    if not debug:
        # Ray's core logs a harmless error whenever Ray Data starts actors.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"log_to_driver": debug, "logging_level": logging.INFO if debug else logging.ERROR}
    try:
        if address:
            _require_head(address)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # A local machine is never preempted, and the watcher is another process to start.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            # Prestarted workers would not be ready when the actors start, so Ray would start others anyway.
            os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
            # Ray often connects to its object store before that listens, and by default retries only a second later.
            os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "20")
            os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "500")
            _give_token_without_home()
            options["include_dashboard"] = False
        # Importing Ray Data and starting Ray both take seconds and mostly wait, so they run at the same time.
        with quiet_stderr(not debug), ThreadPoolExecutor(1) as pool:
            pool.submit(importlib.import_module, "ray.data")
            # With address=None, Ray would join a cluster that already runs on this machine.
            with interruption.keeping_handlers():
                ray.init(address=address or "local", job_config=_JobConfig(), **options)
    except CatdogError:
        raise
    except Exception as error:  # Ray raises this class itself where its start takes too long
        where = f"reach the Ray cluster at {address}" if address else "start Ray on this machine"
        raise CatdogError(f"could not {where}: {first_line(error)}") from error
    try:
        from ray.data import DataContext

        if not debug:
            for name in ("ray.data", "ray.train"):  # after the import, which sets Ray Data's level
                # Their errors also arrive as exceptions, which `cause` shortens to one line.
                logging.getLogger(name).setLevel(logging.CRITICAL)
        DataContext.get_current().enable_progress_bars = debug
        _may_grow = bool(address)
        yield _may_grow
    finally:
        _may_grow = False
        workers: list[psutil.Process] = []
        try:
            if not address:
                head = ray.get_runtime_context().gcs_address
                _stop_autoscaler(head)
                workers = _find_workers(head)
        finally:
            ray.shutdown()
            # Ray asks them to end; one that hangs would stay for ever.
            for process in workers:
                with contextlib.suppress(psutil.Error):
                    process.kill()


class _JobConfig(JobConfig):
    """Job configuration that gives Ray's workers the Python path of this process.

    By default Ray puts the working folder first on the workers' path, so a `keras.py` there would replace Keras, though
    the `catdog` command itself does not import from there. In a submitted job both use the uploaded folder.
    """

    def _serialize(self) -> str:
        if not self._runtime_env_has_working_dir():
            # Reversed, because Ray inserts each entry at the front.
            self._py_driver_sys_path = imports.driver_path()[::-1]
        return super()._serialize()


def _stop_autoscaler(head: str) -> None:
    """Kills the autoscaler process of a local cluster, which has nothing to scale.

    This speeds up `ray.shutdown`, which stops the head first: the autoscaler would try to reach it for a second.
    """
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children():
            words = child.cmdline()
            if f"--gcs-address={head}" in words and any(
                word.endswith("autoscaler/_private/monitor.py") for word in words
            ):
                child.kill()


def _find_workers(head: str) -> list[psutil.Process]:
    """The processes that the raylet of a local cluster started."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children():
            words = child.cmdline()
            if words and words[0].endswith("/raylet") and f"--gcs-address={head}" in words:
                return child.children(recursive=True)
    return []


@contextlib.contextmanager
def quiet_stderr(quiet: bool = True) -> Iterator[None]:
    """Suppresses output to standard error, also from C++, such as TensorFlow's messages on import."""
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
    """The line with the cause, from the message of an error in a Ray task, actor or worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b.*: ", line)]
    ours = [line.partition("Error: ")[2] for line in raised if line.startswith("catdog.errors.")]
    theirs = [line for line in raised if not line.startswith("ray.exceptions.")]
    return (ours or theirs or raised or lines or [type(error).__name__])[-1]


@contextlib.contextmanager
def ray_errors(message: str) -> Iterator[None]:
    """Turns what Ray raises in a block into one line.

    Args:
        message: has `{cause}` where the line of `cause` is put.

    Raises:
        CatdogError: something failed in a task, an actor or Ray itself.
    """
    try:
        yield
    except RayError as error:
        raise CatdogError(message.format(cause=cause(error))) from error


def _require_head(address: str) -> None:
    """Checks that a Ray head at the address accepts our token; Ray itself would retry without giving a reason."""
    import grpc
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray._private.services import get_ray_address_from_environment

    where = get_ray_address_from_environment("auto", None) if address == "auto" else address
    host, _, port = where.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return
    token: list[tuple[str, str]] = []
    with contextlib.suppress(RayError):  # no token is set
        token = [(name.lower(), value) for name, value in get_auth_headers_if_auth_enabled({}).items()]
    error = _call_head(where, token)
    if error is None:
        return
    code, details = error.code(), error.details()
    if code == grpc.StatusCode.UNAUTHENTICATED and not token:
        raise CatdogError(
            f"the Ray cluster at {where} requires a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH unless ~/.ray/auth_token holds it"
        )
    if code == grpc.StatusCode.UNAUTHENTICATED:
        given = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
        source = given[0] if given else "~/.ray/auth_token"
        raise CatdogError(f"the Ray cluster at {where} refused the token of {source}; expected the token of its head")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        reason = f"no answer within {_ANSWER_SECONDS} s"
    elif code == grpc.StatusCode.UNIMPLEMENTED or "HTTP/2" in details:
        reason = "the server there is not a Ray head"
    else:
        reason = details.rpartition(": ")[2].rstrip("]")
    raise CatdogError(f"could not reach the Ray cluster at {where}: {reason}")


def asks_for_token(address: str) -> bool | None:
    """Whether the Ray head at HOST:PORT refuses who has no token; None if it gives another answer, or none."""
    import grpc

    error = _call_head(address, [])
    if error is None:
        return False
    return True if error.code() == grpc.StatusCode.UNAUTHENTICATED else None


def _call_head(where: str, token: list[tuple[str, str]]) -> Any:
    """Asks the head at HOST:PORT whether it lives; returns None or gRPC's error."""
    import grpc

    with grpc.insecure_channel(where, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", _ANSWER_SECONDS, token)
        except grpc.RpcError as error:
            return error
    return None
