"""A Ray cluster of two CPUs for the tests that need no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

# Minutes each; what takes long comes first, so that the two processes of `make test` end at about the same time.
_LONGEST = ("test_path", "test_fine_tuning", "test_training")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: at for at, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: (item.path.parent.name == "e2e", order.get(item.path.stem, len(order))))


@pytest.fixture(scope="session")
def two_cpus(short_tmp: Path) -> Iterator[str]:
    """Ray, in this process, with two CPUs; its address."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=str(short_tmp / "r"), log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
