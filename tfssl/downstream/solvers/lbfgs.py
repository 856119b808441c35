"""Softmax regression by full-batch L-BFGS: SciPy's optimizer, with loss and gradients in
TensorFlow.

Objective: mean cross-entropy + l2 * ||W||^2. The bias is not penalized.

Raw features are ill-conditioned: a few directions carry most of the variance, and 800 updates do
not reach the optimum. Hence a preconditioner, W = P V: P divides by the square root of the
curvature, estimated from the leading principal components, and features are centered, which shifts
the bias by -mean W. Both are changes of variables: objective and minimum stay the same.

The replicas of a strategy share the rows of each product, whose sums L-BFGS reads on the host:
their number changes rounding alone.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional, Union

import numpy as np
import tensorflow as tf
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from tfssl.downstream.solvers.shares import Replicas
from tfssl.storage import mapped

_COMPONENTS = 128  # principal components in P; 512 save no updates
# values of features per product and replica (128 MB), which bounds the memory of temporaries
_CHUNK_VALUES = 1 << 25
# bytes of features that may stay in each GPU's memory, or in the host's; more are read again at
# each update
_RESIDENT = {"GPU": 8 << 30, "CPU": 2 << 30}
# TensorFlow's threads do the large products. BLAS threads beside them spin while they wait: 20
# times slower on busy cores.
_one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")


Moments = tuple[np.ndarray, np.ndarray]  # mean and standard deviation of each feature, float64 [D]
# features [n, D] and labels int32 [n], or shares of them: see `Replicas.share`
Chunk = tuple[Any, Any]


class Rows:
    """Some rows of one endpoint, and their labels, in chunks of tensors.

    They are computed with in float32, or in float64 if the features are; those of float16 stay so
    in memory. More rows than stay in memory are read again for each pass over `chunks`.

    Args:
      features: float [N, D], perhaps memory-mapped; labels: int [N], in 0..C-1.
      chosen: int [n], the rows.
      moments: (mean, standard deviation) [D] to standardize by; None: not standardized.
      replicas: who shares each chunk; None: one device.

    Attributes:
      chunks: an iterable, again and again, of (features [n, D], labels int32 [n]), or of shares of
        them; rows that fill up a share have label -1, and features of 0.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        chosen: np.ndarray,
        moments: Optional[Moments] = None,
        replicas: Optional[Replicas] = None,
    ) -> None:
        self.replicas = replicas or Replicas()
        self.dtype = np.float64 if features.dtype == np.float64 else np.float32
        self.count, self.dims = len(chosen), features.shape[1]
        self._features, self._labels, self._chosen = features, labels, chosen
        self._moments = moments
        size = self.count * self.dims * np.dtype(self.dtype if moments else features.dtype).itemsize
        accelerated = bool(tf.config.list_logical_devices("GPU"))
        resident = size <= (
            _RESIDENT["GPU"] * self.replicas.count if accelerated else _RESIDENT["CPU"]
        )
        self.chunks: Union[list[Chunk], Rows] = list(self) if resident else self

    def __iter__(self) -> Iterator[Chunk]:
        for part in in_chunks(self._chosen, self.dims, _CHUNK_VALUES * self.replicas.count):
            values = self._features[part]
            mapped.release(self._features)
            if self._moments:
                mean, std = self._moments
                values = ((values.astype(self.dtype) - mean) / std).astype(self.dtype)
            labels = self._labels[part].astype(np.int32)
            yield self.replicas.share(values), self.replicas.share(labels, -1)


@dataclasses.dataclass
class Fit:
    """A solution: weights float64 [D, C] and bias [C] for unscaled features, with statistics."""

    weights: np.ndarray
    bias: np.ndarray
    loss: float
    iterations: int
    converged: bool


class Problem:
    """Minimizes mean cross-entropy + l2 * ||W||^2 over some rows, for one l2 after another.

    Args:
      parts: list of Rows, of the same replicas.
      num_classes: C.
      precondition: whether to optimize in centered, decorrelated coordinates.
    """

    def __init__(self, parts: Sequence[Rows], num_classes: int, precondition: bool = True) -> None:
        self.parts = parts
        self.count, self.dims = sum(part.count for part in parts), parts[0].dims
        self.dtype, self.num_classes, self.precondition = parts[0].dtype, num_classes, precondition
        self._sum = parts[0].replicas.sum
        sums = sum(np.stack([s.numpy() for s in self._sum(_sums, x)]) for x, _ in self.chunks)
        self.mean = sums[0] / self.count
        #: sum of the features' variances: the scale of l2
        self.variance = float(np.maximum(sums[1] / self.count - self.mean**2, 0).sum())
        if precondition:
            self._components = self._leading_components()

    @property
    def chunks(self) -> Iterator[Chunk]:
        """One pass over the chunks of all parts."""
        return itertools.chain.from_iterable(part.chunks for part in self.parts)

    def objective(
        self, weights: np.ndarray, bias: np.ndarray, l2: float
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """(loss, gradient by weights [D, C], gradient by bias [C]), float64."""
        w, b = tf.constant(weights, self.dtype), tf.constant(bias, self.dtype)
        loss, dw, db = 0.0, np.zeros_like(weights), np.zeros_like(bias)
        for x, y in self.chunks:
            terms = [t.numpy().astype(np.float64) for t in self._sum(_cross_entropy, x, y, w, b)]
            loss, dw, db = loss + float(terms[0]), dw + terms[1], db + terms[2]
        loss = loss / self.count + l2 * float((weights**2).sum())
        return loss, dw / self.count + 2 * l2 * weights, db / self.count

    @_one_blas_thread
    def fit(
        self, l2: float, max_iterations: int = 800, start: Optional[Fit] = None, **options: Any
    ) -> Fit:
        """Minimize, from a Fit or from zero; returns a Fit. `options` are SciPy's, with its default
        tolerances."""
        apply, invert, bias_scale, mean = self._coordinates(l2)
        shape = self.dims, self.num_classes

        def unpack(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            weights = apply(point[: -self.num_classes].reshape(shape))
            return weights, point[-self.num_classes :] * bias_scale - mean @ weights

        def function(point: np.ndarray) -> tuple[float, np.ndarray]:
            weights, bias = unpack(point)
            loss, dw, db = self.objective(weights, bias, l2)
            return loss, np.concatenate([apply(dw - np.outer(mean, db)).ravel(), db * bias_scale])

        point = np.zeros(math.prod(shape) + self.num_classes)
        if start is not None:
            bias = start.bias + mean @ start.weights
            point = np.concatenate([invert(start.weights).ravel(), bias / bias_scale])
        # maxfun must not end the search first: one update may take several evaluations.
        options = {"maxiter": max_iterations, "maxfun": 20 * max_iterations, **options}
        solution = minimize(function, point, jac=True, method="L-BFGS-B", options=options)
        # Status 2: the line search can gain no more in this precision. 1 is the limit.
        return Fit(
            *unpack(solution.x), float(solution.fun), int(solution.nit), solution.status != 1
        )

    def _coordinates(
        self, l2: float
    ) -> tuple[
        Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray], float, np.ndarray
    ]:
        """(P, its inverse, scale of the bias, mean); P is symmetric, a function of [D, C]; without
        precondition: 1."""
        if not self.precondition:
            return (lambda v: v), (lambda w: w), 1.0, np.zeros(self.dims)
        probability = 1 / self.num_classes
        curvature = probability * (1 - probability)  # of the softmax at W = 0
        vectors, values, rest = self._components
        # for directions without variance, at l2 = 0
        tiny = 1e-12 * curvature * (self.variance or 1.0)
        outer = math.sqrt(curvature * rest + 2 * l2 + tiny)
        inner = np.sqrt(curvature * values + 2 * l2 + tiny)

        def apply(v: np.ndarray) -> np.ndarray:
            return v / outer + vectors @ ((1 / inner - 1 / outer)[:, None] * (vectors.T @ v))

        def invert(w: np.ndarray) -> np.ndarray:
            return w * outer + vectors @ ((inner - outer)[:, None] * (vectors.T @ w))

        return apply, invert, curvature**-0.5, self.mean

    @_one_blas_thread
    def _leading_components(self) -> tuple[np.ndarray, np.ndarray, float]:
        """(vectors [D, k], variances [k], mean variance of each remaining direction), by subspace
        iteration.

        They need not be accurate, as any invertible P preserves the objective, but the vectors must
        be orthonormal.
        """
        k = min(_COMPONENTS, self.dims, self.count)
        vectors = np.linalg.qr(
            np.random.default_rng(0).standard_normal((self.dims, min(k + 16, self.dims)))
        )[0]
        for _ in range(2):
            vectors = np.linalg.qr(self._covariance_times(vectors))[0]
        values, turn = np.linalg.eigh(vectors.T @ self._covariance_times(vectors))
        # contiguous: a product with a reversed view does not reach BLAS
        vectors, values = (
            np.ascontiguousarray((vectors @ turn)[:, ::-1][:, :k]),
            np.maximum(values[::-1][:k], 0),
        )
        rest = max(self.variance - values.sum(), 0) / max(self.dims - k, 1)
        return vectors, values, min(rest, values[-1])

    def _covariance_times(self, vectors: np.ndarray) -> np.ndarray:
        v = tf.constant(vectors, self.dtype)
        offset = tf.constant(self.mean @ vectors, self.dtype)
        products = (self._sum(_gram_times, x, v, offset) for x, _ in self.chunks)
        product = sum(of_chunk.numpy().astype(np.float64) for (of_chunk,) in products)
        # (x - mean) v sums to zero over the rows, so x^T of it needs no centering
        return product / self.count


def in_chunks(rows: np.ndarray, dims: int, values: Optional[int] = None) -> list[np.ndarray]:
    """Row numbers in chunks whose features have at most `values` values; None: 2^25."""
    size = max((values or _CHUNK_VALUES) // dims, 1)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def moments(features: np.ndarray, rows: np.ndarray) -> Moments:
    """(mean, standard deviation) over some rows, float64 [D]; a constant feature gets standard
    deviation 1."""
    total, squares = np.zeros((2, features.shape[1]))
    for part in in_chunks(rows, features.shape[1]):
        x = features[part].astype(np.float64)
        mapped.release(features)
        total, squares = total + x.sum(0), squares + (x**2).sum(0)
    mean = total / len(rows)
    std = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
    return mean, np.where(std > 1e-6 * np.abs(mean), std, 1.0)


def _sums(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    x = tf.cast(x, tf.float64)
    return tf.reduce_sum(x, 0), tf.reduce_sum(x * x, 0)


@tf.function(reduce_retracing=True, autograph=False)
def _cross_entropy(
    x: tf.Tensor, y: tf.Tensor, w: tf.Tensor, b: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    x, real = tf.cast(x, w.dtype), tf.cast(y >= 0, w.dtype)
    logits = x @ w + b  # NxC
    loss = real * tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(y, 0), logits)
    error = tf.nn.softmax(logits) - tf.one_hot(y, tf.shape(w)[1], dtype=x.dtype)  # NxC
    error *= real[:, None]
    return (
        tf.reduce_sum(tf.cast(loss, tf.float64)),
        tf.linalg.matmul(x, error, transpose_a=True),
        tf.reduce_sum(error, 0),
    )


@tf.function(reduce_retracing=True, autograph=False)
def _gram_times(x: tf.Tensor, v: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    x = tf.cast(x, v.dtype)
    return tf.linalg.matmul(x, x @ v - offset, transpose_a=True)  # DxK
