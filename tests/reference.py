"""The NumPy reference of the tests; the doctor uses the same one."""

from dali_msda.reference import blend, blend_uint8, box, label_weight, mask, mix, targets

__all__ = ["blend", "blend_uint8", "box", "label_weight", "mask", "mix", "targets"]
