"""No pinned package has a known vulnerability; asked in continuous integration, and by `make audit`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


@pytest.mark.skipif("CI" not in os.environ, reason="asks the package index about every package: `make audit` does so")
def test_no_pinned_package_has_a_known_vulnerability() -> None:
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json", "-r", CONSTRAINTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    if not done.stdout.strip():
        pytest.skip(f"the package index could not be asked: {done.stderr.strip().splitlines()[-1:]}")
    packages = json.loads(done.stdout)["dependencies"]
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        pytest.skip("the package index that is used here has no data about vulnerabilities")
    found = {
        f"{package['name']} {package['version']}": [
            f"{each['id']}, fixed in {each['fix_versions']}" for each in package["vulns"]
        ]
        for package in known
        if package["vulns"]
    }
    assert found == {}
