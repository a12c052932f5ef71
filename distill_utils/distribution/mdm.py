"""MDM (CVPR 2026): agreement and discrepancy of the modalities, under teachers merged from experts."""

import torch
import torch.nn.functional as F

from distill_utils.distribution.pairs import fill_gradients, synthetic_batch
from distill_utils.matching.objective import Outcome
from distill_utils.training.losses import info_nce, pair_logits
from networks.weights import Weights, flatten, load_flat


class ModalityMatching:
    """loss(Z, S) + w D(u_real, u_syn) + w D(g_real, g_syn); u = unit(v + t), g = unit(v - t), v and t unit.

    D is `kernel_distance`; v and t are those of a frozen teacher, another one every step (`merged`). Z, S are
    the synthetic batch's logits and similarity (MDM: InfoNCE and S = I). Images, texts and S learn; the
    learned rates get no gradient and stay as they began. Our readings: the teacher is in eval mode; where
    experts do not begin at one point, both its snapshots are of one expert.

    model: a TwoTower that takes the teachers' weights. real_batch(size, generator) -> (images, texts). world:
    the processes of the job, each of which does the same.
    """

    def __init__(
        self,
        model,
        experts,
        real_batch,
        *,
        world,
        batch_size=64,
        weight=0.8,
        sigma=0.5,
        temperature=0.07,
        loss_fn=info_nce,
    ):
        self.model, self.experts, self.real_batch = model.eval(), experts, real_batch
        self.world, self.batch_size, self.loss_fn = world, batch_size, loss_fn
        self.weight, self.sigma, self.temperature = weight, sigma, temperature

    def __call__(self, synthetic, step, draws):
        first, second = draw_snapshots(self.experts, draws)
        load_flat(self.model, merged(self.experts, first, second))
        images, texts, similarity = synthetic_batch(synthetic, self.batch_size, draws)
        with torch.no_grad():
            real = self.model(*self.real_batch(self.batch_size, draws))
        with torch.enable_grad():
            made = self.model(images, texts)
            losses = {"contrastive": self.loss_fn(pair_logits(*made, self.temperature), similarity)}
            for name, sign in (("agreement", 1), ("discrepancy", -1)):
                both = [F.normalize(v + sign * t, dim=-1) for v, t in (real, made)]
                losses[name] = self.weight * kernel_distance(*both, self.sigma)
        values = fill_gradients(synthetic, losses, self.world)
        return Outcome(values, {"expert": first[0], "epoch": first[1]})

    def commit(self):
        """Nothing is carried from one outer step to the next."""

    def state(self):
        return {}

    def fits(self, state):
        return True

    def load_state(self, state):
        pass


def kernel_distance(a, b, sigma):
    """sqrt(mean k(a, a) + mean k(b, b) - 2 mean k(a, b)) of unit vectors [A, W], [B, W], with the kernel
    k(x, y) = exp(-arccos(<x, y>)^2 / (2 sigma^2)): 0 for equal sets.
    """
    squares = [_kernel(x, y, sigma).mean() for x, y in ((a, a), (b, b), (a, b))]
    # A root of 0 has no slope: equal sets are a minimum, where the gradient is 0.
    return (squares[0] + squares[1] - 2 * squares[2]).clamp(min=1e-8).sqrt()


def _kernel(a, b, sigma):
    cosines = (a @ b.T).clamp(-1 + 1e-6, 1 - 1e-6)  # the slope of arccos is infinite at 1 and -1
    return (-cosines.arccos().square() / (2 * sigma**2)).exp()


def draw_snapshots(experts, generator):
    """Two (expert, epoch), epochs from 1 on; of one expert where experts begin at different points."""
    first, second = (int(torch.randint(len(experts), (), generator=generator)) for _ in range(2))
    if not _same_start(experts.snapshots(first), experts.snapshots(second)):
        second = first
    return [(expert, _epoch(experts.snapshots(expert), generator)) for expert in (first, second)]


def _same_start(one, other):
    return all(torch.equal(a, b) for tower in zip(one, other) for a, b in zip(tower[0][0], tower[1][0]))


def _epoch(snapshots, generator):
    return 1 + int(torch.randint(len(snapshots.img) - 1, (), generator=generator))


def merged(experts, first, second):
    """A teacher's flat `Weights`: theta_0 + .5 c (d_1 + d_2) / 2 tensor by tensor, d_k the displacements of
    two (expert, epoch) from their start theta_0, c = 2 cos / (1 + cos) of the angle between them, 0 from a
    right angle on.
    """
    found = []
    for tower in range(2):
        shots = [experts.snapshots(expert)[tower] for expert, _ in (first, second)]
        ends = shots[0][first[1]], shots[1][second[1]]
        found.append(flatten([_between(*tensors) for tensors in zip(shots[0][0], *ends)]))
    return Weights(*found)


def _between(start, one, other):
    start = start.float()
    moves = one.float() - start, other.float() - start
    cosine = F.cosine_similarity(*(move.flatten() for move in moves), dim=0).clamp(min=0)
    return start + 0.5 * (2 * cosine / (1 + cosine)) * (moves[0] + moves[1]) / 2
