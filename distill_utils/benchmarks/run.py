"""FLOPs of a whole distillation, counted before any GPU is needed: the reference's way and ours."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry, shape_wrapper

from distill_utils.benchmarks.run_costs import PerPair, Recipe, our_run, recall_flops, reference_run
from distill_utils.evaluation.tables import aligned
from distill_utils.matching import oracles
from distill_utils.matching.gradient import Matcher
from distill_utils.runs.errors import UserError
from distill_utils.runs.seeds import generator
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import build_similarity
from distill_utils.training.losses import LOSSES, pair_logits
from networks import build_model
from networks.weights import Weights, flatten, snapshot

_PAIRS = 2  # in a counted minibatch: with one, WBCE has no pair that does not belong together
_TEXT_WIDTH = 768  # of BERT's embeddings


def _convolution_backward(grad_shape, x_shape, w_shape, *options, **_):
    """As many as the forward's for each of the two gradients; torch's formula takes a grouped convolution's
    weight gradient for that of a full one.
    """
    *_, transposed, _output_padding, _groups, output_mask = options
    return sum(output_mask[:2]) * conv_flop_count(x_shape, w_shape, grad_shape, transposed)


_FORMULAS = {**flop_registry, torch.ops.aten.convolution_backward: shape_wrapper(_convolution_backward)}


class _Counter(TorchDispatchMode):
    """Adds up FLOPs by torch's formulas; FlopCounterMode itself breaks where only some gradients are asked
    for, by the hooks with which it follows modules.
    """

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = _FORMULAS.get(func._overloadpacket)
        self.flops += formula(*args, **kwargs, out_val=result) if formula else 0
        return result


def flops_of(function):
    """FLOPs of function(): products and convolutions, a multiplication and an addition counted as two."""
    with _Counter() as counter:
        function()
    return counter.flops


def count_per_pair(args):
    """PerPair of the flags' student, on a minibatch of two random pairs and one inner step."""
    torch.manual_seed(args.seed)
    where = {"pretrained": False, "checkpoint_dir": args.checkpoint_dir}
    model = build_model(args.image_encoder, _TEXT_WIDTH, **where)
    images = torch.randn(_PAIRS, 3, args.image_size, args.image_size)
    texts = torch.randn(_PAIRS, _TEXT_WIDTH)
    similarity = build_similarity("lowrank", _PAIRS, rank=1, alpha=1, generator=generator(args.seed, "S"))
    synthetic = SyntheticSet(images, texts, similarity, args.lr_teacher_img, args.lr_teacher_txt)
    start = Weights(*map(flatten, snapshot(model)))
    target = Weights(*(vector + 1e-3 * torch.randn_like(vector) for vector in start))
    inner_loop = (synthetic, start, target, [torch.arange(_PAIRS)])
    loss_fn = LOSSES[args.loss_type]
    with torch.no_grad():
        image = flops_of(lambda: model.encode_images(images))
        text = flops_of(lambda: model.encode_texts(texts))
        width = model.encode_texts(texts).shape[1]
    model.train()

    def training_step():
        loss_fn(pair_logits(*model(images, texts), args.temperature), torch.eye(_PAIRS)).backward()

    training = flops_of(training_step)
    reference = flops_of(lambda: oracles.reference(model, *inner_loop, loss_fn, seed=0))
    matcher = Matcher(model, loss_fn)
    # the length of the steps of `finite` is learned in the first calls, which may repeat their second pass
    ours = min(flops_of(lambda: matcher(*inner_loop, seed=0)) for _ in range(3))
    return PerPair(*(flops / _PAIRS for flops in (image, text, training, reference, ours)), width)


def benchmark(args, folder):
    """A table of the parts of a whole run, and how many times less the flags' way computes."""
    if args.mini_batch_size > args.num_queries:
        size = f"--mini_batch_size {args.mini_batch_size}"
        raise UserError(f"{size} is more than the --num_queries {args.num_queries} pairs there are.")
    galleries = (args.val_gallery, args.test_gallery)
    steps = (args.syn_steps, args.Iteration, args.eval_it, args.epoch_eval_train)
    recipe = Recipe(args.num_queries, args.mini_batch_size, *steps, *galleries)
    cost = count_per_pair(args)
    students = {"students": min(args.num_eval_during, args.num_eval), "last_students": args.num_eval}
    runs = {
        "the reference": reference_run(cost, recipe, cost.reference),
        "our gradient, its evaluation": reference_run(cost, recipe, cost.ours),
        "ours": our_run(cost, recipe, measurements=args.measurements, **students),
    }
    totals = {name: sum(run.values()) for name, run in runs.items()}
    print(_once_table(cost, recipe), _runs_table(runs, totals), sep="\n\n")
    return {"per_pair": cost._asdict(), "runs": runs, "totals": totals}


def _once_table(cost, recipe):
    once = {name: flops for name, flops in cost._asdict().items() if name != "width"}
    once |= {f"recall on {split}": recall_flops(cost, *getattr(recipe, split)) for split in ("val", "test")}
    rows = [[name, f"{flops / 1e9:,.3f}", f"{flops / cost.image:,.2f}"] for name, flops in once.items()]
    return aligned(["once, for one pair or one gallery", "GFLOP", "in forward images"], rows)


def _runs_table(runs, totals):
    rows = []
    for name, run in runs.items():
        parts = [f"{part / 1e15:,.1f} ({part / totals[name]:.0%})" for part in run.values()]
        ratio = totals["the reference"] / totals[name]
        rows.append([name, *parts, f"{totals[name] / 1e15:,.1f}", f"{ratio:.2f}"])
    return aligned(["a run, PFLOP", *runs["ours"], "all", "x less"], rows)
