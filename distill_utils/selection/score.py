"""The score and the moment that it is taken with (Wang et al. 2024, arXiv 2402.02055):

    VAS(f) = f^T S f,    S = 1/N sum_j g_j g_j^T                                                      (1)

f is the unit embedding of a pair's image, S the uncentred second moment of a reference set; so VAS(f) =
mean_j (f . g_j)^2, between 0 and 1. Computed by NumPy; by torch on a GPU alone.
"""

import math

import numpy as np

from distill_utils.runs.errors import UserError, first_line

TILE = 1024  # rows computed at once, always as many, so that what a row gives does not depend on the others
_UNIT = 1e-2  # how far from 1 the norm of a unit vector in float16 may be


def vas_scores(features, moment):
    """(1) for features [B, D] and S [D, D], arrays or tensors of one dtype: [B]."""
    return ((features @ moment) * features).sum(1)


class Tiles:
    """Arithmetic on rows of unit vectors, a tile at a time."""

    def __init__(self, device="cpu", normalise=False):
        self.device, self.normalise = str(device), normalise

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

    def scores(self, vectors, moment):
        """(1) of float32 [n, D] with S float32: float32 [n]."""
        found = np.empty(len(vectors), np.float32)
        moment = moment if self.device == "cpu" else self._there(moment)
        for begin in range(0, len(vectors), TILE):
            tile = vectors[begin : begin + TILE]
            n, tile = len(tile), tile if len(tile) == TILE else np.pad(tile, ((0, TILE - len(tile)), (0, 0)))
            if self.device == "cpu":
                found[begin : begin + n] = np.einsum("ij,ij->i", tile @ moment, tile)[:n]
            else:
                found[begin : begin + n] = vas_scores(self._there(tile), moment)[:n].cpu().numpy()
        return found

    def product(self, vectors):
        """Sum of f f^T, float64 [D, D]."""
        if self.device == "cpu":
            exact = vectors.astype(np.float64)
            return exact.T @ exact
        exact = self._there(vectors).double()
        return (exact.T @ exact).cpu().numpy()

    def _there(self, array):
        import torch  # here, because on a CPU nothing needs it

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


class SecondMoment:
    """Sums of f f^T over unit vectors as fixed-point integers: the same in whatever order, and on whatever
    process, tiles are added. Scaled so that those of `most` rows fit in 62 bits: S is resolved to 10^-18.
    """

    def __init__(self, width, most):
        self.scale = 2.0 ** (61 - math.ceil(math.log2(most + 1)))
        self.sums, self.rows = np.zeros((width, width), np.int64), 0

    def add(self, tiles, vectors, sign=1):
        """Add rows of unit vectors, float32 [n, D], or with sign -1 take them out."""
        for begin in range(0, len(vectors), TILE):
            product = np.rint(tiles.product(vectors[begin : begin + TILE]) * self.scale)
            self.sums += sign * product.astype(np.int64)
        self.rows += sign * len(vectors)

    def value(self):
        """S, float64 [D, D]."""
        return self.sums / self.scale / self.rows


def described(device):
    """What computes: NumPy's version, or the GPU and torch's."""
    if device == "cpu":
        return f"cpu, numpy {np.__version__}"
    import torch

    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"


def read_matrix(path, member):
    """Floating point numbers [N, D], memory-mapped where they can be, from a .npy, the member of an .npz, or
    what torch.save wrote: a tensor, or a dict with "image_features", as DataComp's of ImageNet.
    """
    kind = str(path).rpartition(".")[2]
    try:
        if kind == "npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        elif kind == "npz":
            with np.load(path, allow_pickle=False) as archive:
                array = archive[member]
        else:
            from distill_utils.runs.tensors import load_tensors  # here, because it takes torch

            value = load_tensors(path)
            value = value.get("image_features") if isinstance(value, dict) else value
            array = value.detach().numpy() if hasattr(value, "detach") else value
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except UserError:
        raise
    except Exception as error:  # a broken file surfaces as any of a dozen types
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        raise UserError(f"{path} does not hold floating point numbers [N, D].")
    return array


def read_moment(path, width):
    """S, float64 [width, width]; UserError unless the file holds one."""
    matrix = read_matrix(path, None)
    if matrix.shape != (width, width):
        raise UserError(
            f"{path} holds {list(matrix.shape)}, not a second moment of embeddings of width {width}."
        )
    matrix = np.array(matrix, np.float64)
    if not np.isfinite(matrix).all() or np.abs(matrix - matrix.T).max() > 1e-3 * np.abs(matrix).max():
        raise UserError(f"{path} is not a second moment: it must be finite and symmetric.")
    return (matrix + matrix.T) / 2
