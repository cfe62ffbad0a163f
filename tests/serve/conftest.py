"""Stages for the engine's tests."""

import pytest
from fake import Stage


@pytest.fixture
def stage():
    """Make stages that are closed after the test."""
    made = []

    def make(**values):
        made.append(Stage(**values))
        return made[-1]

    yield make
    for each in made:
        each.close()
