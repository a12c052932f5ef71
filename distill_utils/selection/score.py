"""The score and the moment that it is taken with (Wang et al. 2024, arXiv 2402.02055):

    VAS(f) = f^T S f,    S = 1/N sum_j g_j g_j^T                                                      (1)

f is the unit embedding of a pair's image, S the uncentred second moment of a reference set; so VAS(f) =
mean_j (f . g_j)^2, between 0 and 1. Computed by NumPy; by torch on a GPU alone.
"""

import math

import numpy as np

TILE = 1024  # rows computed at once, always as many, so that what a row gives does not depend on the others
_UNIT = 1e-2  # how far from 1 the norm of a unit vector in float16 may be


def vas_scores(features, moment):
    """(1) for features [B, D] and S [D, D], arrays or tensors of one dtype: [B]."""
    return ((features @ moment) * features).sum(1)


class Tiles:
    """Arithmetic on rows of unit vectors, a tile at a time."""

    def __init__(self, device="cpu", normalise=False):
        self.device, self.normalise = str(device), normalise

    def described(self):
        """What computes: NumPy's version, or the GPU and torch's."""
        if self.device == "cpu":
            return f"cpu, numpy {np.__version__}"
        import torch

        return f"{torch.cuda.get_device_name(self.device)}, torch {torch.__version__}"

    def units(self, rows):
        """(float32 [n, D], norms [n], which are good) of rows of any float type; those that are not unit
        vectors, or cannot be made ones, become zero.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            vectors = np.array(rows, np.float32)
            norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
            good = np.isfinite(norms) & (norms > 0) if self.normalise else np.abs(norms - 1) <= _UNIT
        vectors[~good] = 0
        if self.normalise:
            vectors /= np.where(good, norms, 1)[:, None]
        return vectors, norms, good

    def of_blocks(self, blocks, bad):
        """(slice, rows as they are, unit vectors, which are good) for each (begin, rows) of blocks; [row,
        what is wrong] of the others go to the list `bad`.
        """
        for begin, rows in blocks:
            vectors, norms, good = self.units(rows)
            for row in np.flatnonzero(~good):
                hint = ": --normalize makes it one" if 0 < norms[row] < np.inf else ""
                fault = f"an embedding of the norm {norms[row]:.4g}, not a unit vector{hint}"
                bad.append([begin + int(row), fault])
            yield slice(begin, begin + len(rows)), rows, vectors, good

    def scores(self, vectors, moment):
        """(1) of float32 [n, D] with S float32: float32 [n]."""
        moment, found, cpu = self._there(moment), [], self.device == "cpu"
        for begin in range(0, len(vectors), TILE):
            tile = vectors[begin : begin + TILE]
            missing = TILE - len(tile)
            tile = self._there(np.pad(tile, ((0, missing), (0, 0))) if missing else tile)
            vas = np.einsum("ij,ij->i", tile @ moment, tile) if cpu else vas_scores(tile, moment).cpu()
            found.append(vas)
        return np.concatenate([*found, np.empty(0, np.float32)])[: len(vectors)]

    def product(self, vectors):
        """Sum of f f^T, float64 [D, D]."""
        exact = self._there(vectors.astype(np.float64))
        product = exact.T @ exact
        return product if self.device == "cpu" else product.cpu().numpy()

    def _there(self, array):
        if self.device == "cpu":
            return array
        import torch  # here, because on a CPU nothing needs it

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


CPU = Tiles()


class SecondMoment:
    """Sums of f f^T over unit vectors as fixed-point integers: the same in whatever order, and on whatever
    process, tiles are added. Scaled so that those of `most` rows fit in 62 bits: S is resolved to 10^-18.
    """

    def __init__(self, width, most, sums=None, rows=0):
        """sums, rows: of those that are already added."""
        self.scale, self.rows = 2.0 ** (61 - math.ceil(math.log2(most + 1))), rows
        self.sums = np.zeros((width, width), np.int64) if sums is None else sums

    def add(self, tiles, vectors, sign=1):
        """Add rows of unit vectors, float32 [n, D], or with sign -1 take them out."""
        for begin in range(0, len(vectors), TILE):
            product = np.rint(tiles.product(vectors[begin : begin + TILE]) * self.scale)
            self.sums += sign * product.astype(np.int64)
        self.rows += sign * len(vectors)

    def value(self):
        """S, float64 [D, D]."""
        return self.sums / self.scale / self.rows
