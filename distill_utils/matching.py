"""The matching gradient: d(distance of the student to the expert) / d(synthetic set), exact or truncated.

Inner loop, per tower:     theta_{t+1} = theta_t - eta g_t,   g_t = grad_theta l(theta_t; z_t),   z_t = (x_t, y_t, S_t)
Objective, per tower:      L = ||theta_T - theta*||^2 / ||theta_0 - theta*||^2
Backwards from lambda_T = dL/dtheta_T, with u_t = eta lambda_{t+1}:
    dL/dz_t   = -d/de grad_z     l(theta_t + e u_t; z_t) at e = 0              (1)
    dL/deta  += -lambda_{t+1} . g_t                                           (2)
    lambda_t  =  lambda_{t+1} - d/de grad_theta l(theta_t + e u_t; z_t)       (3)   "full": MTT, the whole unroll
    lambda_t  =  lambda_T                                                     (3')  "truncated": TESLA, theta_t held constant

(1) and (3) are one directional derivative, along u_t, of the pair (grad_theta, grad_z) at the single point theta_t: a mixed
Hessian-vector product (Pearlmutter 1994). So the exact gradient of the unroll (Cazenave et al. 2022, MTT) costs the memory of
one inner step plus the path of thetas, where unrolling the graph costs T of them; truncating (Cui et al. 2023, TESLA) saves
only the theta half of each derivative. The derivative is taken in one of three ways:
    forward   forward over reverse: torch.func.jvp of torch.func.grad. Exact.
    reverse   reverse over reverse: the gradient of <g_t, u_t>. Exact; the double backward of the published codes.
    finite    central difference of first-order gradients at theta_t +- e u_t, with e fitted to the direction.
"""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.func import functional_call, grad, jvp

from distill_utils.errors import UserError
from distill_utils.losses import pair_logits
from distill_utils.trajectory import Weights, tower_parameters


class MatchingLoss(NamedTuple):
    """What the outer step minimises (`grand`) and each tower's normalised distance; scalar tensors."""

    grand: torch.Tensor
    img: torch.Tensor
    txt: torch.Tensor


def matching_step(
    model, synthetic, start, target, minibatches, loss_fn, *, gradient="truncated", second_order="forward", merge_towers=False, temperature=0.07
):
    """The matching loss of one inner loop; fills `.grad` of every parameter of the synthetic set.

    model: a TwoTower skeleton; its own parameters are neither read nor changed, its train/eval mode is respected.
    start, target: `Weights` of flat vectors, an expert's snapshots. minibatches: one LongTensor of pair ids per inner step.
    loss_fn: f(logits [B, B], similarity [B, B]) -> scalar. merge_towers: one ratio of summed distances instead of the sum of two.
    Cost: T gradients and T directional derivatives; memory: one inner step and T + 1 weight vectors.
    """
    if gradient not in ("full", "truncated") or second_order not in DERIVATIVES:
        raise UserError(f"gradient {gradient!r} must be full or truncated, second_order {second_order!r} one of {', '.join(DERIVATIVES)}.")
    student = _Student(model, loss_fn, temperature)
    like = {"device": synthetic.images.device, "dtype": synthetic.images.dtype}
    start, target = (Weights(*(vector.to(**like) for vector in weights)) for weights in (start, target))
    eta = Weights(synthetic.lr_img.detach(), synthetic.lr_txt.detach())
    seeds = torch.randint(1 << 62, (len(minibatches),)).tolist()
    with torch.no_grad():
        batches = [_Batch(*synthetic.minibatch(ids), seed) for ids, seed in zip(minibatches, seeds)]

    path = _inner_loop(student, start, batches, eta)
    loss, final_lambda = _objective(path[-1], start, target, merge_towers)

    accumulate = _GradientOf(synthetic)
    derivative = DERIVATIVES[second_order]()
    adjoint = final_lambda  # lambda_{t+1}
    for t in reversed(range(len(batches))):
        # (2); g_t is (theta_t - theta_{t+1}) / eta
        accumulate.lrs(Weights(*(-(lam @ (now - then)) / lr for lam, now, then, lr in zip(adjoint, path[t], path[t + 1], eta))))
        direction = Weights(*(lr * lam for lr, lam in zip(eta, adjoint)))
        d_theta, d_batch = derivative(student, path[t], batches[t], direction, gradient == "full")
        accumulate.minibatch(minibatches[t], d_batch)  # (1)
        if gradient == "full":
            adjoint = Weights(*(lam - d for lam, d in zip(adjoint, d_theta)))  # (3)
        path.pop()
    return loss


def require_no_running_statistics(model):
    """UserError for a model whose output depends on more than its weights and inputs."""
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None:
            raise UserError(
                f"{name} ({type(module).__name__}) keeps running statistics, which are no function of the weights: "
                "trajectory matching needs an encoder without BatchNorm, such as nfnet."
            )


class _Batch(NamedTuple):
    """z_t, and the seed of the random numbers (dropout) that belong to it in both passes."""

    images: torch.Tensor
    texts: torch.Tensor
    similarity: torch.Tensor
    seed: int

    @property
    def z(self):
        return self[:3]


class _Student:
    """The model as a function of two flat weight vectors and a minibatch."""

    def __init__(self, model, loss_fn, temperature):
        require_no_running_statistics(model)
        self.model, self.loss_fn, self.temperature = model, loss_fn, temperature
        towers = tower_parameters(model)
        self.names = [[name for name, _ in tower] for tower in towers]
        self.shapes = [[parameter.shape for _, parameter in tower] for tower in towers]
        self.sizes = [[shape.numel() for shape in shapes] for shapes in self.shapes]

    def loss(self, seed, img, txt, images, texts, similarity):
        parameters = {}
        for vector, names, shapes, sizes in zip((img, txt), self.names, self.shapes, self.sizes):
            # One split, so that the backward pass is one concatenation and not a sum of padded slices.
            parameters |= {name: piece.view(shape) for name, piece, shape in zip(names, vector.split(sizes), shapes)}
        with _replayed(seed, images.device):
            features = functional_call(self.model, parameters, (images, texts))
        return self.loss_fn(pair_logits(*features, self.temperature), similarity)

    def gradients(self, theta, batch, *, with_theta, with_z):
        """First-order gradients in the weights of the towers and the tensors of the batch, in this order, those asked for."""
        theta = [vector.detach().requires_grad_(with_theta) for vector in theta]
        z = [value.detach().requires_grad_(with_z) for value in batch.z]
        inputs = [value for value in (*theta, *z) if value.requires_grad]
        with torch.enable_grad():
            return torch.autograd.grad(self.loss(batch.seed, *theta, *z), inputs, materialize_grads=True)


def _inner_loop(student, start, batches, eta):
    """theta_0 .. theta_T; no graph outlives its step."""
    path = [start]
    for batch in batches:
        gradients = student.gradients(path[-1], batch, with_theta=True, with_z=False)
        path.append(Weights(*(vector - lr * g for vector, lr, g in zip(path[-1], eta, gradients))))
    return path


def _objective(final, start, target, merge_towers):
    """The loss and lambda_T = dL/dtheta_T."""
    gaps = [vector - goal for vector, goal in zip(final, target)]
    distances = [gap @ gap for gap in gaps]
    scales = [(vector - goal).square().sum() for vector, goal in zip(start, target)]
    ratios = [distance / scale for distance, scale in zip(distances, scales)]
    if merge_towers:
        scales = [sum(scales)] * 2
    grand = sum(distance / scale for distance, scale in zip(distances, scales)) if merge_towers else sum(ratios)
    return MatchingLoss(grand, *ratios), Weights(*(2 * gap / scale for gap, scale in zip(gaps, scales)))


@contextmanager
def _replayed(seed, device):
    """Dropout masks that depend on the seed alone, so that both passes see the same function; other random numbers go on."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class Forward:
    """The directional derivative by forward over reverse."""

    def __call__(self, student, theta, batch, direction, full):
        """(d grad_theta per tower, or None unless `full`; d grad_z) along `direction`, at `theta`."""
        argnums = (1, 2, 3, 4, 5) if full else (3, 4, 5)

        def gradients(img, txt):
            return grad(student.loss, argnums)(batch.seed, img, txt, *batch.z)

        return _by_input(jvp(gradients, tuple(theta), tuple(direction))[1], full)


class Reverse:
    """The directional derivative by reverse over reverse."""

    def __call__(self, student, theta, batch, direction, full):
        """As Forward."""
        theta = [vector.detach().requires_grad_() for vector in theta]
        z = [value.detach().requires_grad_() for value in batch.z]
        with torch.enable_grad():
            gradients = torch.autograd.grad(student.loss(batch.seed, *theta, *z), theta, create_graph=True, materialize_grads=True)
            product = sum(g @ u for g, u in zip(gradients, direction))
            return _by_input(torch.autograd.grad(product, [*theta, *z] if full else z, materialize_grads=True), full)


class Finite:
    """The directional derivative by central differences of first-order gradients.

    The truncation error grows, and the rounding error shrinks, with how far the gradients move; e aims at a relative movement
    of eps^(1/3), where the two meet, whatever the direction: a fixed e is far too long along stiff ones. The fitted length
    ||e u|| is carried to the next inner step.
    """

    _TRIES = 6

    def __init__(self):
        self.length = None

    def __call__(self, student, theta, batch, direction, full):
        """As Forward."""
        norm = torch.cat(list(direction)).norm()
        if norm == 0:
            return _by_input([torch.zeros_like(value) for value in ((*theta, *batch.z) if full else batch.z)], full)
        aim = torch.finfo(norm.dtype).eps ** (1 / 3)
        length = self.length or 1e-4 * float(torch.cat(list(theta)).norm())
        for _ in range(self._TRIES):
            self.length = length
            step = length / norm
            plus, minus = (
                student.gradients([vector + sign * step * u for vector, u in zip(theta, direction)], batch, with_theta=full, with_z=True)
                for sign in (1, -1)
            )
            movement = max(float((p - m).norm() / (p.norm() + m.norm()).clamp(min=1e-30)) for p, m in zip(plus, minus))
            if aim / 4 <= movement <= 4 * aim:
                break
            length *= min(max(aim / max(movement, 1e-30), 1e-3), 1e3)
        return _by_input([(p - m) / (2 * step) for p, m in zip(plus, minus)], full)


def _by_input(derivatives, full):
    """(theta, z) parts of derivatives that hold the former only if `full`."""
    return (derivatives[:2], derivatives[2:]) if full else (None, derivatives)


DERIVATIVES = {"forward": Forward, "reverse": Reverse, "finite": Finite}


class _GradientOf:
    """Sums the minibatches' gradients into `.grad` of a synthetic set."""

    def __init__(self, synthetic):
        self.synthetic = synthetic
        for parameter in synthetic.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def minibatch(self, ids, derivatives):
        d_images, d_texts, d_similarity = derivatives
        self.synthetic.images.grad.index_add_(0, ids, d_images, alpha=-1)
        self.synthetic.texts.grad.index_add_(0, ids, d_texts, alpha=-1)
        with torch.enable_grad():
            block = self.synthetic.similarity(ids)
        if block.requires_grad:
            block.backward(-d_similarity)

    def lrs(self, gradients):
        self.synthetic.lr_img.grad += gradients.img
        self.synthetic.lr_txt.grad += gradients.txt
