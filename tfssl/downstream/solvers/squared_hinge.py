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

Memory: the features where they are small; more are read again for each product, in blocks. What
remains are the systems of Newton's method, [min(N, D), min(N, D)], about a dozen arrays [N, P], and
the image of the preconditioner's directions. Callers bound N x P by taking classes in groups.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Optional, Union

import numpy as np
import numpy.typing as npt
import scipy.linalg
from absl import logging
from threadpoolctl import threadpool_limits

from tfssl.downstream.solvers.lbfgs import in_chunks
from tfssl.storage import mapped

# bytes of features, in float64 and float32, that stay in memory; more are read again for each
# product
_RESIDENT = 2 << 30
# values that each thread reads at once: 4 MB in float64, for the processor's cache
_CHUNK_VALUES = 1 << 19
# principal directions that the preconditioner solves for, and values of all rows along them: 256 MB
_AXES, _AXES_VALUES = 256, 1 << 25
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

    Args:
      features: float [N, D], perhaps memory-mapped.
      intercept_scaling: the constant feature; the larger, the smaller the penalty of the bias.
      chosen: int [n], the rows; None: all.
      prepare: function float [m, D] -> float64 [m, D] of rows as they are read, such as a
        normalization; None: they are used as they are.

    Memory: one and a half float64 copies of the chosen rows; blocks of them where these would
    exceed 2 GB. With n <= D also [n, n].
    """

    def __init__(
        self,
        features: np.ndarray,
        intercept_scaling: float = 1.0,
        chosen: Optional[np.ndarray] = None,
        prepare: Optional[Callable[[np.ndarray], np.ndarray]] = None,
    ) -> None:
        rows = np.arange(len(features)) if chosen is None else chosen
        self.dims, self._scaling = features.shape[1], intercept_scaling

        def read(part: np.ndarray) -> np.ndarray:
            x = np.empty((len(part), self.dims + 1))
            values = features[rows[part]]
            x[:, :-1] = values if prepare is None else prepare(values)
            x[:, -1] = intercept_scaling
            mapped.release(features)
            return x

        self._x = _Matrix(read, np.arange(len(rows)), self.dims + 1)
        self._gram = self._x.gram() if len(rows) <= self.dims else None

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
            space = _Primal(self._x.take(used))
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
                coefficients, inner = np.zeros((self._x.count, columns)), coefficients
                coefficients[used] = inner
            if self._gram is None:
                decision = self._x.times(coefficients)
            else:
                decision = self._gram @ coefficients
            yield Fit(decision, objective, gap, steps, coefficients)

    def weights(self, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
        """(float64 [D, P], bias [P]): the decision for features x is x @ weights + bias."""
        w = fit.coefficients if self._gram is None else self._x.adjoint(fit.coefficients)
        return w[:-1], w[-1] * self._scaling


class _Matrix:
    """X, [N, M], in blocks of rows: one that stays in memory where it is small, else many that are
    read again for each product.

    Args:
      read: function int [n] -> float64 [n, M], the rows of these numbers.
      rows: int [N], the numbers.
      size: M.
      kept: the matrix itself, if it is there already.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], np.ndarray],
        rows: np.ndarray,
        size: int,
        kept: Optional[np.ndarray] = None,
    ) -> None:
        self._read, self._rows, self.count, self.size = read, rows, len(rows), size
        self._kept, self._fast = kept, None if kept is None else kept.astype(np.float32)
        if kept is None and 12 * self.count * size <= _RESIDENT:
            self._kept = np.empty((self.count, size))
            for part in in_chunks(np.arange(self.count), size, _CHUNK_VALUES):
                self._kept[part] = read(rows[part])

    def take(self, rows: np.ndarray) -> "_Matrix":
        """Some of the rows."""
        if len(rows) == self.count:
            return self
        kept = None if self._kept is None else self._kept[rows]
        return _Matrix(self._read, self._rows[rows], self.size, kept)

    def blocks(
        self, dtype: npt.DTypeLike, rows: Optional[np.ndarray] = None
    ) -> Iterator[tuple[Union[slice, np.ndarray], np.ndarray]]:
        """(where the rows of a block are, the block [n, M]) of all rows, or of some."""
        if self._kept is not None:
            x = self._kept
            if dtype == np.float32:
                x = self._fast = x.astype(np.float32) if self._fast is None else self._fast
            yield (slice(None), x) if rows is None else (rows, x[rows])
            return
        for part in in_chunks(
            np.arange(self.count) if rows is None else rows, self.size, _CHUNK_VALUES
        ):
            where = slice(part[0], part[-1] + 1) if rows is None else part
            yield where, self._read(self._rows[part]).astype(dtype, copy=False)

    def times(self, w: np.ndarray) -> np.ndarray:
        """X w, in the precision of w: [M, P] -> [N, P]."""
        result = np.empty((self.count, w.shape[1]), w.dtype)
        for part, x in self.blocks(w.dtype):
            result[part] = x @ w
        return result

    def adjoint(self, u: np.ndarray) -> np.ndarray:
        """X' u, in the precision of u: [N, P] -> [M, P]."""
        return _sum(x.T @ u[part] for part, x in self.blocks(u.dtype))

    def normal_times(self, w: np.ndarray) -> np.ndarray:
        """X' X w, without an array [N, P]: [M, P] -> [M, P]."""
        return _sum(x.T @ (x @ w) for _, x in self.blocks(w.dtype))

    def gram(self) -> np.ndarray:
        """X X', [N, N]."""
        result = np.empty((self.count, self.count))
        for rows, x in self.blocks(np.float64):
            for columns, y in self.blocks(np.float64):
                result[rows, columns] = x @ y.T
        return result


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

    def __init__(self, x: _Matrix) -> None:
        self._x, self.size = x, x.size
        count = max(min(_AXES, self.size, _AXES_VALUES // max(x.count, 1)), 1)
        axes = _leading(x.normal_times, self.size, count)  # D x A
        image = x.times(axes)
        turn = np.linalg.eigh(image.T @ image)[1]  # makes X' X diagonal on the axes
        self._axes, self._axes_image = (
            (axes @ turn).astype(np.float32),
            (image @ turn).astype(np.float32),
        )

    def image(self, w: np.ndarray) -> np.ndarray:
        return self._x.times(w)

    def adjoint(self, u: np.ndarray) -> np.ndarray:
        """X' u."""
        return self._x.adjoint(u)

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
        return z, self.image(z)

    def patience(self, curvature: np.ndarray) -> np.ndarray:
        """For each column, the number of conjugate gradient steps that take as long as `solve`."""
        rows, dims = self._x.count, self.size
        return (np.count_nonzero(curvature, 0) * dims**2 + dims**3 / 3) / (4 * rows * dims) + 1

    def solve(self, curvature: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The minimizer if the active rows stay those of one column's `curvature`: (1 + X' D X) w =
        X' D y."""
        active = np.flatnonzero(curvature)
        hessian, right = np.zeros((self.size, self.size)), np.zeros(self.size)
        for rows, x in self._x.blocks(np.float64, active):
            hessian += x.T @ (curvature[rows, None] * x)
            right += x.T @ (curvature[rows] * targets[rows])
        hessian[np.diag_indices(self.size)] += 1
        return _solve(hessian, right)


class _Gram(_Primal):
    """w = X' b, represented by b, [N, P]: its image is G b, inner products are b' G b; G = X X'."""

    def __init__(self, gram: np.ndarray) -> None:
        self._gram, self.size = gram, len(gram)
        self._x = _Matrix(lambda rows: gram[rows], np.arange(self.size), self.size, gram)
        axes = _leading(self._x.times, self.size, min(_AXES, self.size))
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
        system = self._gram[np.ix_(active, active)]
        system[np.diag_indices(len(active))] += 1 / curvature[active]
        b = np.zeros(self.size)
        b[active] = _solve(system, targets[active])
        return b


def _solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return scipy.linalg.cho_solve(
        scipy.linalg.cho_factor(a, overwrite_a=True, check_finite=False), b
    )


def _sum(parts: Iterator[np.ndarray]) -> np.ndarray:
    total = next(parts)
    for part in parts:
        total += part
    return total


def _leading(product: Callable[[np.ndarray], np.ndarray], size: int, count: int) -> np.ndarray:
    """Orthonormal [size, count]: the leading eigenvectors, roughly, by subspace iteration."""
    axes = np.random.default_rng(0).standard_normal((size, count))
    for _ in range(3):
        axes = np.linalg.qr(product(axes.astype(np.float32)).astype(float))[0]
    return axes
