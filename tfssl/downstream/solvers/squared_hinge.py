"""Linear classifiers under the squared hinge loss, many at once: LIBLINEAR's "L2-regularized
L2-loss" in its primal form (Fan et al. 2008, JMLR 9), which scikit-learn's LinearSVC(dual=False)
minimizes for one class at a time.

    0.5 * ||w||^2 + sum_i c_i max(0, 1 - y_i w . x_i)^2;
    the last feature is constant, and its weight is the bias

Classifiers differ in y and c only (c_i = 0 leaves a row out), so that classes, folds and random
subsets are columns that share every product with the features. With fewer rows than features w = X'
b, and the products are with G = X X'.

Newton's method (Keerthi and DeCoste 2005, JMLR 6): (1 + X' D X) step = -gradient, D = 2c where y w
. x < 1 and else 0. With few rows in D this is a small system, which Cholesky solves; with many,
conjugate gradients converge in few steps, in float32, preconditioned by the leading principal
directions. So conjugate gradients are tried first, for all columns together and for as long as
Cholesky would take.

With a_i = 2 c_i max(0, 1 - y_i w . x_i) as dual variables, the duality gap is exactly 0.5 *
||gradient||^2. It bounds how far the objective is above its minimum: it is the stopping criterion,
in float64, and a certificate.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Union

import numpy as np
import scipy.linalg
from absl import logging
from threadpoolctl import threadpool_limits

_AXES = 256  # principal directions that the preconditioner solves for
_COLUMNS = 4  # of a thread, at least: products with fewer are slow
_STEPS = 200  # of Newton's method, at most; about ten are taken


@dataclasses.dataclass
class Fit:
    """P classifiers.

    Attributes:
      decision: float64 [N, P], w . x of all rows, also of those with weight 0.
      objective: [P].
      gap: [P], the duality gap over the objective: an upper bound of the objective's relative
        error.
      steps: [P], Newton's.
      coefficients: the argument of `Rows.weights`.
    """

    decision: np.ndarray
    objective: np.ndarray
    gap: np.ndarray
    steps: np.ndarray
    coefficients: np.ndarray


# (w, objective, gap, steps): coefficients, and [P] each
Solution = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Rows:
    """Features to fit any number of classifiers to.

    Memory: one and a half float64 copies of the features; with N <= D twice [N, N] in place of the
    half.

    Args:
      features: float [N, D].
      intercept_scaling: the constant feature; the larger, the smaller the penalty of the bias.
    """

    def __init__(self, features: np.ndarray, intercept_scaling: float = 1.0) -> None:
        count, self.dims = features.shape
        self._x = np.empty((count, self.dims + 1))
        self._x[:, :-1], self._x[:, -1] = features, intercept_scaling
        self._gram = self._x @ self._x.T if count <= self.dims else None

    def path(
        self,
        targets: np.ndarray,
        weights: np.ndarray,
        costs: Sequence[Union[float, np.ndarray]],
        tolerance: float = 1e-8,
    ) -> Iterator[Fit]:
        """Fits P classifiers for one value of C after another, each from the last solution (warm
        start).

        Args:
          targets: [N, P], 1 or -1.
          weights: [N, P], not negative; 0 leaves a row out.
          costs: values of C, a number or an array [P] each; fastest in increasing order. c = C *
            weights.
          tolerance: largest gap (see Fit).

        Yields:
          a Fit for each of `costs`.
        """
        used = np.flatnonzero(np.any(weights, 1))
        if self._gram is None:
            space = _Primal(self._x if len(used) == len(self._x) else self._x[used])
        else:
            space = _Gram(self._gram[np.ix_(used, used)])
        targets, weights = targets[used], weights[used]
        columns = targets.shape[1]
        cores = os.cpu_count() or 1
        parts = np.array_split(np.arange(columns), max(1, min(cores, columns // _COLUMNS)))
        starts = [np.zeros((space.size, len(part))) for part in parts]
        for cost in costs:
            cost = np.broadcast_to(cost, columns)

            def fit(start: np.ndarray, part: np.ndarray, cost: np.ndarray = cost) -> Solution:
                return _minimize(
                    space, start, targets[:, part], cost[part] * weights[:, part], tolerance
                )

            # BLAS threads spin while they wait, which on a busy machine takes longer than the
            # product.
            with threadpool_limits(max(1, cores // len(parts)), "blas"):
                with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
                    fits = list(pool.map(fit, starts, parts))
            starts = [coefficients for coefficients, *_ in fits]
            coefficients, objective, gap, steps = (
                np.concatenate(values, -1) for values in zip(*fits)
            )
            if gap.max() > tolerance:
                logging.warning(
                    "%d of %d SVMs ended with a gap of up to %.1e",
                    (gap > tolerance).sum(),
                    columns,
                    gap.max(),
                )
            if self._gram is not None:
                coefficients, inner = np.zeros((len(self._x), columns)), coefficients
                coefficients[used] = inner
            decision = (self._x if self._gram is None else self._gram) @ coefficients
            yield Fit(decision, objective, gap, steps, coefficients)

    def weights(self, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
        """(float64 [D, P], bias [P]): the decision for features x is x @ weights + bias."""
        w = fit.coefficients if self._gram is None else self._x.T @ fit.coefficients
        return w[:-1], w[-1] * self._x[0, -1]


def _minimize(
    space: "_Primal", w: np.ndarray, targets: np.ndarray, costs: np.ndarray, tolerance: float
) -> Solution:
    """Newton's method from w: (w, objective, gap, steps), the last three [P]."""
    steps = np.zeros(w.shape[1], int)
    for _ in range(_STEPS):
        image = space.image(w)
        slack = np.maximum(1 - targets * image, 0)
        gradient = w - space.adjoint(2 * costs * slack * targets)
        normal = space.metric(gradient)
        objective = 0.5 * space.square(w, image) + (costs * slack**2).sum(0)
        gap = 0.5 * (gradient * normal).sum(0) / np.maximum(objective, np.finfo(float).tiny)
        rest = np.flatnonzero(gap > tolerance)
        if not len(rest):
            break
        # Only the columns that have not converged: `rest`.
        y, c, slack, gradient, normal = (
            v[:, rest] for v in (targets, costs, slack, gradient, normal)
        )
        curvature = 2 * c * (slack > 0)
        # of the step: more does not help far from the minimum
        accuracy = np.minimum(np.sqrt(gap[rest]), 0.1)
        step, solved = _conjugate_gradients(space, curvature, -gradient, -normal, accuracy)
        for j in np.flatnonzero(~solved):
            step[:, j] = space.solve(curvature[:, j], y[:, j]) - w[:, rest[j]]
        change = space.image(step)
        slope, size = (step * normal).sum(0), np.ones(len(rest))
        while True:
            moved, moved_image = w[:, rest] + size * step, image[:, rest] + size * change
            value = 0.5 * space.square(moved, moved_image) + (
                c * np.maximum(1 - y * moved_image, 0) ** 2
            ).sum(0)
            # Near the minimum only the last bits of the objective change, which cannot judge a
            # step.
            worse = value > objective[rest] * (1 + 1e-13) + 1e-4 * size * slope
            if not worse.any():
                break
            size = np.where(worse, size / 2, size)
        w[:, rest] = moved
        steps[rest] += 1
    return w, objective, gap, steps


@np.errstate(all="ignore")  # float32 may overflow, which never counts as solved
def _conjugate_gradients(
    space: "_Primal", curvature: np.ndarray, r: np.ndarray, normal: np.ndarray, accuracy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Solve (1 + X' D X) step = r for each column, until the residual's norm is `accuracy` of r's;
    in float32.

    Args:
      space: where r and step live.
      curvature: [N, P], the diagonals D.
      r: [M, P]; normal: space.metric(r).
      accuracy: [P].

    Returns:
      (step [M, P], solved [P]): False where it took longer than Cholesky would.
    """
    columns, norms = np.arange(r.shape[1]), np.sqrt((r * normal).sum(0))
    result, solved, limit = np.zeros_like(r), np.zeros(r.shape[1], bool), space.patience(curvature)
    curvature, r, normal, stop = (
        v.astype(np.float32) for v in (curvature, r / norms, normal / norms, accuracy**2)
    )
    along = space.along_axes(curvature)  # what X' D X adds to 1 along each axis
    shrink, old = along / (1 + along), np.float32(np.inf)
    step, p, p_image = np.zeros_like(r), np.zeros_like(r), np.zeros_like(curvature)
    count = 0
    while True:
        count += 1
        z, z_image = space.precondition(r, normal, shrink)
        new = (z * normal).sum(0)
        p, p_image, old = z + new / old * p, z_image + new / old * p_image, new
        bent = curvature * p_image
        length = new / (space.square(p, p_image) + (bent * p_image).sum(0))
        step += length * p
        r -= length * (p + space.adjoint(bent))
        normal = space.metric(r)
        small = (r * normal).sum(0) <= stop
        leave = small | (count >= limit)
        if leave.any():
            result[:, columns[leave]], solved[columns[leave]] = step[:, leave], small[leave]
            if leave.all():
                return result * norms, solved
            columns, limit, old, stop = (v[~leave] for v in (columns, limit, old, stop))
            r, normal, step, p, p_image, curvature, shrink = (
                v[:, ~leave] for v in (r, normal, step, p, p_image, curvature, shrink)
            )


class _Primal:
    """w itself, [D, P], and its image X w, [N, P]."""

    def __init__(self, x: np.ndarray) -> None:
        self._x, self._fast, self.size = x, x.astype(np.float32), x.shape[1]
        axes = _leading(lambda v: self._fast.T @ (self._fast @ v), self.size)  # D x A
        image = x @ axes
        turn = np.linalg.eigh(image.T @ image)[1]  # makes X' X diagonal on the axes
        self._axes, self._axes_image = (
            (axes @ turn).astype(np.float32),
            (image @ turn).astype(np.float32),
        )

    def image(self, w: np.ndarray) -> np.ndarray:
        return self._like(w) @ w

    def adjoint(self, u: np.ndarray) -> np.ndarray:
        """X' u."""
        return self._like(u).T @ u

    def metric(self, w: np.ndarray) -> np.ndarray:
        """The inner product of v and w is the sum of v * metric(w)."""
        return w

    def square(self, w: np.ndarray, image: np.ndarray) -> np.ndarray:
        """||w||^2."""
        return (w * w).sum(0)

    def along_axes(self, curvature: np.ndarray) -> np.ndarray:
        """The diagonal of X' D X on the axes: [A, P]."""
        return (self._axes_image**2).T @ curvature

    def precondition(
        self, r: np.ndarray, normal: np.ndarray, shrink: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(r with its components along the axes divided by 1 + `along_axes`, the image of that)."""
        z = r - self._axes @ (shrink * (self._axes.T @ normal))
        return z, self._fast @ z

    def patience(self, curvature: np.ndarray) -> np.ndarray:
        """For each column, the number of conjugate gradient steps that take as long as `solve`."""
        rows, dims = self._x.shape
        return (np.count_nonzero(curvature, 0) * dims**2 + dims**3 / 3) / (4 * rows * dims) + 1

    def solve(self, curvature: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The minimizer if the active rows stay those of one column's `curvature`: (1 + X' D X) w =
        X' D y."""
        active = np.flatnonzero(curvature)
        x = self._x[active]
        hessian = x.T @ (curvature[active, None] * x)
        hessian[np.diag_indices(self.size)] += 1
        return _solve(hessian, x.T @ (curvature[active] * targets[active]))

    def _like(self, v: np.ndarray) -> np.ndarray:
        return self._x if v.dtype == np.float64 else self._fast


class _Gram(_Primal):
    """w = X' b, represented by b, [N, P]: its image is G b, inner products are b' G b; G = X X'."""

    def __init__(self, gram: np.ndarray) -> None:
        self._x, self._fast, self.size = gram, gram.astype(np.float32), len(gram)
        axes = _leading(lambda v: self._fast @ v, self.size)
        image = gram @ axes
        values, turn = np.linalg.eigh(axes.T @ image)
        # to length 1
        turn = (turn / np.sqrt(np.maximum(values, 1e-300)))[:, values > 1e-12 * values[-1]]
        self._axes, self._axes_image = (
            (axes @ turn).astype(np.float32),
            (image @ turn).astype(np.float32),
        )

    def adjoint(self, u: np.ndarray) -> np.ndarray:
        return u

    def metric(self, b: np.ndarray) -> np.ndarray:
        return self.image(b)

    def square(self, b: np.ndarray, image: np.ndarray) -> np.ndarray:
        return (b * image).sum(0)

    def precondition(
        self, r: np.ndarray, normal: np.ndarray, shrink: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        c = shrink * (self._axes.T @ normal)
        return r - self._axes @ c, normal - self._axes_image @ c

    def patience(self, curvature: np.ndarray) -> np.ndarray:
        return np.count_nonzero(curvature, 0) ** 3 / (6 * self.size**2) + 1

    def solve(self, curvature: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The same for b: (G + 1 / D) b = y on the active rows, 0 on the others."""
        active = np.flatnonzero(curvature)
        system = self._x[np.ix_(active, active)]
        system[np.diag_indices(len(active))] += 1 / curvature[active]
        b = np.zeros(self.size)
        b[active] = _solve(system, targets[active])
        return b


def _solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return scipy.linalg.cho_solve(
        scipy.linalg.cho_factor(a, overwrite_a=True, check_finite=False), b
    )


def _leading(product: Callable[[np.ndarray], np.ndarray], size: int) -> np.ndarray:
    """Orthonormal [size, A]: the leading eigenvectors, roughly, by subspace iteration."""
    axes = np.random.default_rng(0).standard_normal((size, min(_AXES, size)))
    for _ in range(3):
        axes = np.linalg.qr(product(axes.astype(np.float32)).astype(float))[0]
    return axes
