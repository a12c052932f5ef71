"""The commands on pools: vas, moment and validate."""

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from distill_utils.runs import processes
from distill_utils.runs.errors import require
from distill_utils.runs.provenance import provenance
from distill_utils.runs.reading import read_json
from distill_utils.runs.writing import write_array, write_json
from distill_utils.selection.filtering import Filter, bad_rows, named
from distill_utils.selection.parts import digest
from distill_utils.selection.pool import Pool, one_width, read_matrix, read_moment
from distill_utils.selection.score import TILE, SecondMoment, Tiles
from distill_utils.selection.subset import read_subset, require_in_pool, sortable


def run_command(what, args):
    """One of the commands vas, moment and validate, in every process of a torchrun job."""
    if what == "validate":
        return validate(args)
    device = _device(args.device)
    world = processes.join(device)
    tiles = Tiles("cpu" if device.type == "cpu" else device, args.normalize)
    if world.first:
        print(f"device: {tiles.described()}")
    return (compute_moment if what == "moment" else choose)(args, world, tiles)


def _device(name):
    """The device; torch is imported for a GPU alone, or to ask it for one where there is a driver."""
    if name == "cpu" or name == "auto" and not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg"))):
        return SimpleNamespace(type="cpu")
    from distill_utils.runs.devices import resolve_device

    return resolve_device(name)


def _open_pool(args, score=False, features=True):
    score = (args.score_column or f"clip_{args.arch}_similarity_score") if score else None
    features = _member(args) if features else None
    return Pool(args.metadata_dir, score, features, args.uid_column, args.block)


def _member(args):
    return args.feature_member or f"{args.arch}_img"


def _require_apart(flag, out, inputs):
    """UserError where writing `out`, or the .json beside it, would overwrite one of the `inputs`."""
    out = Path(out)
    require(out.suffix == ".npy", f"{flag} {out} must end in .npy; a .json is written beside it.")
    for path in (out, out.with_suffix(".json")):
        for other in filter(os.path.exists, filter(None, inputs)):
            same = path.exists() and path.samefile(other)
            require(not same, f"{flag} {out} would overwrite {other}, which is read: give another name.")


def _require_sense(args):
    """UserError for flags that contradict each other, or say too little."""
    part, least = args.fraction_vas, args.threshold_vas
    cuts = args.fraction, args.threshold
    require(None in cuts, "Give --fraction or --threshold: both cut by the CLIP score.")
    require(None in (part, least), "Give --fraction_vas or --threshold_vas: both cut by VAS.")
    if args.target_variance:
        require(not args.num_iters, "--num_iters belongs to VAS-D: leave it or --target_variance out.")
        require(part or least is not None, "Say how much to keep: --fraction_vas or --threshold_vas.")
    else:
        vas_d = "VAS-D (no --target_variance) shrinks to a --fraction_vas of the pool in --num_iters rounds"
        require(least is None, f"{vas_d}: it has no --threshold_vas.")
        require(part and args.num_iters, f"{vas_d}: give both.")


def choose(args, world, tiles):
    """`coreset vas --metadata_dir`: what `Filter.write` returns, None on the processes after the first."""
    _require_sense(args)
    _require_apart("--save_path", args.save_path, [args.target_variance, args.given_uids_path])
    pool = _open_pool(args, score=(args.fraction, args.threshold) != (None, None))
    moment = read_moment(args.target_variance, pool.width) if args.target_variance else None
    given = sortable(read_subset(args.given_uids_path)) if args.given_uids_path else None
    clip = {"given": given, "fraction": args.fraction, "threshold": args.threshold}
    job = Filter(pool, args.save_path, **clip, drop=args.bad_rows == "drop", tiles=tiles, world=world)
    with job.alone(args.keep_parts):
        if moment is None:
            chosen, summary = job.by_rounds(args.fraction_vas, args.num_iters)
        else:
            chosen, summary = job.by_prior(moment, fraction=args.fraction_vas, threshold=args.threshold_vas)
        if world.first:
            facts = job.write(chosen, summary, _settings(args, pool, moment) | _machine(tiles))
            _tell(facts, pool, args.save_path)
            return facts


def _settings(args, pool, moment):
    names = "arch fraction threshold fraction_vas threshold_vas num_iters normalize bad_rows given_uids_path"
    settings = {name: getattr(args, name) for name in (*names.split(), "target_variance")}
    settings |= {"score": pool.score, "features": pool.features, "uid": pool.uid}
    settings["target_variance_sha256"] = None if moment is None else digest(moment)
    return {"metadata_dir": args.metadata_dir, "settings": settings}


def _machine(tiles):
    found = provenance(tiles.described(), None, ("numpy", "pyarrow", "fsspec"))
    return {name: value for name, value in found.items() if name not in ("seed", "started")}


def _tell(facts, pool, path):
    print(f"pool: {facts['pool']:,} pairs in {facts['files']} files of {pool.folder}")
    for name, found in ((pool.score, facts["clip"]), ("VAS", facts["vas"])):
        if found:
            how = ", threshold {threshold:.6f}, mean {mean:.6f}, max {max:.6f}"
            how = " after {rounds} rounds, by {scored:,} scores" if "rounds" in found else how
            part = f"{found['kept']:,} kept ({found['kept'] / facts['pool']:.4f} of the pool)"
            print(f"{name}: {part}{how.format(**found)}")
    if bad := facts["bad_rows"]["dropped"]:
        print(f"{bad:,} bad rows were left out; the first: {facts['bad_rows']['first'][0]}")
    if facts["repeated_uids"]:
        print(f"{facts['repeated_uids']:,} uids are in the pool more than once and are written once")
    print(f"{facts['uids']:,} uids: {path}")


def compute_moment(args, world, tiles):
    """`coreset moment`: writes S of the embeddings in files, or in a pool, and returns it, float64 [D, D]."""
    one = "Give either --features FILE ... or --metadata_dir, whose second moment is to be computed."
    require(bool(args.features) != bool(args.metadata_dir), one)
    _require_apart("--out", args.out, args.features)
    if args.metadata_dir:
        pool = _open_pool(args)
        sources = [(file.npz, (file.rows, file.width), pool.feature_blocks(file)) for file in pool.files]
    else:
        arrays = [(path, read_matrix(path, _member(args))) for path in args.features]
        sources = [(path, array.shape, _blocks(array)) for path, array in arrays]
    width = one_width({path: shape[1] for path, shape, _ in sources})
    moment = SecondMoment(width, sum(shape[0] for _, shape, _ in sources))

    def add(path, blocks):
        bad = []
        for _, _, vectors, good in tiles.of_blocks(blocks, bad):
            moment.add(tiles, vectors[good])
        return named(path, bad, args.bad_rows == "drop")

    parts = [partial(add, path, blocks) for path, _, blocks in sources]
    bad = bad_rows(world.map(parts, tiles.device))
    if world.size > 1:
        import torch

        both = torch.from_numpy(np.append(moment.sums, moment.rows)).to(tiles.device)
        *sums, moment.rows = world.add_up(both).tolist()
        moment.sums = np.reshape(sums, (width, width))
    require(moment.rows, "There is no good embedding: a second moment needs at least one.")
    value = moment.value()
    if world.first:
        facts = {"rows": moment.rows, "width": width, "sha256": digest(value), "bad_rows": bad}
        write_array(args.out, value)
        write_json(Path(args.out).with_suffix(".json"), facts | _machine(tiles))
        rows = f"{moment.rows:,} embeddings of width {width}"
        print(f"second moment of {rows}, {bad['dropped']:,} bad rows left out: {args.out}")
    return value


def _blocks(array):
    """What `Pool.feature_blocks` gives, of an array [N, D]."""
    for begin in range(0, len(array), 4 * TILE):
        yield begin, array[begin : begin + 4 * TILE]


def validate(args):
    """`coreset validate`: UserError unless the file is a subset that the resharder takes, of this pool if one
    is given; the number of uids.
    """
    subset, sidecar = read_subset(args.subset), Path(args.subset).with_suffix(".json")
    if args.metadata_dir:
        require_in_pool(args.subset, subset, _open_pool(args, features=False))
    sha256 = digest(np.array(subset))
    same = read_json(sidecar, {}).get("sha256", sha256) == sha256
    require(same, f"{args.subset} is not the file that {sidecar} describes: their hashes differ.")
    where = f", each once in {args.metadata_dir}" if args.metadata_dir else ""
    print(f"{args.subset}: {len(subset):,} uids, sorted and distinct{where}")
    return len(subset)
