"""A pool and a prior set's moment, which no test changes."""

import numpy as np
import pytest
from pools import Made, unit

from distill_utils import coreset


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("datacomp") / "metadata")


@pytest.fixture(scope="session")
def prior(tmp_path_factory):
    """A second moment of other embeddings, as a file."""
    folder = tmp_path_factory.mktemp("prior")
    np.save(folder / "embeddings.npy", unit(2000, seed=5))
    embeddings = ["--features", f"{folder}/embeddings.npy"]
    coreset.main(["moment", *embeddings, "--out", f"{folder}/prior.npy", "--device", "cpu"])
    return folder / "prior.npy"
