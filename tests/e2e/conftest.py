"""The order of the tests with clusters."""

from __future__ import annotations

import pytest

# Minutes each; what takes long comes first, so that the two processes of `make test` end at about the same time.
_LONGEST = ("test_path", "test_fine_tuning", "test_training")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: at for at, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: (item.path.parent.name == "e2e", order.get(item.path.stem, len(order))))
