"""A run that nothing disturbed, for the tests of disturbed ones."""

import pytest
from commands import EXPERTS, long_run, toy


@pytest.fixture(scope="session")
def home(tmp_path_factory, forker):
    """A folder with toy data, two experts, and a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("home")
    assert forker.run("buffer", [*toy(folder), *EXPERTS, "--buffer_path", f"{folder}/buffers"], folder) == 0
    assert forker.run("distill_lors", long_run(folder, "undisturbed"), folder) == 0
    return folder
