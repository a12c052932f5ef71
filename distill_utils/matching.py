"""The matching gradient: d(distance of the student to the expert) / d(synthetic set), exact or truncated.

Inner loop, per tower:     theta_{t+1} = theta_t - eta g_t,   g_t = grad_theta l(theta_t; z_t),   z_t = (x_t, y_t, S_t)
Objective, per tower:      L = ||theta_T - theta*||^2 / ||theta_0 - theta*||^2
Backwards from lambda_T = dL/dtheta_T, with u_t = eta lambda_{t+1}:
    dL/dz_t   = -d/de grad_z     l(theta_t + e u_t; z_t) at e = 0              (1)
    dL/deta  += -lambda_{t+1} . g_t                                           (2)
    lambda_t  =  lambda_{t+1} - d/de grad_theta l(theta_t + e u_t; z_t)       (3)   "full": MTT, the whole unroll
    lambda_t  =  lambda_T                                                     (3')  "truncated": TESLA, theta_t held constant

Why this is exact. theta_{t+1} depends on (theta_t, z_t) through theta_t - eta g(theta_t; z_t) alone, so the chain rule gives
lambda_t = lambda_{t+1} - (dg_t/dtheta)^T eta lambda_{t+1} and dL/dz_t = -(dg_t/dz)^T eta lambda_{t+1}. Both transposed
Jacobians are blocks of the Hessian of the scalar l, which is symmetric: (dg/dtheta)^T u = d/de grad_theta l(theta + e u) and
(dg/dz)^T u = d/de grad_z l(theta + e u). So (1) and (3) are one directional derivative, along u_t, of the pair (grad_theta,
grad_z) at the single point theta_t: a Hessian-vector product (Pearlmutter 1994). The exact gradient of the unroll (Cazenave et
al. 2022, MTT) thus costs the memory of one inner step plus the path of thetas, where unrolling the graph costs T of them;
truncating (Cui et al. 2023, TESLA) saves only the theta half of each derivative. The derivative is taken in one of three ways:
    forward   forward over reverse: torch.func.jvp of torch.func.grad. Exact.
    reverse   reverse over reverse: the gradient of <g_t, u_t>. Exact; the double backward of the published codes.
    finite    (grad l(theta_t + e u_t) - grad l(theta_t)) / e. The second gradient is that of the inner step itself, kept from
              the first pass, so a step costs one more first-order gradient; e is fitted to the direction (see `Finite`).
"""

import os
import shutil
from contextlib import contextmanager
from copy import deepcopy
from typing import NamedTuple

import torch
from torch.func import functional_call, grad, jvp

from distill_utils.errors import UserError
from distill_utils.losses import pair_logits
from distill_utils.parallel import ALONE
from distill_utils.precision import autocast
from distill_utils.trajectory import Weights, flatten, tower_parameters

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
    """The matching loss of one inner loop, by a `Matcher` made for it alone; fills `.grad` of every parameter of the synthetic set."""
    matcher = Matcher(model, loss_fn, gradient=gradient, second_order=second_order, merge_towers=merge_towers, temperature=temperature)
    return matcher(synthetic, start, target, minibatches, seed)


class Matcher:
    """The matching loss of one inner loop after another; what does not change between them is built once.

    model: a TwoTower, copied; its values do not matter, its train/eval mode and its frozen parameters do.
    loss_fn: f(logits [B, B], similarity [B, B]) -> scalar. merge_towers: one ratio of summed distances instead of the sum of two.
    path_device: where the path of thetas rests (default: with the model). precision: fp32, tf32 or bf16. compile: the image tower
    by torch.compile. world: the processes that divide the second pass among them, to the same result as one of them alone (its
    inner steps are independent if truncated; if full each needs the next one's lambda, so that the first process does them all).
    Memory: one inner step and T + 4 weight vectors, T more for gradient="full" with second_order="finite".
    UserError for a model with running statistics, and for options that do not combine.
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
        world=ALONE,
    ):
        if gradient not in GRADIENTS or second_order not in DERIVATIVES:
            raise UserError(f"gradient {gradient!r} must be full or truncated, second_order {second_order!r} one of {', '.join(DERIVATIVES)}.")
        require_no_running_statistics(model)
        checkpointed = any(getattr(module, "grad_checkpointing", False) for module in model.modules())
        require_combination(second_order, precision=precision, compile=compile, grad_checkpointing=checkpointed)
        self.full, self.merge_towers = gradient == "full", merge_towers
        self._student = _Student(deepcopy(model), loss_fn, temperature, precision, compile)
        self._derivative = DERIVATIVES[second_order](self._student, self.full, path_device)
        self._path, self._final = _Path(path_device), None
        self._world = world

    def __call__(self, synthetic, start, target, minibatches, seed=None):
        """The MatchingLoss of a student that starts at `start`; fills `.grad` of every parameter of the synthetic set.

        start, target: `Weights` of flat vectors in parameter order, an expert's snapshots. minibatches: one LongTensor of pair ids
        per inner step. seed: of the dropout masks (default: drawn from torch's global generator).
        """
        eta = Weights(synthetic.lr_img.item(), synthetic.lr_txt.item())
        seed = int(torch.randint(1 << 62, ())) if seed is None else seed
        with torch.no_grad():
            batches = [_Batch(*synthetic.minibatch(ids), seed + t) for t, ids in enumerate(minibatches)]
            self._inner_loop(start, batches, eta)
            loss = self._objective(start, target)
            d_eta = None if self.full else self._lr_gradients_at_once(eta)
            settled = False
            while not settled:
                d_z, d_eta_full = self._backward(batches, eta)
                settled = self._derivative.settled(len(batches), self._from_owner)
            gradient = _GradientOf(synthetic)
            for t in reversed(range(len(batches))):
                gradient.minibatch(minibatches[t], [self._from_owner(d, t) for d in d_z[t]])  # (1)
            gradient.lrs([self._from_owner(d, 0) for d in d_eta or d_eta_full])
        return loss

    @property
    def repeats(self):
        """How many second passes so far had to be repeated to fit the steps of `finite`."""
        return self._derivative.repeats

    @property
    def length(self):
        """What `finite` has learned about the length of its steps, a scalar tensor; None for the others and at first."""
        return self._derivative.length

    @length.setter
    def length(self, length):
        self._derivative.length = None if length is None else length.to(self._student.theta.img)

    def _part(self, t):
        """The number of the part of the work that inner step t belongs to."""
        return 0 if self.full else t

    def _from_owner(self, tensor, t):
        """The tensor of the process that has inner step t, on all of them."""
        if self._world.size > 1:
            tensor = tensor.contiguous()
            self._world.broadcast(tensor, self._part(t))
        return tensor

    def _inner_loop(self, start, batches, eta):
        """Leaves the student at theta_T and theta_0 .. theta_{T-1} in the path; no graph outlives its step."""
        student = self._student
        student.load(start)
        for t, batch in enumerate(batches):
            self._path.store(t, len(batches), Weights(*([vector] for vector in student.theta)))
            g, g_z = student.gradients(batch, with_theta=True, with_z=self._derivative.wants_z)
            self._derivative.keep(t, len(batches), g, g_z)
            student.descend(g, eta)
            del g  # or the next step's gradients would need memory beside these

    def _objective(self, start, target):
        """The loss at theta_T, where the student stands; lambda_T goes to `_final`, whose memory is kept between outer steps."""
        theta = self._student.theta
        if self._final is None:
            self._final = Weights(*map(torch.empty_like, theta))
        scales, distances = [], []
        for gap, end, begin, goal in zip(self._final, theta, start, target):
            goal = goal.to(end)
            for vector, squares in ((begin.to(end), scales), (end, distances)):
                torch.sub(vector, goal, out=gap)
                squares.append(_dot(gap, gap))
        ratios = [distance / scale for distance, scale in zip(distances, scales)]
        grand = sum(distances) / sum(scales) if self.merge_towers else sum(ratios)
        for gap, scale in zip(self._final, [sum(scales)] * 2 if self.merge_towers else scales):
            gap.mul_(2 / scale)
        return MatchingLoss(grand, *ratios)

    def _lr_gradients_at_once(self, eta):
        """The sum over t of (2) for a lambda that does not change: lambda . (theta_T - theta_0) / eta. Moves the student."""
        theta = self._student.theta
        begin = self._path.read(0, theta.img.device)
        return Weights(*(_dot(lam, end.sub_(first)) / lr for lam, end, first, lr in zip(self._final, theta, begin, eta)))

    def _backward(self, batches, eta):
        """(1) to (3) from the last inner step to the first: {t: dL/dz_t}, up to the sign, and dL/deta (zero unless full).

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
                    d_eta[tower] -= _dot(vector, slope)  # (2)
                    vector.sub_(d)  # (3)
        return d_z, d_eta


def require_no_running_statistics(model):
    """UserError for a model whose training changes more than its weights; frozen ones, in eval mode, keep their statistics."""
    for name, module in model.named_modules():
        if module.training and getattr(module, "running_mean", None) is not None:
            raise UserError(
                f"{name} ({type(module).__name__}) keeps running statistics, which are no function of the weights: "
                "trajectory matching needs an encoder without BatchNorm, such as nfnet or resnet18_gn, or --image_trainable false."
            )


def require_combination(second_order, *, precision, compile, grad_checkpointing):
    """UserError for options of Matcher that cannot work together."""
    if compile and second_order != "finite":
        raise UserError(f"--compile compiles first-order gradients only: it goes with --second_order finite, not {second_order}.")
    if precision != "fp32" and second_order == "finite":
        raise UserError(f"--precision {precision} rounds away the small steps of --second_order finite: use fp32, or forward or reverse.")
    if grad_checkpointing and second_order != "finite":
        raise UserError(f"--grad_checkpointing recomputes first-order graphs only: it goes with --second_order finite, not {second_order}.")


def gradient_agreement(found, exact):
    """{"cosine", "error"} of a gradient with the exact one, in float64; the error is relative to the exact one's norm, 0 if both are 0."""
    found, exact = found.detach().double().flatten(), exact.detach().double().flatten().to(found.device)
    size = exact.norm()
    if size == 0:
        return {"cosine": float(found.norm() == 0), "error": float(found.norm())}
    return {"cosine": float(torch.nn.functional.cosine_similarity(found, exact, dim=0)), "error": float((found - exact).norm() / size)}


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
    """A model whose trained parameters are views into `theta`, one flat vector per tower that keeps its place in memory."""

    def __init__(self, model, loss_fn, temperature, precision, compile):
        self.model, self.loss_fn, self.temperature, self.precision = model, loss_fn, temperature, precision
        towers = tower_parameters(model)
        self.names = [[name for name, _ in tower] for tower in towers]
        self._parameters = [[parameter for _, parameter in tower] for tower in towers]
        self._sizes = [[parameter.numel() for parameter in tower] for tower in self._parameters]
        self.theta = Weights(*(flatten(tower).detach() for tower in self._parameters))
        for tower, pieces in zip(self._parameters, self.views(self.theta)):
            for parameter, piece in zip(tower, pieces):
                parameter.data = piece
        self._sgd = torch.optim.SGD([{"params": tower} for tower in self._parameters], lr=0.0)
        if compile:
            if not self.theta.img.is_cuda and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
                raise UserError("--compile needs a C++ compiler, and none is found (g++, clang++ or $CXX).")
            # Eager random numbers, so that what drops out is the same in the two graphs that finite differences compile.
            model.image_encoder.compile(options={"fallback_random": True})

    def views(self, weights):
        """Per tower, a vector's pieces in the shapes of the parameters."""
        return [
            [piece.view_as(parameter) for piece, parameter in zip(vector.split(sizes), tower)]
            for vector, sizes, tower in zip(weights, self._sizes, self._parameters)
        ]

    def load(self, weights, direction=None, steps=None):
        """theta = weights, plus step * direction with a scalar tensor per tower."""
        for tower, (vector, new) in enumerate(zip(self.theta, weights)):
            if direction is None:
                vector.copy_(new)
            else:
                torch.addcmul(new, direction[tower], steps[tower], out=vector)

    def descend(self, gradients, eta):
        """An inner step: plain SGD with a learning rate per tower."""
        for parameters, tower, group, lr in zip(self._parameters, gradients, self._sgd.param_groups, eta):
            group["lr"] = lr
            for parameter, g in zip(parameters, tower):
                parameter.grad = g
        self._sgd.step()
        self._sgd.zero_grad()

    def features(self, seed, images, texts, parameters=None):
        """Both towers' features, of `parameters` {name: tensor} where given, with dropout masks that depend on the seed alone."""
        with _replayed(seed, images.device), autocast(self.precision, images.device):
            return self.model(images, texts) if parameters is None else functional_call(self.model, parameters, (images, texts))

    def loss(self, features, similarity):
        return self.loss_fn(pair_logits(*(side.to(similarity.dtype) for side in features), self.temperature), similarity)

    def inputs(self, batch, with_theta, with_z):
        """The parameters per tower and the tensors of z, as leaves that ask for gradients, or for none and then save nothing for them."""
        for tower in self._parameters:
            for parameter in tower:
                parameter.requires_grad_(with_theta)
        return self._parameters, [value.detach().requires_grad_(with_z) for value in batch.z]

    def gradients(self, batch, *, with_theta, with_z):
        """At theta: (grad_theta l as Weights of one list per tower, grad_z l as a tuple); None for the one that is not asked for."""
        towers, z = self.inputs(batch, with_theta, with_z)
        wanted = [*(parameter for tower in towers for parameter in tower if with_theta), *(z if with_z else ())]
        with torch.enable_grad():
            loss = self.loss(self.features(batch.seed, *z[:2]), z[2])
            found = torch.autograd.grad(loss, wanted, materialize_grads=True)
        return (self.by_tower(found) if with_theta else None), (found[-3:] if with_z else None)

    def by_tower(self, gradients):
        """Weights of lists, from a sequence that begins with all parameters' gradients, image tower first."""
        images, texts = map(len, self._parameters)
        return Weights(gradients[:images], gradients[images : images + texts])


class _Path:
    """A `Weights` for every inner step, at rest on some device; the memory is kept for the next outer step."""

    def __init__(self, device=None):
        self.device, self._towers = device, None

    def store(self, t, steps, pieces):
        """pieces: a list of tensors per tower, laid end to end."""
        like = pieces.img[0]
        if self._towers is None or len(self._towers.img) < steps:
            device = torch.device(self.device or like.device)
            options = {"dtype": like.dtype, "device": device, "pin_memory": device.type == "cpu" and like.is_cuda}
            lengths = [sum(piece.numel() for piece in tower) for tower in pieces]
            # Not rows of one tensor: forward differentiation along one of them would give all of them a tangent.
            self._towers = Weights(*([torch.empty(length, **options) for _ in range(steps)] for length in lengths))
        for kept, tower in zip(self._towers, pieces):
            if kept[t].device == like.device:
                flatten(tower, out=kept[t])
            else:
                kept[t].copy_(flatten(tower), non_blocking=True)

    def read(self, t, device):
        return Weights(*(kept[t].to(device, non_blocking=True) for kept in self._towers))


@contextmanager
def _replayed(seed, device):
    """Random numbers that depend on the seed alone, so that both passes see the same function; all others go on."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class Derivative:
    """How the directional derivative of (1) and (3) is taken."""

    wants_z = False  # whether `keep` needs the first pass to compute grad_z
    repeats = 0  # passes that were not settled
    length = None  # of the steps of `finite`

    def __init__(self, student, full, path_device=None):
        self.student, self.full = student, full

    def keep(self, t, steps, g, g_z):
        """Told every inner step's gradients during the first pass: those of the parameters, a list per tower, and those of z."""

    def __call__(self, t, batch, theta, lam, eta):
        """(g_t, d grad_theta along u = eta lam, d grad_z along it), at `theta`; the first two only if `full`. Moves the student."""
        raise NotImplementedError

    def settled(self, steps, from_owner):
        """Whether the pass over the inner steps that has just ended is good, or is to be repeated; the same in every process.

        from_owner(tensor, t): the tensor of the process that had inner step t.
        """
        return True


class Forward(Derivative):
    """Forward over reverse."""

    def __call__(self, t, batch, theta, lam, eta):
        student = self.student
        direction = tuple(lr * vector for lr, vector in zip(eta, lam))

        def loss(img, txt, images, texts, similarity):
            pieces = (piece for views in student.views((img, txt)) for piece in views)
            parameters = dict(zip((name for names in student.names for name in names), pieces))
            return student.loss(student.features(batch.seed, images, texts, parameters), similarity)

        student.inputs(batch, with_theta=False, with_z=False)
        argnums = (0, 1, 2, 3, 4) if self.full else (2, 3, 4)
        gradients, derivatives = jvp(lambda img, txt: grad(loss, argnums)(img, txt, *batch.z), tuple(theta), direction)
        return (Weights(*gradients[:2]), derivatives[:2], derivatives[2:]) if self.full else (None, None, derivatives)


class Reverse(Derivative):
    """Reverse over reverse."""

    def __call__(self, t, batch, theta, lam, eta):
        student = self.student
        student.load(theta)
        direction = Weights(*(lr * vector for lr, vector in zip(eta, lam)))
        towers, z = student.inputs(batch, with_theta=True, with_z=True)
        parameters = [parameter for tower in towers for parameter in tower]
        with torch.enable_grad():
            loss = student.loss(student.features(batch.seed, *z[:2]), z[2])
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
            along = [piece for views in student.views(direction) for piece in views]
            product = sum((g * u).sum() for g, u in zip(gradients, along))
            derivatives = torch.autograd.grad(product, [*parameters, *z] if self.full else z, materialize_grads=True)
        if not self.full:
            return None, None, derivatives
        g, d_theta = (Weights(*map(flatten, student.by_tower(values))) for values in ([g.detach() for g in gradients], derivatives))
        return g, d_theta, derivatives[-3:]


class Finite(Derivative):
    """One-sided differences of first-order gradients, at theta_t + e u_t and, from the first pass, at theta_t.

    The error of a difference has a part that grows with e (curvature) and one that shrinks (rounding); they meet where the
    gradient itself moves by a few times the square root of eps. What e that takes depends on the direction by orders of magnitude:
    a fixed e is far too long along stiff ones. So the length ||e u|| is carried from one outer step to the next and corrected by
    how far grad_z moved (the geometric mean over images, texts, S and the inner steps), in tensors that never wait for the device.
    Once a pass is over its movements are looked at: if one was out of bounds the pass is repeated with the length learned;
    `repeats` counts these. Within the bounds the error of the pixel gradient measured below 1 % (README).
    """

    wants_z = True
    AIM = 3.0  # wanted movement of grad_z, in units of sqrt(eps)
    BAND = 6.0  # accepted movements: AIM / BAND to AIM * BAND
    _PASSES = 5

    def __init__(self, student, full, path_device=None):
        super().__init__(student, full)
        self.length = None  # ||e u||, a scalar tensor
        self._size, self._movements, self._passes = None, {}, 0
        self._path = _Path(path_device)
        self._z = {}

    def keep(self, t, steps, g, g_z):
        if self.length is None:
            self.length = 1e-5 * _norm(self.student.theta)
        self._z[t] = g_z
        if self.full:
            self._path.store(t, steps, g)

    def __call__(self, t, batch, theta, lam, eta):
        student = self.student
        if self._size is None or self.full:  # a truncated lambda is the same for all inner steps
            self._size = _norm(lam, eta)
        step = self.length / self._size.clamp(min=1e-30)
        student.load(theta, lam, [step * lr for lr in eta])
        moved, moved_z = student.gradients(batch, with_theta=self.full, with_z=True)
        d_z = [new - old for new, old in zip(moved_z, self._z[t])]
        self._movements[t] = self._relative_movement(d_z, self._z[t])
        d_z = [difference / step for difference in d_z]
        if not self.full:
            return None, None, d_z
        g = self._path.read(t, step.device)
        # The student has served and is loaded anew for the next step: its memory takes the difference.
        for vector, new, old in zip(student.theta, moved, g):
            flatten(new, out=vector).sub_(old).div_(step)
        return g, student.theta, d_z

    def _relative_movement(self, differences, base):
        """How far grad_z moved, in units of what is wanted; 1 where there is no direction to move along."""
        eps = torch.finfo(self._size.dtype).eps
        movements = torch.stack([difference.norm() / old.norm() for difference, old in zip(differences, base)])
        movement = movements.nan_to_num().clamp(min=eps).log().mean().exp()
        return torch.where(self._size > 0, movement / (self.AIM * eps**0.5), 1.0)

    def settled(self, steps, from_owner):
        nothing = self._z[0][0].new_zeros(())
        relative = torch.stack([from_owner(self._movements.get(t, nothing), t) for t in range(steps)])
        self._movements, self._size = {}, None
        self._passes += 1
        self.length = self.length / relative.log().mean().exp().clamp(1e-3, 1e3)
        relative = relative.cpu()
        if not torch.isfinite(relative).all():
            self.length = None
        elif ((relative < 1 / self.BAND) | (relative > self.BAND)).any() and self._passes < self._PASSES:
            self.repeats += 1
            return False
        self._passes = 0
        return True


DERIVATIVES = {"forward": Forward, "reverse": Reverse, "finite": Finite}


def _dot(first, second):
    """Inner product of two long vectors, in pieces: one float32 accumulator over 30 million terms loses four digits."""
    return torch.stack([a @ b for a, b in zip(first.split(1 << 18), second.split(1 << 18))]).sum()


def _norm(weights, scales=(1, 1)):
    """Euclidean norm of both towers together, each times its scale."""
    return torch.stack([scale * vector.norm() for scale, vector in zip(scales, weights)]).norm()


class _GradientOf:
    """Sums the minibatches' gradients into `.grad` of a synthetic set, from zero."""

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
        for lr, gradient in zip((self.synthetic.lr_img, self.synthetic.lr_txt), gradients):
            lr.grad += gradient
