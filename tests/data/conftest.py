import jaxtyping
import pytest


@pytest.fixture
def as_users_run():
    """Without the tests' own shape checks, which would answer before the messages that users get."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
