"""Shared by the tests of pages."""

import pytest
from tests.helpers.browser import Browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Yield a browser; skip the test where none is installed."""
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
