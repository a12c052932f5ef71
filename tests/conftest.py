"""Fixtures that the tests share: toy data and experts, a process that forks, the real test data if any."""

import os

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # no test may reach for the network; read when the hub's library is imported
)

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from commands import EXPERTS, Forker, toy  # noqa: E402

import buffer  # noqa: E402


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with toy data and two trained experts."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        buffer.main([*toy(folder), *EXPERTS, "--buffer_path", f"{folder}/buffers"])
    return folder


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


@pytest.fixture(scope="session")
def forker():
    """Runs programs in processes of their own, which a test may kill."""
    forker = Forker()
    yield forker
    forker.close()


@pytest.fixture(scope="session")
def shared():
    """The folder of real test data, where there is one."""
    folder = Path(os.environ.get("LORS_SHARED", "../shared"))
    if not (folder / "real").is_dir():
        pytest.skip(f"no real test data: {folder}/real does not exist (set LORS_SHARED)")
    return folder.resolve() / "real"
