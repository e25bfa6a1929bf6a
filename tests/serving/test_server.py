"""What `catdog serve` refuses before it starts anything."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--port PORT", 1, "port PORT of 127.0.0.1 is in use; give another --port"),
        ("--host 203.0.113.9", 2, "--host 203.0.113.9 --port 8000 cannot be listened on"),
        ("--host no.such.host.invalid", 2, "--host received 'no.such.host.invalid', which is no address"),
        ("--port 0", 2, "--port received 0"),
        ("--pictures EMPTY", 2, "--pictures received .*, which has no pictures"),
        ("--min-replicas 3 --max-replicas 2", 2, "--max-replicas received 2, expected at least --min-replicas, 3"),
        ("--max-pixels 500", 2, "--max-pixels received 500"),
        ("--model NOWHERE", 2, "holds no bundle.json"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(
    options: str, code: int, message: str, untrained: str, tmp_path: Path, catdog
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        places = {"PORT": str(busy.getsockname()[1]), "EMPTY": str(tmp_path), "NOWHERE": str(tmp_path / "no")}
        for name, place in places.items():
            options, message = options.replace(name, place), message.replace(name, place)
        model = [] if "--model" in options else ["--model", untrained]
        refused = catdog("serve", *model, *options.split())
    assert refused.code == code, refused.err
    lines = [line for line in refused.err.splitlines() if not line.startswith("Warning: ")]
    assert len(lines) == 1, refused.err
    assert re.search(message, lines[0]), refused.err


def test_listening_to_others_comes_with_a_warning(untrained: str, tmp_path: Path, catdog) -> None:
    refused = catdog("serve", "--model", untrained, "--host", "0.0.0.0", "--pictures", tmp_path)
    assert "Warning: there is no authentication; whoever reaches port 8000" in refused.err
