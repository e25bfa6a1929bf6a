"""Leases: one holder at a time, and a dead one's successor needs no hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from catdog import lease, storage
from catdog.errors import CatdogError

HOLD = """
import sys, time
from catdog import lease, storage
with lease.hold(sys.argv[1], "a test"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    uri = str(tmp_path / "set" / "lease.json")
    with lease.hold(uri, "preparing"):
        with (
            pytest.raises(CatdogError, match="set is in use: preparing, process .* on this machine"),
            lease.hold(uri, "x"),
        ):
            pass
        assert Path(uri).exists()
    assert not Path(uri).exists()
    with lease.hold(uri, "again") as held:
        held.require_held()


def test_a_killed_holder_is_followed_at_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease.json")
    with subprocess.Popen([sys.executable, "-c", HOLD, uri], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CatdogError, match=f"a test, process {other.pid} on this machine"), lease.hold(uri, "x"):
            pass
        other.kill()
        other.wait()
        with lease.hold(uri, "after it"):
            pass


def test_elsewhere_the_heartbeat_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lease.json"
    elsewhere = lease.Lease(str(path), "scoring", host="node-2", space="another machine")
    # Its clock is an hour behind this one's.
    path.write_text(json.dumps(json.loads(elsewhere._text()) | {"beat": time.time() - 3600}))
    with (
        pytest.raises(CatdogError, match=r"scoring, process \d+ on node-2; .* expires within [56]\d s"),
        lease.hold(str(path), "x"),
    ):
        pass
    assert storage.list_names(str(tmp_path)) == ["lease.json"]
    os.utime(path, (time.time() - 61,) * 2)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    with lease.hold(str(path), "mine") as held:
        first = path.stat().st_mtime_ns
        end = time.monotonic() + 10
        while path.stat().st_mtime_ns == first:
            assert time.monotonic() < end, "no heartbeat"
            time.sleep(0.02)
        # A process that was suspended for too long, such as on a sleeping laptop, has lost its lease.
        path.write_text(elsewhere._text())
        with pytest.raises(CatdogError, match="another process took over .* while this one was suspended"):
            held.require_held()
    assert json.loads(path.read_text())["token"] == elsewhere.token
