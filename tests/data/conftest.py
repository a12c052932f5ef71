"""What the tests of downloads share."""

import io
import zipfile

import pytest
from loopback import Server

from data import fetching


@pytest.fixture
def server(monkeypatch):
    """A Server without files, and no pauses between tries."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetching, "_PAUSE", 0.0)
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def zipped():
    """zipped({name: content}): the bytes of a zip."""

    def make(members):
        with io.BytesIO() as memory:
            with zipfile.ZipFile(memory, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
            return memory.getvalue()

    return make
