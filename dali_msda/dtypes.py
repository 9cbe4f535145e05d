"""The element type of a node, read from the graph before anything runs.

The compiled kernel needs the type of its images when the graph is built. DALI (2.4) knows it only at run
time, so it is derived from the operators that made the images. Where that fails the answer is None, and the
caller takes a slower path that works for every type: this is an optimisation, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

_UINT8_BY_DEFAULT = {
    "Image", "ImageCrop", "ImageRandomCrop", "ImageSlice", "ImageDecoder", "ImageDecoderCrop",
    "ImageDecoderRandomCrop", "ImageDecoderSlice", "JpegCompressionDistortion",
}  # fmt: skip
# By operator and index of the output: the file reader's labels come second.
_ALWAYS = {("File", 1): types.INT32, ("BatchPermutation", 0): types.INT32}
_FLOAT_BY_DEFAULT = {"CropMirrorNormalize", "Normalize", "OneHot"}
_INT32_BY_DEFAULT = {"CoinFlip"}
# What DALI makes of an `if`: schemas of the operators that divide a batch and join it.
_SPLIT, _MERGE = "_conditional__Split", "_conditional__Merge"
# Of arithmetic with a float: the widest one of what goes in.
_ARITHMETIC = ("add(", "sub(", "mul(", "div(")
# Operators whose output has the type of their first input unless `dtype` is given.
_AS_INPUT = {
    "Brightness", "BrightnessContrast", "CLAHE", "ColorSpaceConversion", "ColorTwist", "Contrast", "Copy",
    "Crop", "Equalize", "Erase", "ExpandDims", "FastResizeCropMirror", "Flip", "GaussianBlur", "GridMask",
    "Hsv", "Hue", "Jitter", "Pad", "Paste", "PermuteBatch", "RandomResizedCrop", "Reshape", "Resize",
    "ResizeCropMirror", "Rotate", "Saturation", "Slice", "Sphere", "Squeeze", "Transpose", "WarpAffine",
    "Water",
}  # fmt: skip


def static_dtype(node: Any) -> types.DALIDataType | None:
    """Find the element type of a node in the graph.

    Parameters
    ----------
    node : nvidia.dali.pipeline.DataNode
        Any node of a graph under construction.

    Returns
    -------
    nvidia.dali.types.DALIDataType or None
        None where the operators leading to the node do not show it.
    """
    seen = 0
    while node is not None and seen < 64:  # the bound guards against cycles in DALI's internals
        seen += 1
        if getattr(node, "dtype", None) is not None:
            return node.dtype
        source = getattr(node, "source", None)
        operator = getattr(source, "_op", None)
        index = getattr(node, "index", 0) or 0
        if operator is None:
            return None
        # Operators of the Numba plugin list the types of all their outputs.
        if isinstance(outputs := getattr(operator, "out_types", None), list):
            return outputs[index]
        name = type(operator).__name__
        if (name, index) in _ALWAYS:
            return _ALWAYS[name, index]
        inputs = getattr(source, "inputs", None) or []
        kind = operator.schema.Name()
        if kind == _SPLIT:
            node = inputs[0]
            continue
        if kind == _MERGE:
            found = {static_dtype(each) for each in inputs[:2]}  # the third is the condition
            return found.pop() if len(found) == 1 else None
        if index != 0:
            return None
        arguments = {**getattr(operator, "_init_args", {}), **getattr(operator, "_call_args", {})}
        if name == "_ArithmeticGenericOp":
            return _of_arithmetic(str(arguments.get("expression_desc")), inputs)
        declared = arguments.get("dtype", getattr(operator, "_dtype", None))
        if isinstance(declared, types.DALIDataType):
            return declared
        known = _UINT8_BY_DEFAULT | _FLOAT_BY_DEFAULT | _INT32_BY_DEFAULT | _AS_INPUT
        if declared is not None or name not in known:
            return None
        if name in _UINT8_BY_DEFAULT:
            return types.UINT8
        if name in _FLOAT_BY_DEFAULT:
            return types.FLOAT
        if name in _INT32_BY_DEFAULT:
            return types.INT32
        node = inputs[0] if inputs else None
    return None


def _of_arithmetic(expression: str, inputs: Sequence[Any]) -> types.DALIDataType | None:
    """Element type of a sum, difference, product or quotient with a float32 or float64 in it; else None."""
    found = {static_dtype(node) for node in inputs}
    if not expression.startswith(_ARITHMETIC) or None in found:
        return None
    if types.FLOAT64 in found:
        return types.FLOAT64
    return types.FLOAT if types.FLOAT in found or ":float32" in expression else None


FLOATS = (types.FLOAT16, types.FLOAT, types.FLOAT64)


def as_type(node: DataNode, dtype: types.DALIDataType) -> DataNode:
    """Cast, without an operator where the graph shows that the node has this type already."""
    return node if static_dtype(node) == dtype else fn.cast(node, dtype=dtype)
