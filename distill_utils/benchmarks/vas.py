"""Filtering pools by VAS: static against all of it in memory with NumPy; the rounds of VAS-D with the
eigenvalue bound against scoring every row.
"""

import time

import numpy as np
import pyarrow
import pyarrow.parquet
import torch

from distill_utils.benchmarks import cells
from distill_utils.benchmarks.cells import required
from distill_utils.evaluation.tables import aligned
from distill_utils.runs.devices import peak_mb
from distill_utils.selection import pool, vas
from distill_utils.selection.oracles import vas_in_memory

_FRACTIONS = (0.45, 0.3)  # DataComp small: of the pool, by CLIP score and by VAS
_WIDTH, _FILE_ROWS, _ROUNDS = 768, 250_000, 168  # rounds: the paper's for DataComp small
_UID_STRIDE = 0x9E3779B97F4A7C15F39CC0605CEDC835
_TWINS = {"static": "in memory", "bounded": "every row"}  # cells that must choose the same set


def make_pool(folder, rows, seed):
    """A pool of random unit vectors with a mean and a decaying spectrum, as CLIP's have, in DataComp's files;
    and a prior's moment.
    """
    folder.mkdir()
    numbers = torch.Generator().manual_seed(seed)
    spectrum = (1 + torch.arange(_WIDTH)) ** -0.5
    centre = torch.randn(_WIDTH, generator=numbers) * spectrum

    def vectors(n):
        return torch.nn.functional.normalize(torch.randn(n, _WIDTH, generator=numbers) * spectrum + centre)

    for begin in range(0, rows, _FILE_ROWS):
        n = min(_FILE_ROWS, rows - begin)
        uids = [f"{row * _UID_STRIDE % (1 << 128):032x}" for row in range(begin, begin + n)]
        scores = (0.2 + 0.05 * torch.randn(n, generator=numbers)).half().float().numpy()
        table = pyarrow.table({"uid": uids, "clip_l14_similarity_score": scores})
        pyarrow.parquet.write_table(table, folder / f"{begin:032x}.parquet")
        images = torch.cat([vectors(min(50_000, n - at)).half() for at in range(0, n, 50_000)])
        np.savez(folder / f"{begin:032x}.npz", l14_img=images.numpy())
    prior = vectors(20_000).double()
    np.save(folder / "prior.npy", (prior.T @ prior / len(prior)).numpy())
    return {}


def vas_cell(folder, name):
    """Seconds and peak memory of one way to filter the pool; what is left is in <folder>_<name>.npy."""
    out, device = folder.with_name(f"{folder.name}_{name}.npy"), torch.device("cpu")
    began = time.perf_counter()
    moment, rounds = np.load(folder / "prior.npy"), {}
    if name == "in memory":
        np.save(out, vas_in_memory(folder, moment, *_FRACTIONS))
    else:
        whole = pool.Pool(folder, *vas.ARCHITECTURES["l14"])
        selection = vas.Selection(whole, out, fraction=_FRACTIONS[0], device=device)
        if name == "static":
            chosen, _ = selection.by_prior(torch.from_numpy(moment), fraction=_FRACTIONS[1])
        else:
            chosen, summary = selection.by_rounds(_FRACTIONS[1], _ROUNDS, bound=name == "bounded")
            rounds = {"scored": summary["scored"], "shrink_seconds": summary["seconds"]}
        selection.write(chosen, {}, {})
    return {"seconds": time.perf_counter() - began, "peak_mb": peak_mb(device)} | rounds


def benchmark(args, folder):
    """Rows a second, peak memory and whether the sets are the same, for every size of pool."""
    result, names = {}, ("in memory", "static", "bounded", "every row")
    for size in map(int, args.pool):
        where = folder / str(size)
        required(cells.in_own_process(make_pool, where, size, args.seed), "The pool cannot be made")
        measured = names if size <= 200_000 else names[:2]
        found = {name: cells.in_own_process(vas_cell, where, name) for name in measured}
        good = [name for name, cell in found.items() if "error" not in cell]
        chosen = {name: (folder / f"{size}_{name}.npy").read_bytes() for name in good}
        for name in good:
            twin = _TWINS.get(name)
            found[name]["same_set"] = chosen[name] == chosen[twin] if twin in chosen else None
        result[size] = found
    rows = [_row(size, name, cell) for size, found in result.items() for name, cell in found.items()]
    print(aligned(["pool", "rows a second", "seconds", "peak MB", "", ""], rows))
    return {"pools": result}


def _row(size, name, cell):
    label = f"{size:,} rows, {name}"
    if "error" in cell:
        return [label, cell["error"], "", "", "", ""]
    numbers = [f"{size / cell['seconds']:,.0f}", f"{cell['seconds']:.1f}", f"{cell['peak_mb']:,.0f}"]
    same = {True: "same set", False: "ANOTHER SET", None: ""}[cell["same_set"]]
    detail = ""
    if "scored" in cell:
        detail = f"{cell['shrink_seconds']:.1f} s of it in {_ROUNDS} rounds, {cell['scored']:,} scores"
    return [label, *numbers, same, detail]
