"""The theory of mixing, computed: what a method's masks do to the training loss.

After Park, Yun and Chun, "A Unified Analysis of Mixed Sample Data Augmentation: A Loss Function Perspective",
NeurIPS 2022. Sections, equations and theorems in this package are the paper's. It needs only NumPy and SciPy
(``pip install 'dali-msda[theory]'``): no DALI, no Numba, and PyTorch only for functions that take its models.
"""
