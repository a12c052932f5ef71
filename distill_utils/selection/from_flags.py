"""The commands on pools: vas, moment and validate."""

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from distill_utils.runs import processes
from distill_utils.runs.errors import UserError
from distill_utils.runs.provenance import provenance
from distill_utils.runs.reading import read_json
from distill_utils.runs.writing import write_array, write_json
from distill_utils.selection.filtering import BadRows, Filter
from distill_utils.selection.parts import digest
from distill_utils.selection.pool import Pool, blocks_of
from distill_utils.selection.score import TILE, SecondMoment, Tiles, described, read_matrix, read_moment
from distill_utils.selection.subset import read_subset, require_in_pool, sortable

ARCHITECTURES = {
    "l14": ("clip_l14_similarity_score", "l14_img"),
    "b32": ("clip_b32_similarity_score", "b32_img"),
}  # column, member


def run_command(what, args):
    """One of the commands vas, vas_d, moment and validate, in every process of a torchrun job."""
    if what == "validate":
        return validate(args)
    device = _device(args.device)
    world, name = processes.join(device), "cpu" if device.type == "cpu" else str(device)
    if world.first:
        print(f"device: {described(name)}")
    return (compute_moment if what == "moment" else choose)(args, world, Tiles(name, args.normalize))


def _device(name):
    """The device; torch is imported for a GPU alone, or to ask it for one where there is a driver."""
    if name == "cpu" or name == "auto" and not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg"))):
        return SimpleNamespace(type="cpu")
    from distill_utils.runs.devices import resolve_device

    return resolve_device(name)


def _open_pool(args, score=False, features=True):
    column, member = ARCHITECTURES[args.arch]
    score, features = score and (args.score_column or column), features and (args.feature_member or member)
    return Pool(args.metadata_dir, score or None, features or None, args.uid_column, _block(args))


def _block(args):
    return -(-args.block // TILE) * TILE  # so that tiles begin where they would in any other division


def _require_apart(flag, out, inputs):
    """UserError where writing `out`, or the .json beside it, would overwrite one of the `inputs`."""
    out = Path(out)
    if out.suffix != ".npy":
        raise UserError(f"{flag} {out} must end in .npy; a .json is written beside it.")
    for path in (out, out.with_suffix(".json")):
        for other in filter(None, inputs):
            if path.exists() and os.path.exists(other) and path.samefile(other):
                raise UserError(f"{flag} {out} would overwrite {other}, which is read: give another name.")


def _require_sense(args):
    """UserError for flags that contradict each other, or say too little."""
    prior, fraction, threshold = args.target_variance, args.fraction_vas, args.threshold_vas
    vas_d = "VAS-D (without --target_variance) shrinks to a --fraction_vas of the pool in --num_iters rounds"
    two_cuts = None not in (args.fraction, args.threshold)
    for wrong, sentence in (
        (two_cuts, "Give --fraction or --threshold: both cut by the CLIP score."),
        (None not in (fraction, threshold), "Give --fraction_vas or --threshold_vas: both cut by VAS."),
        (prior and args.num_iters, "--num_iters belongs to VAS-D: leave it or --target_variance out."),
        (not prior and threshold is not None, f"{vas_d}: it has no --threshold_vas."),
        (not prior and not (fraction and args.num_iters), f"{vas_d}: give both."),
        (fraction is None and threshold is None, "Say how much to keep: --fraction_vas or --threshold_vas."),
    ):
        if wrong:
            raise UserError(sentence)


def choose(args, world, tiles):
    """`coreset vas --metadata_dir`: what `Filter.write` returns, None on the processes after the first."""
    _require_sense(args)
    _require_apart("--save_path", args.save_path, [args.target_variance, args.given_uids_path])
    pool = _open_pool(args, score=args.fraction is not None or args.threshold is not None)
    moment = read_moment(args.target_variance, pool.width) if args.target_variance else None
    given = sortable(read_subset(args.given_uids_path)) if args.given_uids_path else None
    clip = {"fraction": args.fraction, "threshold": args.threshold}
    how = {"drop": args.bad_rows == "drop", "tiles": tiles, "world": world}
    job = Filter(pool, args.save_path, given=given, **clip, **how)
    with job.alone(args.keep_parts):
        if moment is None:
            chosen, summary = job.by_rounds(args.fraction_vas, args.num_iters)
        else:
            vas = {"fraction": args.fraction_vas, "threshold": args.threshold_vas}
            chosen, summary = job.by_prior(moment, **vas)
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
    found = provenance(described(tiles.device), None, ("numpy", "pyarrow", "fsspec"))
    return {name: value for name, value in found.items() if name not in ("seed", "started")}


def _tell(facts, pool, path):
    print(f"pool: {facts['pool']:,} pairs in {facts['files']} files of {pool.folder}")
    for name, summary in ((pool.score, facts["clip"]), ("VAS", facts["vas"])):
        if summary:
            line = f"{name}: {summary['kept']:,} kept ({summary['kept'] / facts['pool']:.4f} of the pool)"
            if "rounds" in summary:
                print(f"{line} after {summary['rounds']} rounds, by {summary['scored']:,} scores")
            else:
                print(
                    line,
                    *(f"{number} {summary[number]:.6f}" for number in ("threshold", "mean", "max")),
                    sep=", ",
                )
    if bad := facts["bad_rows"]["dropped"]:
        print(f"{bad:,} bad rows were left out; the first: {facts['bad_rows']['first'][0]}")
    if facts["repeated_uids"]:
        print(f"{facts['repeated_uids']:,} uids are in the pool more than once and are written once")
    print(f"{facts['uids']:,} uids: {path}")


def compute_moment(args, world, tiles):
    """`coreset moment`: writes S of the embeddings in files, or in a pool, and returns it, float64 [D, D]."""
    if bool(args.features) == bool(args.metadata_dir):
        raise UserError(
            "Give either --features FILE ... or --metadata_dir, whose second moment is to be computed."
        )
    _require_apart("--out", args.out, args.features)
    if args.metadata_dir:
        pool = _open_pool(args)
        sources = [
            (file.npz, file.rows, file.width, partial(pool.feature_blocks, file)) for file in pool.files
        ]
    else:
        member = args.feature_member or ARCHITECTURES[args.arch][1]
        arrays = [(path, read_matrix(path, member)) for path in args.features]
        sources = [(path, *array.shape, partial(blocks_of, array, _block(args))) for path, array in arrays]
    widths, bad = {width for _, _, width, _ in sources}, BadRows(args.bad_rows == "drop")
    if len(widths) > 1:
        raise UserError(f"The --features have different widths: {', '.join(map(str, sorted(widths)))}.")
    moment = SecondMoment(*widths, sum(rows for _, rows, _, _ in sources))

    def add(path, blocks):
        found = []
        for begin, rows in blocks():
            vectors, norms, good = tiles.units(rows)
            moment.add(tiles, vectors[good])
            found += [[begin + int(row), f"{norms[row]:.4g}"] for row in np.flatnonzero(~good)]
        BadRows(bad.drop).add_norms(path, found)
        return found

    found = world.map([partial(add, path, blocks) for path, _, _, blocks in sources], tiles.device)
    for (path, *_), rows in zip(sources, found):
        bad.add_norms(path, rows)
    _sum_up(moment, world, tiles.device)
    if not moment.rows:
        raise UserError("There is no good embedding: a second moment needs at least one.")
    value = moment.value()
    if world.first:
        facts = {"rows": moment.rows, "width": len(value), "sha256": digest(value)}
        facts |= {"bad_rows": {"dropped": bad.count, "first": bad.named}, **_machine(tiles)}
        write_array(args.out, value)
        write_json(Path(args.out).with_suffix(".json"), facts)
        rows = f"{moment.rows:,} embeddings of width {len(value)}"
        print(f"second moment of {rows}, {bad.count:,} bad rows left out: {args.out}")
    return value


def _sum_up(moment, world, device):
    """The moment of all processes' rows, on each of them."""
    if world.size > 1:
        import torch

        moment.sums = world.add_up(torch.from_numpy(moment.sums).to(device)).cpu().numpy()
        moment.rows = int(world.add_up(torch.tensor([moment.rows], device=device)))


def validate(args):
    """`coreset validate`: UserError unless the file is a subset that the resharder takes, of this pool if one
    is given; the number of uids.
    """
    subset, sidecar = read_subset(args.subset), Path(args.subset).with_suffix(".json")
    if args.metadata_dir:
        require_in_pool(args.subset, subset, _open_pool(args, features=False))
    if read_json(sidecar, {}).get("sha256", digest(np.array(subset))) != digest(np.array(subset)):
        raise UserError(f"{args.subset} is not the file that {sidecar} describes: their hashes differ.")
    where = f", each once in {args.metadata_dir}" if args.metadata_dir else ""
    print(f"{args.subset}: {len(subset):,} uids, sorted and distinct{where}")
    return len(subset)
