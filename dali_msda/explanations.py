"""DALI's run-time errors in a sentence.

No DALI operator can raise a custom message. A check is a small operator that fails (see :mod:`.checks`), and
a comment on its line of Python says what must hold. DALI's message shows that line in its traceback, and the
numbers at which the operator failed: this module turns them into one sentence.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .fault_codes import CHANNELS_DIFFER, IMAGES_MOVED, LAYOUT_DIFFERS, MASK_DIFFERS, SIZES_DIFFER
from .methods import MIXING

_LIBRARY = Path(__file__).parent
_FRAME = re.compile(r'^  File "(.+)", line (\d+), in (\S+)\n(?:    (.*)\n)?', re.MULTILINE)
# What must hold, "NAME must be X", or a list of faults.
_COMMENT = re.compile(r"  # ((?:a )?\w+ must .+|(?!type:|noqa:)\w+: .+)$", re.MULTILINE)
# The functions that users call; all other frames are internal.
_PUBLIC = ("mix", "blend", "with_mixing", "draw", "apply", "mix_labels")
_FAULTS = {
    SIZES_DIFFER: "images must have one size within a batch: resize or crop them before",
    LAYOUT_DIFFERS: "layout must be the layout of the images",
    CHANNELS_DIFFER: "mean and std must have one number for each channel of the images",
    MASK_DIFFERS: "mask must have the height and width of its image",
    IMAGES_MOVED: "images must stay in their place in memory; DALI moved them, please report it",
}


class _Frame(NamedTuple):
    path: str
    line: int
    function: str
    code: str


def explain(error: BaseException) -> str | None:
    """Explain in a sentence an error that DALI raised in the mixing.

    Parameters
    ----------
    error : BaseException
        What ``pipeline.run()``, ``pipeline.build()``, ``pipeline.serialize()`` or one of DALI's iterators
        raised, or an error that has it as a cause.

    Returns
    -------
    str or None
        Such as "msda.hmix: labels must be in [0, 1000); got 1000", with the index of the sample within the
        batch where DALI shows it. None for an error that is not from this library.

    Examples
    --------
    >>> try:
    ...     batch = next(loader)
    ... except RuntimeError as error:
    ...     if words := msda.explain(error):
    ...         raise RuntimeError(words) from error
    ...     raise
    """
    for text in _texts(error):
        if words := _explained(text):
            return words
    return None


def _texts(error: BaseException | None) -> Iterator[str]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield str(error)
        error = error.__cause__ or error.__context__


def _explained(text: str) -> str | None:
    if re.search(r"Could not serialize the operator: `dali_msda\.CompiledOperator", text):
        return "msda: backend must be 'graph' for a pipeline to be serialized; got compiled operators"
    traceback, _, message = text.partition("encountered:")
    frames = [_Frame(path, int(line), name, code) for path, line, name, code in _FRAME.findall(traceback)]
    own = [at for at, frame in enumerate(frames) if Path(frame.path).is_relative_to(_LIBRARY)]
    if not message or not own:
        return None
    words = _sentence([frames[at] for at in reversed(own)], message)
    return None if words is None else f"{_caller(frames, own)}: {words}"


def _caller(frames: list[_Frame], own: list[int]) -> str:
    """The public function, as written in the user's line if that is a single line."""
    names = "|".join((*_PUBLIC, *MIXING))
    user = frames[own[0] - 1].code if own[0] else ""
    if called := re.search(rf"\b({names})\(", user):
        return f"msda.{called[1]}"
    if any(Path(frames[at].path).name == "wrapping.py" for at in own):
        return "msda.with_mixing"
    inside = [frames[at].function for at in own if frames[at].function in _PUBLIC]
    return f"msda.{inside[0]}" if inside else "msda"


def _sentence(frames: list[_Frame], message: str) -> str | None:
    """What must hold, and what came; of the library's frames, from the innermost."""
    bounds = re.search(r"input_shape=\{([\d, ]+)\}, slice_anchor=\{(-?\d+)", message)
    comment = next(filter(None, map(_comment_of, frames)), None)
    if comment and comment.startswith("1: "):  # a list of faults
        return _FAULTS.get(int(bounds[2])) if bounds else None
    if beta := re.search(r"`(?:alpha|beta)` must be .*got `(.+?)` for sample at index (\d+)", message):
        return f"alpha must be above 0 and finite; got {beta[1]} in sample {beta[2]}"
    if index := re.search(r"indices\[(\d+)\] = (-?\d+) is not .* batch of (\d+)", message):
        return f"partner must be in [0, {index[3]}), the batch; got {index[2]} in sample {index[1]}"
    if comment and comment.startswith("mean must"):
        return _FAULTS[CHANNELS_DIFFER]
    got = _got(message)
    if comment and comment.startswith("layout must"):
        got = f"; got {letters[0]} for {letters[1]} dimensions" if (letters := _letters(message)) else ""
    if comment:
        # Checked with a slice: whether a number is a valid index.
        if bounds and "num_classes)" in comment:
            comment, got = comment.replace("num_classes", bounds[1]), f"; got {bounds[2]}"
        comment = re.sub(r"^a label must", "labels must", comment)
        return re.sub(r"^(\w+): ", r"\1 must be ", comment) + got
    if frames[0].function != "as_vector":
        return None
    # A node from the caller has the wrong length; one of these lines says which.
    names = re.search(r"\b(lam|probability|center)\b", "\n".join(frame.code for frame in frames))
    name = names[1] if names else "an argument of the method"
    return f"{name} must be a node with {'two numbers' if name == 'center' else 'one number'} per sample{got}"


def _comment_of(frame: _Frame) -> str | None:
    """The comment of a statement; DALI shows only its first line."""
    code = frame.code
    for number in range(frame.line + 1, frame.line + 6):
        if (found := _COMMENT.search(code)) or code.count("(") <= code.count(")"):
            return found[1] if found else None
        code += "\n" + linecache.getline(frame.path, number).rstrip("\n")
    return None


def _letters(message: str) -> tuple[int, int] | None:
    """How many letters a layout has, and how many dimensions the images."""
    if layout := re.search(r"Requested layout '(\w+)' is not compatible with a (\d+)D shape", message):
        return len(layout[1]), int(layout[2])
    if sides := re.search(r"dimensions of the input data: (\d+) != (\d+)", message):
        return int(sides[2]), int(sides[1])
    sides = re.search(r'argument "shape"\. Expected \{(\d+),.*?but got \{(\d+),', message, re.DOTALL)
    return (int(sides[1]), int(sides[2])) if sides else None


def _got(message: str) -> str:
    """What came, if DALI says so, after a semicolon; otherwise empty."""
    if shape := re.search(r"Sample index:\s*(\d+)\n(?:.*\n)*?Input shape:\s*(.*)\n", message):
        return f"; got the shape [{shape[2].strip().replace(' x ', ', ')}] in sample {shape[1]}"
    if dimensions := re.search(r"dimensions of the input data: (\d+) != \d+", message):
        return f"; got {dimensions[1]} dimensions"
    if given := re.search(r'argument "shape"\. Expected .*?but got \{(\d+),', message, re.DOTALL):
        return f"; got {given[1]} dimensions"
    return "; got floats" if "must be of integral type" in message else ""
