"""ImageNet-style DALI pipelines around :mod:`dali_msda`, and the loader that feeds PyTorch from them."""
