from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numba
import numpy as np
import pytest
import strict
import support
from support import Guards

from charrnn import model, passes
from charrnn.kernels import pack

if numba.config.BOUNDSCHECK:
    strict.die_of_exceptions()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a script has started us with "&"
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what tests start would inherit
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # nohup: we stay, what tests start may go
    config.addinivalue_line("markers", "strict: also runs with bounds checks and between fences")
    fence = os.environ.get("CHARRNN_FENCE")
    if fence:
        support.BAND = 0  # bands would be in front of the fences
        for module in (pack, model):
            module.aligned_zeros = np.zeros  # so would what is left of a cache line
        strict.Fence(at_end=fence == "end").install()
    config.addinivalue_line(
        "markers", "portable: also runs without the compiler and for other processors"
    )


@pytest.fixture(scope="session", autouse=True)
def _threads_that_work() -> Iterator[None]:
    """Small models, too, are shared by all threads that a test asks for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "SMALL", 0)
        yield


@pytest.fixture
def guarded() -> Iterator[Guards]:
    """Makes guarded copies of arrays and checks their bands when the test is over."""
    guards = Guards()
    yield guards
    guards.check()
