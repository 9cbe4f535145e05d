"""Mixing in an existing pipeline, with one line around its definition."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali.pipeline import DataNode, Pipeline, do_not_convert

from .changing import values_of
from .compat import outputs_of
from .methods import TABLE, Method
from .mixing import method_arguments
from .operators import mix
from .validation import ArgumentTypeError, ArgumentValueError, check_choice, check_fraction

# How many times each pipeline has been mixed: each time gets its own draws.
_mixed: weakref.WeakKeyDictionary[Pipeline, int] = weakref.WeakKeyDictionary()


def with_mixing(
    pipeline_function: Any,
    method: str = "hmix",
    *,
    num_classes: int | None = None,
    images: int | str = 0,
    labels: int | str = 1,
    **arguments: Any,
) -> Any:
    """Mix two outputs of a pipeline without changing the pipeline itself.

    Parameters
    ----------
    pipeline_function : callable, type or nvidia.dali.Pipeline
        A function decorated with ``@pipeline_def``, or one that returns nodes or a Pipeline; a subclass of
        Pipeline, or an instance that is not built yet.
    method : str, optional
        See :func:`mix`.
    num_classes : int
        Length of the targets; see :func:`mix`.
    images, labels : int or str, optional
        Their positions among the outputs, by default 0 and 1 (-1 is the last), or keys of a dict.
    **arguments
        Arguments of :func:`mix`. Those of the method, `probability` and `lam` may be functions of the batch
        number, counted from 0 through all epochs: ``probability=lambda batch: float(batch < 100_000)``.

    Returns
    -------
    callable, type or nvidia.dali.Pipeline
        The same kind of object, with the same signature. The outputs keep their places: mixed images, float32
        targets instead of the labels, and the others unchanged. Further results of :func:`mix`, as with
        ``return_params=True``, come after the last output, or in a dict under the names of the parameters.

    Raises
    ------
    TypeError, ValueError
        Another kind of object; or, when the pipeline is made, an output that does not exist or is not a node,
        and the errors of :func:`mix`.

    Notes
    -----
    Without `seed` the draws follow the pipeline's seed. They use none of the seeds that DALI assigns, so the
    pipeline's random operators draw the same as without mixing.
    """
    check_choice("method", method, tuple(TABLE))
    for name, place in (("images", images), ("labels", labels)):
        if isinstance(place, bool) or not isinstance(place, int | str):
            raise ArgumentTypeError(name, "the position or key of an output", place)
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    mixing = _Mixing(images, labels, {"method": method, **arguments})
    if isinstance(pipeline_function, Pipeline):
        return mixing.mix_pipeline(pipeline_function)
    if isinstance(pipeline_function, type) and issubclass(pipeline_function, Pipeline):
        return _mixed_class(pipeline_function, mixing)
    if isinstance(pipeline_function, type) or not callable(pipeline_function):
        raise ArgumentTypeError(
            "pipeline_function", "a function, or a Pipeline or its class", pipeline_function
        )
    return _mixed_function(pipeline_function, mixing)


@dataclass(frozen=True)
class _Mixing:
    """What to mix, and how."""

    images: int | str
    labels: int | str
    arguments: Mapping[str, Any]

    def finish(self, made: Any) -> Any:
        """Mix the result of a function: a pipeline, or its outputs."""
        return self.mix_pipeline(made) if isinstance(made, Pipeline) else self.mix_outputs(made)

    def mix_pipeline(self, pipeline: Any) -> Any:
        """Mix outputs of a pipeline that is not built yet."""
        outputs = outputs_of(pipeline)
        with pipeline:
            mixed = self.mix_outputs(outputs)
        pipeline.set_outputs(*mixed)
        return pipeline

    def mix_outputs(self, outputs: Any) -> Any:
        """Mix two of the outputs, in the current pipeline."""
        if not isinstance(outputs, tuple | list | dict):
            outputs = (outputs,)
        images, labels = (_find(outputs, name, getattr(self, name)) for name in ("images", "labels"))
        if images == labels:
            raise ValueError(f"images and labels must be two outputs; got {images!r} for both")
        arguments = {name: self._value(name, argument) for name, argument in self.arguments.items()}
        if arguments.get("seed") is None:
            arguments |= _derived_seed()
        mixed, targets, *rest = mix(outputs[images], outputs[labels], **arguments)
        more: dict[str, Any] = {}
        for result in rest:
            more |= result._asdict()
        if isinstance(outputs, dict):
            return {**outputs, images: mixed, labels: targets, **more}
        found = list(outputs)
        found[images], found[labels] = mixed, targets
        found += more.values()
        if isinstance(outputs, list):
            return found
        return outputs._make(found) if hasattr(outputs, "_make") and not more else tuple(found)

    def _value(self, name: str, argument: Any) -> Any:
        """The argument, or for a function a node with its values."""
        changes = name in ("probability", "lam", "alpha", *self._method.defaults)
        return values_of(name, argument, self._check) if changes and callable(argument) else argument

    def _check(self, name: str, number: object) -> None:
        if name in ("probability", "lam"):
            check_fraction(name, number)
        else:
            method_arguments(self._method, {name: number})

    @property
    def _method(self) -> Method:
        return TABLE[self.arguments["method"]]


def _find(outputs: Any, name: str, place: int | str) -> Any:
    """The key or non-negative position of an output; raise unless it is a node."""
    if isinstance(outputs, dict):
        if place not in outputs:
            raise ArgumentValueError(name, f"one of the keys {', '.join(map(repr, outputs))}", place)
    else:
        expected = f"the position of one of {len(outputs)} outputs"
        if isinstance(place, str):
            raise ArgumentTypeError(name, expected, place)
        if not -len(outputs) <= place < len(outputs):
            raise ArgumentValueError(name, expected, place)
        place %= len(outputs)
    if not isinstance(outputs[place], DataNode):
        raise TypeError(
            f"{name} must be a DALI node; got {type(outputs[place]).__name__} as output {place!r}"
        )
    return place


def _derived_seed() -> dict[str, int]:
    """A new seed each time that a pipeline is mixed; none if the pipeline has no seed.

    DALI assigns its seeds to random operators in order. If the mixing took some of them, the pipeline's own
    random operators would draw other numbers.
    """
    pipeline = Pipeline.current()
    if pipeline is None or pipeline.seed is None:
        return {}
    times = _mixed[pipeline] = _mixed.get(pipeline, 0) + 1
    sequence = np.random.SeedSequence([pipeline.seed % 2**64, times])
    return {"seed": int(sequence.generate_state(1, np.uint64)[0])}


def _mixed_function(function: Any, mixing: _Mixing) -> Any:
    # With conditionals DALI rewrites the function and its caller; the code after it needs no rewriting.
    finish = do_not_convert(mixing.finish)

    @functools.wraps(function)
    def create(*args: Any, **kwargs: Any) -> Any:
        return finish(function(*args, **kwargs))

    # For pipeline_def, which does not follow __wrapped__ to find the arguments.
    create.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return create


def _mixed_class(base: Any, mixing: _Mixing) -> Any:
    class Defined(base):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if self.__dict__.setdefault("_in_init", False):
                # This class replaces its base under the same name, so super(Name, self).__init__ in
                # the base comes here, although it means the base's own base.
                super(base, self).__init__(*args, **kwargs)
                return
            self._in_init = True
            super().__init__(*args, **kwargs)
            self._in_init = False

        def define_graph(self) -> Any:
            return mixing.mix_outputs(super().define_graph())

        def set_outputs(self, *outputs: Any) -> None:
            with self:
                super().set_outputs(*mixing.mix_outputs(outputs))

    names = ("__module__", "__name__", "__qualname__", "__doc__")
    return type(base)(base.__name__, (Defined,), {name: getattr(base, name) for name in names})
