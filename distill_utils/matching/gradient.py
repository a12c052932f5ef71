"""The matching gradient: d(distance of the student to the expert) / d(synthetic set), exact or truncated.

Inner loop, per tower:
    theta_{t+1} = theta_t - eta g_t,   g_t = grad_theta l(theta_t; z_t),   z_t = (x_t, y_t, S_t)
Objective, per tower:
    L = ||theta_T - theta*||^2 / ||theta_0 - theta*||^2
Backwards from lambda_T = dL/dtheta_T, with u_t = eta lambda_{t+1}:
    dL/dz_t   = -d/de grad_z l(theta_t + e u_t; z_t) at e = 0                  (1)
    dL/deta  += -lambda_{t+1} . g_t                                            (2)
    lambda_t  =  lambda_{t+1} - d/de grad_theta l(theta_t + e u_t; z_t)        (3)   "full"
    lambda_t  =  lambda_T                                                      (3')  "truncated"
Full is MTT's gradient of the whole unroll; truncated is TESLA's, which holds theta_t constant.

Why this is exact. theta_{t+1} depends on (theta_t, z_t) through theta_t - eta g(theta_t; z_t) alone, so the
chain rule gives lambda_t = lambda_{t+1} - (dg_t/dtheta)^T eta lambda_{t+1} and dL/dz_t = -(dg_t/dz)^T eta
lambda_{t+1}. Both transposed Jacobians are blocks of the Hessian of the scalar l, which is symmetric:
(dg/dtheta)^T u = d/de grad_theta l(theta + e u) and (dg/dz)^T u = d/de grad_z l(theta + e u). So (1) and (3)
are one directional derivative, along u_t, of the pair (grad_theta, grad_z) at the single point theta_t: a
Hessian-vector product (Pearlmutter 1994). The exact gradient of the unroll (Cazenave et al. 2022, MTT) thus
costs the memory of one inner step plus the path of thetas, where unrolling the graph costs T of them;
truncating (Cui et al. 2023, TESLA) saves only the theta half of each derivative.

The derivative is taken in one of three ways:
- forward: forward over reverse, torch.func.jvp of torch.func.grad. Exact.
- reverse: reverse over reverse, the gradient of <g_t, u_t>. Exact; the double backward of published codes.
- finite: (grad l(theta_t + e u_t) - grad l(theta_t)) / e. The second gradient is that of the inner step
  itself, kept from the first pass, so a step costs one more first-order gradient; e is fitted to the
  direction (see `Finite`).
"""

from contextlib import nullcontext
from copy import deepcopy
from typing import NamedTuple

import torch

from distill_utils.matching.checks import require_combination, require_no_running_statistics
from distill_utils.matching.derivatives import DERIVATIVES, dot
from distill_utils.matching.frozen import FrozenTower
from distill_utils.matching.student import Batch, Student, WeightPath
from distill_utils.runs.devices import exact_products
from distill_utils.runs.errors import UserError
from distill_utils.runs.processes import ALONE
from networks.weights import Weights

GRADIENTS = ("full", "truncated")


class MatchingLoss(NamedTuple):
    """What the outer step minimises (`grand`) and each tower's normalised distance; scalar tensors."""

    grand: torch.Tensor
    img: torch.Tensor
    txt: torch.Tensor


def matching_step(
    model,
    synthetic,
    start,
    target,
    minibatches,
    loss_fn,
    *,
    gradient="truncated",
    second_order="finite",
    merge_towers=False,
    temperature=0.07,
    seed=None,
):
    """The matching loss of one inner loop, by a `Matcher` made for it alone; fills `.grad` of every parameter
    of the synthetic set.
    """
    matcher = Matcher(
        model,
        loss_fn,
        gradient=gradient,
        second_order=second_order,
        merge_towers=merge_towers,
        temperature=temperature,
    )
    return matcher(synthetic, start, target, minibatches, seed)


class Matcher:
    """The matching loss of one inner loop after another; what does not change between them is built once.

    model: a TwoTower, copied; its values do not matter, its train/eval mode and its frozen parameters do.
    loss_fn: f(logits [B, B], similarity [B, B]) -> scalar. merge_towers: one ratio of summed distances
    instead of the sum of two. path_device: where the path of thetas rests (default: with the model).
    precision: fp32, tf32 or bf16 (see checks.require_combination). compile: what trains of the image tower,
    by torch.compile. look_once: a frozen image tower is looked through once, not in every inner step; the
    gradient is the same. world: the processes that divide the second pass, to the same result as one of them
    alone (its inner steps are independent if truncated; if full each needs the next one's lambda, so that the
    first process does them all). Memory: one inner step and T + 4 weight vectors, T more for gradient="full"
    with second_order="finite". UserError for a model with running statistics, and for options that do not
    combine.
    """

    def __init__(
        self,
        model,
        loss_fn,
        *,
        gradient="truncated",
        second_order="finite",
        merge_towers=False,
        temperature=0.07,
        path_device=None,
        precision="fp32",
        compile=False,
        look_once=True,
        world=ALONE,
    ):
        if gradient not in GRADIENTS or second_order not in DERIVATIVES:
            raise UserError(
                f"gradient {gradient!r} must be full or truncated, "
                f"second_order {second_order!r} one of {', '.join(DERIVATIVES)}."
            )
        require_no_running_statistics(model)
        checkpointed = any(getattr(module, "grad_checkpointing", False) for module in model.modules())
        require_combination(
            second_order, precision=precision, compile=compile, grad_checkpointing=checkpointed
        )
        self.full, self.merge_towers = gradient == "full", merge_towers
        self._student = Student(deepcopy(model), loss_fn, temperature, precision, compile)
        self._derivative = DERIVATIVES[second_order](self._student, self.full, path_device)
        self._path, self._final = WeightPath(path_device), None
        self._world = world
        frozen = self._student.model.frozen_encoder if look_once else None
        self._frozen = FrozenTower(frozen, precision, world)
        rounded = precision == "tf32" and second_order != "finite"
        self._products = nullcontext if rounded else exact_products

    def __call__(self, synthetic, start, target, minibatches, seed=None, blends=()):
        """The MatchingLoss of a student that starts at `start`; fills `.grad` of every parameter of the
        synthetic set.

        start, target: `Weights` of flat vectors in parameter order, an expert's snapshots. minibatches: one
        LongTensor of pair ids per inner step. seed: of the dropout masks (default: drawn from torch's global
        generator). blends: a Blend per inner step; none where images are looked through by what trains.
        """
        eta = Weights(synthetic.lr_img.item(), synthetic.lr_txt.item())
        seed = int(torch.randint(1 << 62, ())) if seed is None else seed
        with torch.no_grad(), self._products():
            drawn, chunk = torch.cat(list(minibatches)).unique(), len(minibatches[0])
            images = self._frozen.features(synthetic.images, drawn, chunk)
            batches = [
                Batch(*synthetic.minibatch(ids, images), seed + t, blend)
                for t, (ids, blend) in enumerate(zip(minibatches, blends or [None] * len(minibatches)))
            ]
            self._inner_loop(start, batches, eta)
            loss = self._objective(start, target)
            d_eta = None if self.full else self._lr_gradients_at_once(eta)
            settled = False
            while not settled:
                d_z, d_eta_full = self._backward(batches, eta)
                settled = self._derivative.settled(len(batches), self._from_owner)
            gradient = _GradientOf(synthetic, images)
            for t in reversed(range(len(batches))):
                gradient.minibatch(minibatches[t], [self._from_owner(d, t) for d in d_z[t]])  # (1)
            gradient.lrs(d_eta or d_eta_full)
            synthetic.images.grad = self._frozen.pull_back(synthetic.images, gradient.images, drawn, chunk)
            # Whether a step is finite, and what the set becomes, is the first process's to say: others' sums
            # may differ from its own in the last bit where their hardware does.
            for parameter in synthetic.parameters():
                self._world.broadcast(parameter.grad, 0)
        return loss

    @property
    def repeats(self):
        """How many second passes so far had to be repeated to fit the steps of `finite`."""
        return self._derivative.repeats

    @property
    def length(self):
        """What `finite` has learned about the length of its steps, a scalar tensor; None for the others and
        at first.
        """
        return self._derivative.length

    @length.setter
    def length(self, length):
        self._derivative.length = None if length is None else length.to(self._student.theta.img)

    def _part(self, t):
        """The number of the part of the work that inner step t belongs to."""
        return 0 if self.full else t

    def _from_owner(self, tensor, t):
        """The tensor of the process that has inner step t, on all; others' are overwritten in place."""
        if self._world.size > 1:
            tensor = tensor.contiguous()
            self._world.broadcast(tensor, self._part(t))
        return tensor

    def _inner_loop(self, start, batches, eta):
        """Leaves the student at theta_T and theta_0 .. theta_{T-1} in the path; no graph outlives a step."""
        student = self._student
        student.load(start)
        for t, batch in enumerate(batches):
            self._path.store(t, len(batches), Weights(*([vector] for vector in student.theta)))
            g, g_z = student.gradients(batch, with_theta=True, with_z=self._derivative.wants_z)
            self._derivative.keep(t, len(batches), g, g_z)
            student.descend(g, eta)
            del g  # or the next step's gradients would need memory beside these

    def _objective(self, start, target):
        """The loss at theta_T, where the student stands; lambda_T goes to `_final`, whose memory is kept
        between outer steps.
        """
        theta = self._student.theta
        if self._final is None:
            self._final = Weights(*map(torch.empty_like, theta))
        scales, distances = [], []
        for gap, end, begin, goal in zip(self._final, theta, start, target):
            goal = goal.to(end)
            for vector, squares in ((begin.to(end), scales), (end, distances)):
                torch.sub(vector, goal, out=gap)
                squares.append(dot(gap, gap))
        ratios = [distance / scale for distance, scale in zip(distances, scales)]
        grand = sum(distances) / sum(scales) if self.merge_towers else sum(ratios)
        for gap, scale in zip(self._final, [sum(scales)] * 2 if self.merge_towers else scales):
            gap.mul_(2 / scale)
        return MatchingLoss(grand, *ratios)

    def _lr_gradients_at_once(self, eta):
        """The sum over t of (2) for a lambda that does not change: lambda . (theta_T - theta_0) / eta. Moves
        the student.
        """
        theta = self._student.theta
        begin = self._path.read(0, theta.img.device)
        return Weights(
            *(dot(lam, end.sub_(first)) / lr for lam, end, first, lr in zip(self._final, theta, begin, eta))
        )

    def _backward(self, batches, eta):
        """(1) to (3) from the last inner step to the first: {t: dL/dz_t}, up to the sign, and dL/deta (zero
        unless full).

        Of the inner steps that are another process's, d_z is left undefined.
        """
        lam = self._final
        if self.full:
            lam = Weights(*(vector.clone() for vector in lam))  # the pass may have to be repeated
        d_z, d_eta = {}, [torch.zeros((), device=vector.device, dtype=vector.dtype) for vector in lam]
        for t in reversed(range(len(batches))):
            if not self._world.owns(self._part(t)):
                d_z[t] = [torch.empty_like(value) for value in batches[t].z]
                continue
            theta = self._path.read(t, lam.img.device)
            g, d_theta, d_z[t] = self._derivative(t, batches[t], theta, lam, eta)
            if self.full:
                for tower, (vector, slope, d) in enumerate(zip(lam, g, d_theta)):
                    d_eta[tower] -= dot(vector, slope)  # (2)
                    vector.sub_(d)  # (3)
        return d_z, d_eta


class _GradientOf:
    """Sums the minibatches' gradients, from zero: of what stood for the images in `images`, the others into
    `.grad` of the synthetic set.
    """

    def __init__(self, synthetic, images):
        self.synthetic, self.images = synthetic, torch.zeros_like(images)
        for name, parameter in synthetic.named_parameters():
            if name != "images":
                parameter.grad = torch.zeros_like(parameter)

    def minibatch(self, ids, derivatives):
        d_images, d_texts, d_similarity = derivatives
        self.images.index_add_(0, ids, d_images, alpha=-1)
        self.synthetic.texts.grad.index_add_(0, ids, d_texts, alpha=-1)
        with torch.enable_grad():
            block = self.synthetic.similarity(ids)
            if block.requires_grad:
                block.backward(-d_similarity)

    def lrs(self, gradients):
        for lr, gradient in zip((self.synthetic.lr_img, self.synthetic.lr_txt), gradients):
            lr.grad += gradient
