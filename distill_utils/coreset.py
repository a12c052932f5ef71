"""Synthetic sets of real pairs: `python -m distill_utils.coreset random --dataset toy --num_queries 50`."""

import sys

from distill_utils import config
from distill_utils.errors import UserError
from distill_utils.flags import made_with, open_task
from distill_utils.run import Run, generator, run_program
from distill_utils.similarity import IdentitySimilarity
from distill_utils.synthetic import SyntheticSet

METHODS = ("random",)


def select(method, task, n, generator):
    """LongTensor [n] of the train pairs that `method` chooses, of n different images."""
    if method not in METHODS:
        raise UserError(f"Coreset method {method!r} is unknown: expected one of {', '.join(METHODS)}.")
    return task.sample_pairs(n, generator)


def real_set(task, pairs, meta, similarity=None, **learned):
    """A synthetic set of the real train pairs `pairs` (LongTensor [n]); S = I unless given."""
    images, texts, captions = task.real_pairs(pairs)
    similarity = similarity or IdentitySimilarity(len(pairs))
    return SyntheticSet(images, texts, similarity, meta=meta | {"source_captions": captions}, **learned)


def main(argv=None):
    args = config.parse(config.coreset_parser(__doc__), argv)
    run = Run(args, "coreset", default_name=f"coreset_{args.method}_{args.num_queries}")
    task = open_task(args, run.device)
    pairs = select(args.method, task, args.num_queries, generator(args.seed, "coreset"))
    meta = made_with(args, task) | {"loss": args.loss_type, "temperature": args.temperature, "step": 0}
    path = run.directory / "distilled_0.pt"
    real_set(task, pairs, meta).save(path)
    print(f"{len(pairs)} real pairs: {path}")
    return path


if __name__ == "__main__":
    sys.exit(run_program(main))
