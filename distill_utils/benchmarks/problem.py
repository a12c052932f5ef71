"""What every matching cell starts from: real pairs, and the start and target of an expert that trained on
them.
"""

import itertools

import torch

from data import build_datasets
from distill_utils.benchmarks import cells
from distill_utils.benchmarks.cells import required
from distill_utils.distillation.optimizer import outer_optimizer
from distill_utils.matching.objective import draw_minibatches
from distill_utils.runs.devices import set_precision
from distill_utils.runs.seeds import generator
from distill_utils.selection.coresets import select
from distill_utils.synthetic.set import SyntheticSet, real_set
from distill_utils.synthetic.similarity import build_similarity
from distill_utils.task.from_flags import model_maker, open_task
from distill_utils.training.epochs import sgd, train_epoch
from distill_utils.training.losses import LOSSES
from networks import build_model
from networks.text_encoders import ensure_toy_bert
from networks.weights import Weights, flatten, snapshot

PUBLISHED_EPOCHS = 10  # of the experts in a buffer of published size
_FILE = "problem.pt"


def make_problem(args, folder):
    """Writes the problem of the flags into `folder`, in a process of its own; UserError where it cannot be
    made.

    Toy scenes without roots of their own are made there too, with a BERT of base size that knows their words.
    """
    if args.dataset == "toy" and not args.ann_root:
        args.image_root = args.ann_root = str(folder / "toy")
        train = build_datasets("toy", args.image_root, args.ann_root, toy_sizes=args.toy_size).train
        args.text_encoder = str(ensure_toy_bert(train.captions, folder, width=768, layers=12, heads=12))
    required(cells.in_own_process(_write_problem, args, folder), "The problem to measure cannot be made")


def _write_problem(args, folder):
    device = torch.device(args.device)
    task = open_task(args, device)
    torch.manual_seed(args.seed)
    model = model_maker(args, task, device)().to(device)
    numbers = generator(args.seed, "benchmark")
    optimizer = sgd(model, 0.1, 0.1)
    epochs = (task.train_batches(max(args.mini_batch_size, 16), numbers, device) for _ in itertools.count())
    batches = itertools.chain.from_iterable(epochs)
    snapshots = []
    for _ in range(2):
        of_an_epoch = itertools.islice(batches, args.expert_steps)
        train_epoch(model, of_an_epoch, optimizer, LOSSES["InfoNCE"], args.temperature)
        snapshots.append([list(tower) for tower in snapshot(model)])
    pairs = real_set(task, select("random", task, args.num_queries, numbers), {})
    problem = {"snapshots": snapshots, "images": pairs.images.detach(), "texts": pairs.texts.detach()}
    torch.save(problem, folder / _FILE)
    return {}


def read_problem(folder):
    return torch.load(folder / _FILE, weights_only=True)


class Problem:
    """What every matching cell starts from, in any dtype."""

    def __init__(self, args, folder, dtype=torch.float32):
        self.args, self.device = args, torch.device(args.device)
        set_precision(args.precision, self.device)
        like = {"device": self.device, "dtype": dtype}
        saved = read_problem(folder)
        self.synthetic = _synthetic_set(args, saved["images"], saved["texts"], like)
        self.start, self.target = (
            Weights(*(flatten(tower).to(**like) for tower in shot)) for shot in saved["snapshots"]
        )
        self.model = self.build_model(
            trainable=args.image_trainable, grad_checkpointing=args.grad_checkpointing
        )
        self.model = self.model.to(**like).train()
        numbers = generator(args.seed, "minibatches")
        inner_loop = (len(self.synthetic), args.mini_batch_size, args.syn_steps, numbers, self.device)
        self.minibatches = [draw_minibatches(*inner_loop) for _ in range(1 + args.repeats)]
        self.loss_fn = LOSSES[args.loss_type]
        self.shared = {"merge_towers": args.merge_loss_branches, "temperature": args.temperature}
        self.speed = {"path_device": args.path_device, "precision": args.precision, "compile": args.compile}

    def build_model(self, **options):
        """A new student of the flags, its image tower from random weights."""
        where = {"pretrained": False, "checkpoint_dir": self.args.checkpoint_dir}
        return build_model(self.args.image_encoder, self.synthetic.texts.shape[1], **where, **options)

    def outer_optimizer(self):
        rates = {"lr_img": 1, "lr_txt": 1, "lr_lr": 1e-4, "lr_sim": 1}
        return outer_optimizer(self.synthetic, **rates, momentum_syn=0.5, momentum_lr=0.5, momentum_sim=0.5)

    def gradients(self):
        """Copies on the CPU."""
        return {name: parameter.grad.cpu() for name, parameter in self.synthetic.named_parameters()}


def _synthetic_set(args, images, texts, like):
    n, numbers = len(images), generator(args.seed, "S")
    rank = min(args.sim_rank, n)
    similarity = build_similarity(args.sim_type, n, rank=rank, alpha=args.alpha, generator=numbers)
    synthetic = SyntheticSet(images, texts, similarity, args.lr_teacher_img, args.lr_teacher_txt).to(**like)
    with torch.no_grad():  # away from the start, where R = 0 and L has no gradient
        for parameter in similarity.parameters():
            noise = torch.randn(parameter.shape, generator=generator(args.seed, "away"))
            parameter.add_(0.1 * noise.to(**like))
    return synthetic
