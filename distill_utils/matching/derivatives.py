"""The directional derivative of equations (1) and (3) of gradient.py, taken in three ways."""

import torch
from torch.func import grad, jvp

from distill_utils.matching.student import WeightPath
from networks.weights import Weights, flatten


class Derivative:
    """How the directional derivative of (1) and (3) is taken."""

    wants_z = False  # whether `keep` needs the first pass to compute grad_z
    repeats = 0  # passes that were not settled
    length = None  # of the steps of `finite`

    def __init__(self, student, full, path_device=None):
        self.student, self.full = student, full

    def keep(self, t, steps, g, g_z):
        """Told every inner step's gradients during the first pass: those of the parameters, a list per tower,
        and those of z.
        """

    def __call__(self, t, batch, theta, lam, eta):
        """(g_t, d grad_theta along u = eta lam, d grad_z along it), at `theta`; the first two only if `full`.
        Moves the student.
        """
        raise NotImplementedError

    def settled(self, steps, from_owner):
        """Whether the pass over the inner steps that has just ended is good, or is to be repeated; the same
        in every process.

        from_owner(tensor, t): the tensor of the process that had inner step t; may overwrite another's in
        place.
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
            return student.loss(student.features(batch, images, texts, parameters), similarity)

        student.inputs(batch, with_theta=False, with_z=False)
        argnums = (0, 1, 2, 3, 4) if self.full else (2, 3, 4)
        gradients, derivatives = jvp(
            lambda img, txt: grad(loss, argnums)(img, txt, *batch.z), tuple(theta), direction
        )
        return (
            (Weights(*gradients[:2]), derivatives[:2], derivatives[2:])
            if self.full
            else (None, None, derivatives)
        )


class Reverse(Derivative):
    """Reverse over reverse."""

    def __call__(self, t, batch, theta, lam, eta):
        student = self.student
        student.load(theta)
        direction = Weights(*(lr * vector for lr, vector in zip(eta, lam)))
        towers, z = student.inputs(batch, with_theta=True, with_z=True)
        parameters = [parameter for tower in towers for parameter in tower]
        with torch.enable_grad():
            loss = student.loss(student.features(batch, *z[:2]), z[2])
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
            along = [piece for views in student.views(direction) for piece in views]
            product = sum((g * u).sum() for g, u in zip(gradients, along))
            derivatives = torch.autograd.grad(
                product, [*parameters, *z] if self.full else z, materialize_grads=True
            )
        if not self.full:
            return None, None, derivatives
        g, d_theta = (
            Weights(*map(flatten, student.by_tower(values)))
            for values in ([g.detach() for g in gradients], derivatives)
        )
        return g, d_theta, derivatives[-3:]


class Finite(Derivative):
    """One-sided differences of first-order gradients, at theta_t + e u_t and, from the first pass, at
    theta_t.

    The error of a difference has a part that grows with e (curvature) and one that shrinks (rounding); they
    meet where the gradient itself moves by a few times the square root of eps. What e that takes depends on
    the direction by orders of magnitude: a fixed e is far too long along stiff ones. So the length ||e u|| is
    carried from one outer step to the next and corrected by how far grad_z moved (the geometric mean over
    images, texts, S and the inner steps), in tensors that never wait for the device.
    Once a pass is over its movements are looked at: if one was out of bounds the pass is repeated with the
    length learned; `repeats` counts these. Within the bounds the error of the pixel gradient measured below
    1 % (docs/numbers.md).
    """

    wants_z = True
    AIM = 3.0  # wanted movement of grad_z, in units of sqrt(eps)
    BAND = 6.0  # accepted movements: AIM / BAND to AIM * BAND
    _PASSES = 5

    def __init__(self, student, full, path_device=None):
        super().__init__(student, full)
        self.length = None  # ||e u||, a scalar tensor
        self._size, self._movements, self._passes = None, {}, 0
        self._path = WeightPath(path_device)
        self._z = {}

    def keep(self, t, steps, g, g_z):
        if self.length is None:
            self.length = 1e-5 * norm(self.student.theta)
        self._z[t] = g_z
        if self.full:
            self._path.store(t, steps, g)

    def __call__(self, t, batch, theta, lam, eta):
        student = self.student
        if self._size is None or self.full:  # a truncated lambda is the same for all inner steps
            self._size = norm(lam, eta)
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
        movements = torch.stack(
            [difference.norm() / old.norm() for difference, old in zip(differences, base)]
        )
        movement = movements.nan_to_num().clamp(min=eps).log().mean().exp()
        return torch.where(self._size > 0, movement / (self.AIM * eps**0.5), 1.0)

    def settled(self, steps, from_owner):
        others = torch.zeros_like(self.length)
        # A tensor of its own for every inner step: from_owner overwrites those of other processes in place.
        found = [self._movements.get(t, others.clone()) for t in range(steps)]
        relative = torch.stack([from_owner(movement, t) for t, movement in enumerate(found)])
        self._movements, self._size = {}, None
        self._passes += 1
        self.length = from_owner(self.length / relative.log().mean().exp().clamp(1e-3, 1e3), 0)
        relative = relative.cpu()
        if not torch.isfinite(relative).all():
            self.length = None
        elif ((relative < 1 / self.BAND) | (relative > self.BAND)).any() and self._passes < self._PASSES:
            self.repeats += 1
            return False
        self._passes = 0
        return True


DERIVATIVES = {"forward": Forward, "reverse": Reverse, "finite": Finite}


def dot(first, second):
    """Inner product of two long vectors, in pieces: one float32 accumulator over 30 million terms loses four
    digits.
    """
    return torch.stack([a @ b for a, b in zip(first.split(1 << 18), second.split(1 << 18))]).sum()


def norm(weights, scales=(1, 1)):
    """Euclidean norm of both towers together, each times its scale."""
    return torch.stack([scale * vector.norm() for scale, vector in zip(scales, weights)]).norm()
