"""ImageNet-style DALI pipelines that use :mod:`dali_msda`, and a loader for PyTorch."""
