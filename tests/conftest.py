from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import Guards


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "portable: also runs without the compiler and for other processors"
    )


@pytest.fixture
def guarded() -> Iterator[Guards]:
    """Makes guarded copies of arrays and checks their bands when the test is over."""
    guards = Guards()
    yield guards
    guards.check()
