"""Keep images with unreadable headers from the decoders of DALI 2.4, which crash on them.

With more than four images per thread, DALI's decoders read the headers of a batch in several threads. If one
header cannot be read, the calling thread raises without waiting for the others. They keep using memory that
has been freed: SIGSEGV, at once or when the pipeline is torn down. It happens in any format and with any
fault: an empty file, an HTML page, a JPEG cut off before its pixels. ``fn.peek_image_shape`` reads the same
headers with the same parsers and waits for all threads.
"""

from __future__ import annotations

from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import DataNode, do_not_convert

from dali_msda.backends import compiled_module

# DALI's error names this operator when an image was stopped here.
STOPPED_BY = "`nvidia.dali.fn.reshape`"


def check_headers(encoded: DataNode) -> DataNode:
    """Return encoded images (uint8 1-D, CPU) without a copy; stop the pipeline if one must not be decoded.

    Without Numba some get through: samples of types that DALI does not know, and damaged JPEG 2000.
    """
    return check_and_measure(encoded)[0]


@do_not_convert  # does not depend on values of samples
def check_and_measure(encoded: DataNode) -> tuple[DataNode, DataNode]:
    """The same, and the shapes of the upright images: int64 [3], CPU."""
    compiled = compiled_module("headers")
    if compiled is not None:
        encoded = _stop(encoded, compiled.length_if_safe(encoded))
    shape = fn.peek_image_shape(encoded, image_type=types.ANY_DATA)  # 0 channels: unknown type
    if compiled is not None:
        return _stop(encoded, compiled.length_if_plausible(shape)), shape
    return _stop(encoded, -math.min(fn.reductions.min(shape, axes=[0], keep_dims=True), 1)), shape


def _stop(encoded: DataNode, length: DataNode) -> DataNode:
    """Stop the pipeline where `length` is 0; return the images where it is -1.

    This makes the images depend on the check, so no decoder starts before it is done.
    """
    return fn.reshape(encoded, shape=length)  # damaged header, or a type that DALI does not decode
