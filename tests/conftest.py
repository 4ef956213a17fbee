from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import Guards

from charrnn import optim, passes, stack


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "portable: also runs without the compiler and for other processors"
    )


@pytest.fixture(scope="session", autouse=True)
def _threads_that_work() -> Iterator[None]:
    """Small models, too, are shared by all threads that a test asks for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "SMALL", 0)
        patch.setattr(optim, "SMALL", 0)
        patch.setattr(stack, "SMALL", 0)
        yield


@pytest.fixture
def guarded() -> Iterator[Guards]:
    """Makes guarded copies of arrays and checks their bands when the test is over."""
    guards = Guards()
    yield guards
    guards.check()
