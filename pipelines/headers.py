"""No image whose header does not read reaches a decoder, because DALI 2.4 does not survive it.

Where a batch has more than four images a thread, its decoders read the headers in several threads. If one
header does not read, the thread that asked raises without waiting for the others, which continue in memory
that is no longer theirs: SIGSEGV, at once or when the pipeline is taken down. It happens in any format and
with any fault: an empty file, a page of HTML, a JPEG that is cut before its pixels. ``fn.peek_image_shape``
reads the same headers with the same parsers and waits for all threads.
"""

from __future__ import annotations

from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import DataNode, do_not_convert

from dali_msda.backends import compiled_module

# DALI's name of the operator that stops where a header reads and must not be decoded.
REFUSES = "`nvidia.dali.fn.reshape`"


@do_not_convert  # nothing in it depends on a sample's value
def checked(encoded: DataNode) -> DataNode:
    """The same encoded images, uint8 1-D on the CPU, without a copy; stop where one must not be decoded.

    Without Numba some get through: samples of a type that DALI does not know, and damage in JPEG 2000.
    """
    compiled = compiled_module("headers")
    if compiled is not None:
        encoded = _stop(encoded, compiled.length_if_survivable(encoded))
    shape = fn.peek_image_shape(encoded, image_type=types.ANY_DATA)  # 0 channels: what it does not know
    if compiled is not None:
        return _stop(encoded, compiled.length_if_sensible(shape))
    return _stop(encoded, -math.min(fn.reductions.min(shape, axes=[0], keep_dims=True), 1))


def _stop(encoded: DataNode, length: DataNode) -> DataNode:
    """Stop where `length` is 0; where it is -1, the images themselves.

    They depend on the check by this, so that no decoder begins before there is an answer.
    """
    return fn.reshape(encoded, shape=length)  # its header is damaged, or of no type that DALI decodes
