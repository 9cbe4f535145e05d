"""The second moments of a mask as an object: one entry, a row, averages, products; rarely the whole matrix.

The matrix a_jk = E[(1 - M_j)(1 - M_k)] (equation 9) has a row and a column for every pixel: at 224 x 224 it
would take 20 GB. The classes here hold what it is made of instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from ..validation import ArgumentTypeError, ArgumentValueError, check_integer

Floats = npt.NDArray[np.float64]
Pixel = tuple[int, int]  # row, column

MATRIX_PIXELS = 4096
"""The largest image, in pixels, whose matrix is made: 64 x 64 takes 128 MiB."""


def check_size(size: object) -> tuple[int, int]:
    """Raise unless `size` is a height and a width in pixels; returns them as a tuple."""
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise ArgumentTypeError("size", "(height, width)", size)
    for length in size:
        check_integer("size", length, 1)
    return int(size[0]), int(size[1])


def check_pixel(name: str, pixel: object, size: tuple[int, int]) -> Pixel:
    """Raise unless `pixel` is the row and column of a pixel of the image; returns them as a tuple."""
    if not isinstance(pixel, Sequence) or isinstance(pixel, str) or len(pixel) != 2:
        raise ArgumentTypeError(name, "(row, column)", pixel)
    for number, length in zip(pixel, size, strict=True):
        check_integer(name, number, 0)
        if number >= length:
            raise ArgumentValueError(name, f"a pixel of a {size[0]} x {size[1]} image", pixel)
    return int(pixel[0]), int(pixel[1])


class Coefficients(ABC):
    """The coefficients a_jk = E[(1 - M_j)(1 - M_k)] (equation 9) of one distribution of masks M.

    Pixels j and k are pairs (row, column), counted from 0.

    Attributes
    ----------
    size : (int, int)
        Height H and width W in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = check_size(size)

    def between(self, j: Pixel, k: Pixel) -> float:
        """One coefficient, a_jk."""
        return float(self.row(j)[check_pixel("k", k, self.size)])

    @abstractmethod
    def mean(self) -> Floats:
        """E[1 - M_j] for every pixel j, [H, W]: 1 - lam where there are no effects of the border."""

    @abstractmethod
    def row(self, j: Pixel) -> Floats:
        """The coefficients a_jk of one pixel j with every pixel k, [H, W]."""

    @abstractmethod
    def diagonal(self) -> Floats:
        """The coefficients a_jj, E[(1 - M_j)^2], [H, W]."""

    @abstractmethod
    def apply(self, image: npt.ArrayLike) -> Floats:
        """The matrix times an image: sum over k of a_jk v_k, [H, W] for v [H, W].

        The quadratic form ``(v * coefficients.apply(v)).sum()`` is the sum of a_jk v_j v_k of equation 8.
        """

    @abstractmethod
    def by_offset(self) -> Floats:
        """The mean of a_{i, i + (y, x)} over all pixels i for which i + (y, x) is a pixel too (figure 4).

        Returns
        -------
        ndarray
            float64 [2 H - 1, 2 W - 1]; the offset (y, x) is at [H - 1 + y, W - 1 + x].
        """

    def matrix(self) -> Floats:
        """All coefficients, [H W, H W], pixels in row-major order.

        Raises
        ------
        ValueError
            The image has more than 4,096 pixels.
        """
        height, width = self.size
        if height * width > MATRIX_PIXELS:
            raise ArgumentValueError(
                "size",
                f"at most {MATRIX_PIXELS} pixels for a matrix (use row, by_offset or apply)",
                self.size,
            )
        rows = [self.row((y, x)).ravel() for y in range(height) for x in range(width)]
        return np.array(rows)

    def _image(self, image: npt.ArrayLike) -> Floats:
        array = np.asarray(image, np.float64)
        if array.shape != self.size:
            raise ArgumentValueError("image", f"of shape {self.size}", array.shape)
        return array


class Term(NamedTuple):
    """The matrix ``rows[j1, k1] * columns[j2, k2]`` for pixels j = (j1, j2) and k = (k1, k2)."""

    rows: Floats
    """[H, H]"""
    columns: Floats
    """[W, W]"""


class Kronecker(Coefficients):
    """Coefficients that are a short sum of products of rows' and columns' parts.

    Parameters
    ----------
    mean : ndarray
        E[1 - M], [H, W].
    terms : sequence of Term
        Their sum is a_jk. An answer takes time and memory of the order of H^2 + W^2 + H W for each term, and
        `apply` H W (H + W).
    """

    def __init__(self, mean: Floats, terms: Sequence[Term]) -> None:
        super().__init__((mean.shape[0], mean.shape[1]))
        self.terms = tuple(terms)
        self._mean = mean

    def mean(self) -> Floats:
        return self._mean.copy()

    def between(self, j: Pixel, k: Pixel) -> float:
        (j1, j2), (k1, k2) = check_pixel("j", j, self.size), check_pixel("k", k, self.size)
        return float(sum(term.rows[j1, k1] * term.columns[j2, k2] for term in self.terms))

    def row(self, j: Pixel) -> Floats:
        j1, j2 = check_pixel("j", j, self.size)
        return self._sum(np.outer(term.rows[j1], term.columns[j2]) for term in self.terms)

    def diagonal(self) -> Floats:
        return self._sum(np.outer(np.diag(term.rows), np.diag(term.columns)) for term in self.terms)

    def apply(self, image: npt.ArrayLike) -> Floats:
        pixels = self._image(image)
        return self._sum(term.rows @ pixels @ term.columns.T for term in self.terms)

    def by_offset(self) -> Floats:
        height, width = self.size
        total = np.zeros((2 * height - 1, 2 * width - 1))
        for rows, columns in self.terms:
            total += np.outer(_mean_diagonals(rows), _mean_diagonals(columns))
        return total

    def matrix(self) -> Floats:
        height, width = self.size
        if height * width > MATRIX_PIXELS:
            return super().matrix()  # raises
        total = np.zeros((height * width, height * width))
        for rows, columns in self.terms:
            total += np.kron(rows, columns)
        return total

    def _sum(self, parts: Iterable[Floats]) -> Floats:
        return sum(parts, np.zeros(self.size))


def shorten(terms: Sequence[Term], longest: int = 32) -> list[Term]:
    """The same sum, up to rounding, of as few terms as possible; a sum of up to `longest` terms as it is."""
    if len(terms) <= longest:
        return list(terms)
    (height, _), (width, _) = (part.shape for part in terms[0])
    basis_rows, rows = np.linalg.qr(np.array([term.rows.ravel() for term in terms]).T)
    basis_columns, columns = np.linalg.qr(np.array([term.columns.ravel() for term in terms]).T)
    left, sizes, right = np.linalg.svd(rows @ columns.T)
    kept = np.flatnonzero(sizes > sizes[0] * len(terms) * np.finfo(np.float64).eps)
    return [
        Term(
            (basis_rows @ left[:, t]).reshape(height, height) * sizes[t],
            (basis_columns @ right[t]).reshape(width, width),
        )
        for t in kept
    ]


def _mean_diagonals(matrix: Floats) -> Floats:
    """The mean of each diagonal of a square matrix, from the lowest to the highest, [2 n - 1]."""
    n = len(matrix)
    offset = np.subtract.outer(np.arange(n), np.arange(n)).T  # k - j
    sums = np.bincount((offset + n - 1).ravel(), matrix.ravel(), 2 * n - 1)
    return np.asarray(sums / (n - np.abs(np.arange(1 - n, n))), np.float64)


class Weighted(NamedTuple):
    """Some of the possible masks."""

    probability: Floats
    """[D]"""
    shown: Floats
    """1 - M, the weights of the partner, [D, H, W]"""


class OverMasks(Coefficients):
    """Coefficients as a sum over masks.

    Parameters
    ----------
    size : (int, int)
    blocks : callable
        Returns an iterable of :class:`Weighted`, which are all masks together. Every answer goes through them
        once; the masks need not be in memory at the same time.
    """

    def __init__(self, size: tuple[int, int], blocks: Callable[[], Iterable[Weighted]]) -> None:
        super().__init__(size)
        self._blocks = blocks

    def mean(self) -> Floats:
        return self._sum(np.tensordot(block.probability, block.shown, 1) for block in self._blocks())

    def row(self, j: Pixel) -> Floats:
        y, x = check_pixel("j", j, self.size)
        return self._sum(np.tensordot(b.probability * b.shown[:, y, x], b.shown, 1) for b in self._blocks())

    def diagonal(self) -> Floats:
        return self._sum(np.tensordot(block.probability, block.shown**2, 1) for block in self._blocks())

    def apply(self, image: npt.ArrayLike) -> Floats:
        pixels = self._image(image)
        parts = (
            np.tensordot(b.probability * np.tensordot(b.shown, pixels, 2), b.shown, 1) for b in self._blocks()
        )
        return self._sum(parts)

    def by_offset(self) -> Floats:
        """The means by offset; correlations by FFT, so with an absolute error of about 1e-15."""
        height, width = self.size
        padded = (fft.next_fast_len(2 * height - 1, real=True), fft.next_fast_len(2 * width - 1, real=True))
        power = np.zeros((padded[0], padded[1] // 2 + 1))
        for block in self._blocks():
            for probability, shown in zip(*block, strict=True):
                spectrum = fft.rfft2(shown, padded)
                power += probability * (spectrum.real**2 + spectrum.imag**2)
        sums = fft.irfft2(power, padded)
        y, x = np.arange(1 - height, height), np.arange(1 - width, width)
        return np.asarray(sums[np.ix_(y, x)] / np.outer(height - np.abs(y), width - np.abs(x)), np.float64)

    def matrix(self) -> Floats:
        height, width = self.size
        if height * width > MATRIX_PIXELS:
            return super().matrix()  # raises
        total = np.zeros((height * width, height * width))
        for block in self._blocks():
            flat = block.shown.reshape(len(block.shown), -1)
            total += (flat * block.probability[:, None]).T @ flat
        return total

    def _sum(self, parts: Iterable[Floats]) -> Floats:
        return sum(parts, np.zeros(self.size))


class MonteCarlo(OverMasks):
    """Coefficients estimated from independent masks.

    Parameters
    ----------
    masks : ndarray
        M, float [D, H, W].
    """

    def __init__(self, masks: npt.ArrayLike) -> None:
        drawn = np.asarray(masks, np.float64)
        if drawn.ndim != 3 or len(drawn) < 2:
            raise ArgumentValueError("masks", "of shape [D, H, W] with D at least 2", drawn.shape)
        everything = Weighted(np.full(len(drawn), 1 / len(drawn)), 1.0 - drawn)
        super().__init__((drawn.shape[1], drawn.shape[2]), lambda: [everything])
        self._shown = everything.shown

    def standard_error(self, j: Pixel) -> Floats:
        """The standard error of every coefficient of ``row(j)``, [H, W]."""
        y, x = check_pixel("j", j, self.size)
        count = len(self._shown)
        products = self._shown[:, y, x, None, None] * self._shown
        return np.asarray(products.std(axis=0, ddof=1) / np.sqrt(count), np.float64)
