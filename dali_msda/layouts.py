"""The layout of images: read from the graph before anything runs, and compared with what the caller says.

DALI (2.4) knows a layout only at run time, and on the GPU nothing on the CPU can read it. So it is derived
from the operators that made the images. Where that fails the answer is None: this is never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from nvidia.dali import fn
from nvidia.dali.pipeline import DataNode, do_not_convert

from .checks import with_layout
from .signatures import Layout
from .validation import ArgumentValueError, check_choice

LAYOUTS: tuple[str, ...] = get_args(Layout)

# By the name of DALI's schema, in its last part: decoders__Image and ImageDecoder are different ones.
_DECODERS = {
    "Image", "ImageCrop", "ImageRandomCrop", "ImageSlice", "ImageDecoder", "ImageDecoderCrop",
    "ImageDecoderRandomCrop", "ImageDecoderSlice",
}  # fmt: skip
_VIDEO = {
    "readers__Video", "readers__VideoResize", "VideoReader", "VideoReaderResize", "decoders__Video",
    "experimental__decoders__Video", "experimental__readers__Video", "experimental__inputs__Video",
}  # fmt: skip
# Operators whose output has the layout of their first input. Some take images without a layout for HWC and
# say so in their output; the graph does not show how many dimensions such images have.
_AS_INPUT = {
    "Brightness", "BrightnessContrast", "Cast", "CastLike", "Clahe", "ColorSpaceConversion", "ColorTwist",
    "Contrast", "Copy", "Crop", "Equalize", "Erase", "FastResizeCropMirror", "Filter", "Flip", "Gaussian",
    "GaussianBlur", "GridMask", "Hsv", "Hue", "Jitter", "JpegCompressionDistortion", "Laplacian",
    "LookupTable", "MedianBlur", "MultiPaste", "Normalize", "OnesLike", "Pad", "Paste", "PermuteBatch",
    "RandomResizedCrop", "Remap", "Resize", "ResizeCropMirror", "Rotate", "SaltAndPepper", "Saturation",
    "SequenceRearrange", "Shot", "Slice", "Sphere", "TensorResize", "WarpAffine", "WarpPerspective", "Water",
    "ZerosLike", "_SubscriptDimCheck", "Split",
}  # fmt: skip
_DECLARED = {"Constant", "Full", "Ones", "Zeros"}


def static_layout(node: Any) -> str | None:
    """Find the layout of a node in the graph.

    Parameters
    ----------
    node : nvidia.dali.pipeline.DataNode
        Any node of a graph under construction.

    Returns
    -------
    str or None
        None where the operators leading to the node do not show it, or show that it has none.
    """
    # Without recursion: automatic augmentation makes chains of hundreds of operators.
    found: dict[int, str | None] = {}
    stack = [node.source]
    while stack:
        source = stack[-1]
        missing = [one.source for one in source.inputs or () if id(one.source) not in found]
        if missing:
            stack += missing
        else:
            found[id(source)] = _of_operator(source, [_of(one, found) for one in source.inputs or ()])
            stack.pop()
    return _of(node, found)


def _of(node: Any, found: Mapping[int, str | None]) -> str | None:
    """The layout of a node; `found` has those of the first outputs of operators, by their id."""
    if known := getattr(node, "layout", None):
        return str(known)
    if node.index and node.source._op.schema.Name() != "_conditional__Split":
        return None
    return found[id(node.source)]


def _of_operator(source: Any, of_inputs: Sequence[str | None]) -> str | None:
    """The layout of the first output of an operator."""
    operator = source._op
    name = operator.schema.Name()
    last = name.rpartition("__")[2]
    arguments = {**getattr(operator, "_init_args", {}), **getattr(operator, "_call_args", {})}
    if name == "ExternalSource":
        return getattr(source, "_layout", None) or None
    if name in _VIDEO:
        return "FHWC"
    if last in _DECODERS:
        return "HWC"
    if name in _DECLARED:
        return arguments.get("layout")
    if not of_inputs:
        return None
    if name == "_conditional__Merge":
        return of_inputs[0] if of_inputs[0] == of_inputs[1] else None
    if name == "_ArithmeticGenericOp":
        # The longest, because of broadcasting.
        return max((one for one in of_inputs if one), key=len, default=None)
    if last in _AS_INPUT:
        return of_inputs[0]
    # An argument that is a node, such as the shape of Reshape, is one more input.
    return _RULES[name](of_inputs[0], arguments, len(of_inputs)) or None if name in _RULES else None


# The rules below take the layout of the first input, the operator's arguments and the number of inputs.


def _normalized(own: str | None, arguments: Mapping[str, Any], inputs: int) -> str | None:
    return arguments.get("output_layout", "CHW") or own


def _reshaped(own: str | None, arguments: Mapping[str, Any], inputs: int) -> str | None:
    if (given := arguments.get("layout")) is not None:
        return str(given)
    if inputs > 1 or own is None:
        return None  # of a shape that is a node nobody knows the length
    for name in ("src_dims", "shape", "rel_shape"):
        if (sides := arguments.get(name)) is not None:
            count = len(sides) if hasattr(sides, "__len__") else 1
            return own if count == len(own) else None
    return own


def _reinterpreted(own: str | None, arguments: Mapping[str, Any], inputs: int) -> str | None:
    if arguments.keys() & {"shape", "rel_shape"} or inputs > 1:
        return _reshaped(own, arguments, inputs)
    return arguments.get("layout") or own


def _axes(arguments: Mapping[str, Any]) -> list[int]:
    axes = arguments.get("axes", ())
    return [int(axis) for axis in (axes if hasattr(axes, "__iter__") else [axes])]


def _expanded(own: str | None, arguments: Mapping[str, Any], inputs: int) -> str | None:
    axes, names = _axes(arguments), arguments.get("new_axis_names")
    if own is None or not names or len(names) != len(axes):
        return None
    for axis, name in sorted(zip(axes, names, strict=True)):
        own = own[:axis] + name + own[axis:]
    return own


def _squeezed(own: str | None, arguments: Mapping[str, Any], inputs: int) -> str | None:
    if own is None:
        return None
    gone = {own[axis] for axis in _axes(arguments) if 0 <= axis < len(own)}
    gone |= set(arguments.get("axis_names") or "")
    return "".join(letter for letter in own if letter not in gone)


def _transposed(own: str | None, arguments: Mapping[str, Any], inputs: int) -> str | None:
    if given := arguments.get("output_layout"):
        return str(given)
    if own is None or not arguments.get("transpose_layout", True):
        return own
    order = arguments.get("perm")
    if inputs > 1 or (order is not None and len(order) != len(own)):
        return None
    return own[::-1] if order is None else "".join(own[axis] for axis in order)


def _subscripted(own: str | None, arguments: Mapping[str, Any], inputs: int) -> str | None:
    """Without the axes that have a single index; such an index may be an input."""
    if own is None or inputs > 1:
        return None
    return "".join(letter for axis, letter in enumerate(own) if f"at_{axis}" not in arguments)


def _with_axis(own: str | None, arguments: Mapping[str, Any], axis: int) -> str | None:
    if own is None or not (name := arguments.get("axis_name")):
        return None
    at = arguments.get("axis", axis)
    at = at + len(own) + 1 if at < 0 else at
    return own[:at] + str(name) + own[at:]


def _reduced(own: str | None, arguments: Mapping[str, Any], inputs: int) -> str | None:
    if arguments.get("keep_dims"):
        return own
    return _squeezed(own, arguments, inputs) if arguments.keys() & {"axes", "axis_names"} else None


def _element(own: str | None, arguments: Mapping[str, Any], inputs: int) -> str | None:
    return own[1:] if own else None


_RULES: dict[str, Callable[[str | None, Mapping[str, Any], int], str | None]] = {
    "CropMirrorNormalize": _normalized,
    "Reshape": _reshaped,
    "Reinterpret": _reinterpreted,
    "ExpandDims": _expanded,
    "Squeeze": _squeezed,
    "Transpose": _transposed,
    "_TensorSubscript": _subscripted,
    "ElementExtract": _element,
    "Cat": lambda own, arguments, inputs: own,
    "Stack": lambda own, arguments, inputs: _with_axis(own, arguments, 0),
    "OneHot": lambda own, arguments, inputs: _with_axis(own, arguments, -1),
    **{f"reductions__{name}": _reduced for name in ("Max", "Mean", "MeanSquare", "Min", "RMS", "Sum")},
}


# DALI's conditionals would turn the "or" of strings into operators.
@do_not_convert
def layouts_of(views: Sequence[DataNode], sources: Sequence[DataNode] | None, given: str | None) -> list[str]:
    """:func:`layout_of` each view, which its partners' source must have too."""
    layouts = [layout_of("images", view, given) for view in views]
    for source, layout in zip(sources or (), layouts, strict=False):
        layout_of("partner_images", source, layout)
    return layouts


def layout_of(name: str, images: DataNode, given: str | None) -> str:
    """The layout of images: what the graph shows, or what the caller says, which must not differ.

    Images on the CPU whose layout neither of them gives count as HWC; DALI's own layout of the data is
    compared with that at run time.

    Raises
    ------
    ArgumentValueError
        The two differ; neither is known, on the GPU; the layout is none that can be mixed.
    """
    return choose_layout(name, static_layout(images), given, images.device, "the graph")


def choose_layout(name: str, seen: str | None, given: str | None, device: str, witness: str) -> str:
    """:func:`layout_of` images of which `witness` shows the layout `seen`, or none."""
    if given is not None:
        check_choice("layout", given, LAYOUTS)
    if given is None and seen is None:
        if device == "cpu":
            return "HWC"
        expected = f"given for {name} on the GPU whose layout {witness} does not show"
        raise ArgumentValueError("layout", expected, None)
    if given is not None and seen is not None and given != seen:
        raise ArgumentValueError("layout", f"{seen!r}, which {witness} shows for {name}", given)
    layout = given or str(seen)
    check_choice("layout", layout, LAYOUTS)
    return layout


def picture_layout(layout: str) -> str:
    """The layout of :func:`as_pictures`."""
    return "HWC" if layout == "HW" else layout


def mask_layout(layout: str) -> str:
    """The layout of a mask, an image of one channel that all frames or slices share: HWC or CHW."""
    return picture_layout(layout)[-3:]


def is_sequence(layout: str) -> bool:
    """Whether a sample has several frames, or slices."""
    return len(layout) == 4


def output_layouts(layout: str) -> tuple[str, ...]:
    """The layouts that normalised images can have, from images of that layout."""
    if layout == "DHWC":
        return ("DHWC",)
    return ("FHWC", "FCHW") if is_sequence(layout) else ("HWC", "CHW", *(["HW"] if layout == "HW" else []))


def as_pictures(images: DataNode, layout: str) -> DataNode:
    """The images with a channel axis, as the backends take them; without a copy."""
    if layout != "HW":
        return images
    return fn.expand_dims(with_layout(images, layout), axes=[2], new_axis_names="C")


def from_pictures(pictures: DataNode, layout: str) -> DataNode:
    """Pictures, or masks of their layout, in the layout that the caller has; without a copy."""
    return fn.squeeze(pictures, axes=[2]) if layout == "HW" else pictures
