"""The theory of mixing, computed: what a method's masks do to the training loss.

After Park, Yun and Chun, "A Unified Analysis of Mixed Sample Data Augmentation: A Loss Function Perspective",
NeurIPS 2022. Sections, equations and theorems in this package are the paper's. It needs only NumPy and SciPy
(``pip install 'dali-msda[theory]'``): no DALI, no Numba, and PyTorch only for functions that take its models.

    from dali_msda import theory

    a = theory.coefficients("hmix", (224, 224), lam=0.5, ratio=0.75)
    a.row((112, 112))  # a_jk of the middle pixel with all pixels: equation 9
    a.by_offset()      # figure 4

The theorems are in modules: ``losses`` (Theorem 1; ``from_torch`` for PyTorch's models), ``prescribed``
(Theorem 2), ``robustness`` (Theorem 3), ``generalization`` (Theorem 4), ``flatness`` (section 3) and
``several`` (mixing n images, Remark 1). docs/theory.md has the whole on a page.
"""

from .closed_forms import closed_form
from .coefficients import coefficients
from .moments import Coefficients, MonteCarlo
from .sampling import formula_sampler, monte_carlo, operator_sampler

__all__ = [
    "Coefficients",
    "MonteCarlo",
    "closed_form",
    "coefficients",
    "formula_sampler",
    "monte_carlo",
    "operator_sampler",
]
