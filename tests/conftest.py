"""Small networks and data that the tests share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network; read when the hub's library is imported

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from commands import EXPERTS, toy  # noqa: E402
from torch import nn  # noqa: E402

import buffer  # noqa: E402
from networks.two_tower import ProjectionHead, TwoTower  # noqa: E402


class TinyEncoder(nn.Module):
    """Two smooth convolutions and a pool, with a frozen scale: enough to be an image tower, in any dtype."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2)
        self.second = nn.Conv2d(4, width, 2)
        self.frozen = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, images):
        return self.second(self.first(images).tanh()).tanh().mean(dim=(2, 3)) * self.frozen


def tiny_model(width=5, text_dim=6, dropout=0.5, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return TwoTower(TinyEncoder(width), ProjectionHead(text_dim, width, dropout)).to(dtype)


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
def shared():
    """The folder of real test data, where there is one."""
    folder = Path(os.environ.get("LORS_SHARED", "../shared"))
    if not (folder / "real").is_dir():
        pytest.skip(f"no real test data: {folder}/real does not exist (set LORS_SHARED)")
    return folder.resolve() / "real"
