"""Filtering pools by VAS: static against all of it in memory with NumPy; the rounds of VAS-D with the
eigenvalue bound against scoring every row.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch

from distill_utils.benchmarks import cells
from distill_utils.benchmarks.cells import required
from distill_utils.evaluation.tables import aligned
from distill_utils.runs.reading import read_json

_FRACTIONS = (0.45, 0.3)  # DataComp small: of the pool, by CLIP score and by VAS
_WIDTH, _FILE_ROWS, _ROUNDS = 768, 250_000, 168  # rounds: the paper's for DataComp small
_UID_STRIDE = 0x9E3779B97F4A7C15F39CC0605CEDC835
_TWINS = {"static": "in memory", "bounded": "every row"}  # cells that must choose the same set
_ROOT = Path(__file__).parents[2]
_IN_MEMORY = """
import sys
from pathlib import Path
import numpy as np
from distill_utils.selection.oracles import vas_in_memory
folder, out, *fractions = sys.argv[1:]
np.save(out, vas_in_memory(Path(folder), np.load(f"{folder}/prior.npy"), *map(float, fractions)))
"""
_EVERY_ROW = """
import sys
from distill_utils.selection.filtering import Filter
from distill_utils.selection.pool import Pool
folder, out, fraction, fraction_vas, rounds = sys.argv[1:]
job = Filter(Pool(folder, "clip_l14_similarity_score", "l14_img"), out, fraction=float(fraction))
with job.alone():
    job.write(*job.by_rounds(float(fraction_vas), int(rounds), bound=False), {})
"""
# Linux carries a process's peak over exec: that of a child is at least its parent's, so the parent is small.
_LAUNCH = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([status, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


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


def measured(command):
    """Seconds, CPU seconds and peak memory of a command in the tree's root; RuntimeError if it fails."""
    launch = [sys.executable, "-c", _LAUNCH, *command]
    done = subprocess.run(launch, cwd=_ROOT, stdout=subprocess.PIPE, check=True)
    status, *numbers = json.loads(done.stdout)
    if status:
        raise RuntimeError(f"the command ended with status {status}")
    return dict(zip(("seconds", "cpu_seconds", "peak_mb"), numbers))


def vas_cell(folder, name):
    """Seconds and peak memory of one way to filter the pool, as a command of its own with all it imports;
    what is left is in <folder>_<name>.npy.
    """
    out = folder.with_name(f"{folder.name}_{name}.npy")
    fractions = [str(fraction) for fraction in _FRACTIONS]
    flags = ["--metadata_dir", str(folder), "--save_path", str(out), "--device", "cpu"]
    flags += ["--fraction", fractions[0], "--fraction_vas", fractions[1]]
    program = ["-m", "distill_utils.coreset", "vas", *flags]
    command = {
        "in memory": ["-c", _IN_MEMORY, str(folder), str(out), *fractions],
        "static": [*program, "--target_variance", str(folder / "prior.npy")],
        "bounded": [*program, "--num_iters", str(_ROUNDS)],
        "every row": ["-c", _EVERY_ROW, str(folder), str(out), *fractions, str(_ROUNDS)],
    }[name]
    found = measured([sys.executable, *command])
    facts = read_json(out.with_suffix(".json"), {}).get("vas", {})
    return found | ({"scored": facts["scored"]} if "scored" in facts else {})


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
    print(aligned(["pool", "rows a second", "seconds", "CPU", "peak MB", "", ""], rows))
    return {"pools": result}


def _row(size, name, cell):
    label = f"{size:,} rows, {name}"
    if "error" in cell:
        return [label, cell["error"], "", "", "", "", ""]
    numbers = [f"{size / cell['seconds']:,.0f}", f"{cell['seconds']:.1f}", f"{cell['cpu_seconds']:.1f}"]
    numbers.append(f"{cell['peak_mb']:,.0f}")
    same = {True: "same set", False: "ANOTHER SET", None: ""}[cell["same_set"]]
    detail = f"{_ROUNDS} rounds, {cell['scored']:,} scores" if "scored" in cell else ""
    return [label, *numbers, same, detail]
