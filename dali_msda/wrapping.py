"""Mixing in an existing pipeline, with one line around its definition."""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali.pipeline import DataNode, Pipeline, do_not_convert

from .changing import values_of
from .compat import declared_dtype, outputs_of
from .dtypes import static_dtype
from .methods import TABLE, Method, check_method
from .mixing import method_arguments
from .operators import mix
from .record_labels import class_ids
from .validation import ArgumentTypeError, ArgumentValueError, check_fraction

# How many times each pipeline has been mixed: each time gets its own draws.
_mixed: weakref.WeakKeyDictionary[Pipeline, int] = weakref.WeakKeyDictionary()


def with_mixing(
    pipeline_function: Any,
    method: str = "hmix",
    *,
    num_classes: int | None = None,
    images: int | str | Sequence[int | str] = 0,
    labels: int | str | None = 1,
    **arguments: Any,
) -> Any:
    """Mix two outputs of a pipeline without changing the pipeline itself.

    Parameters
    ----------
    pipeline_function : callable, type or nvidia.dali.Pipeline
        A function decorated with ``@pipeline_def``, or one that returns nodes or a Pipeline; a subclass of
        Pipeline, or an instance not yet built.
    method : str, optional
        See :func:`mix`.
    num_classes : int
        Length of the targets; see :func:`mix`.
    images, labels : int or str, optional
        Their positions among the outputs, by default 0 and 1 (-1 is the last), or keys of a dict. Several
        `images` are views of the same samples that share their draws. ``labels=None`` mixes images alone.
    **arguments
        Arguments of :func:`mix`. Those of the method, `probability` and `lam` may be functions of the batch
        number, counted from 0 through all epochs: ``probability=lambda batch: float(batch < 100_000)``.

    Returns
    -------
    callable, type or nvidia.dali.Pipeline
        The same kind of object, with the same signature. The outputs keep their places: mixed images, float32
        targets instead of the labels, and the others unchanged. Further results of :func:`mix` come after the
        last output, or in a dict by name: the partners' labels and lam with ``output="pair"``; ``lam``,
        ``partner`` and ``mask`` with ``return_params=True``.

    Raises
    ------
    TypeError, ValueError
        Another kind of object; or, when the pipeline is made, an output that does not exist or is not a node,
        and the errors of :func:`mix`.

    Notes
    -----
    Without `seed` the draws follow the pipeline's seed. They use none of the seeds that DALI assigns, so the
    pipeline's random operators draw the same as without mixing.

    ``fn.readers.mxnet`` returns float32 labels, as RecordIO stores them. With `num_classes` they count as
    class ids, which must be whole numbers.
    """
    check_method(method)
    several = isinstance(images, tuple | list)
    for name, place in [("images", place) for place in _as_tuple(images)] + [("labels", labels)]:
        wrong = isinstance(place, bool) or not isinstance(place, int | str)
        if wrong and (name, place) != ("labels", None):
            raise ArgumentTypeError(name, "the position or key of an output", place)
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    mixing = _Mixing(_as_tuple(images), several, labels, {"method": method, **arguments})
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

    images: tuple[int | str, ...]
    several: bool
    """Whether :func:`mix` takes, and returns, a list of images."""
    labels: int | str | None
    arguments: Mapping[str, Any]

    def finish(self, made: Any) -> Any:
        """Mix the result of a function: a pipeline, or its outputs."""
        return self.mix_pipeline(made) if isinstance(made, Pipeline) else self.mix_outputs(made)

    def mix_pipeline(self, pipeline: Any) -> Any:
        """Mix outputs of a pipeline that is not built yet."""
        outputs = outputs_of(pipeline)
        with pipeline:
            mixed = self.mix_outputs(outputs)
        if isinstance(self.labels, int):
            declared, made = declared_dtype(pipeline, self.labels), static_dtype(mixed[self.labels])
            if declared is not None and made is not None and declared != made:
                expected = f"{made.name} or None for the labels, which become targets"
                raise ArgumentValueError("output_dtype", expected, declared.name)
        pipeline.set_outputs(*mixed)
        return pipeline

    def mix_outputs(self, outputs: Any) -> Any:
        """Mix two of the outputs, in the current pipeline."""
        if not isinstance(outputs, tuple | list | dict):
            outputs = (outputs,)
        images = [_find(outputs, "images", place) for place in self.images]
        labels = [] if self.labels is None else [_find(outputs, "labels", self.labels)]
        if len({*images, *labels}) < len(images) + len(labels):
            places = ", ".join(map(repr, images + labels))
            raise ValueError(f"images and labels must be different outputs; got {places}")
        mixed, more = self._mix([outputs[place] for place in images], *(outputs[place] for place in labels))
        found = dict(zip(images + labels, mixed, strict=True))
        if isinstance(outputs, dict):
            if taken := more.keys() & outputs.keys():
                raise ValueError(
                    f"outputs must have other keys than what comes with them; got {min(taken)!r}"
                )
            return {**outputs, **found, **more}
        results = [found.get(place, output) for place, output in enumerate(outputs)] + list(more.values())
        if isinstance(outputs, list):
            return results
        return outputs._make(results) if hasattr(outputs, "_make") and not more else tuple(results)

    def _mix(self, images: list[Any], labels: Any = None) -> tuple[list[Any], dict[str, Any]]:
        """Mixed images and targets, and by name all further results."""
        arguments = {name: self._value(name, argument) for name, argument in self.arguments.items()}
        if arguments.get("seed") is None:
            arguments |= _derived_seed()
        if labels is not None and "num_classes" in arguments:
            labels = class_ids(labels)
        made = mix(images if self.several else images[0], labels, **arguments)
        mixed, *rest = made if isinstance(made, tuple) else (made,)
        results, more = list(mixed) if self.several else [mixed], {}
        if labels is not None:
            targets, *rest = rest
            if isinstance(targets, tuple):
                targets, more["partner_labels"], more["lam"] = targets
            results.append(targets)
        for params in rest:
            more |= params._asdict()
        return results, more

    def _value(self, name: str, argument: Any) -> Any:
        """The argument; for a function, a node with its values."""
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


def _as_tuple(images: Any) -> tuple[Any, ...]:
    return tuple(images) if isinstance(images, tuple | list) else (images,)


def _derived_seed() -> dict[str, int]:
    """A new seed each time a pipeline is mixed; none if the pipeline has no seed.

    DALI assigns its seeds to random operators in order. If the mixing took any, the pipeline's own random
    operators would draw different numbers.
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
    with contextlib.suppress(ValueError):  # of partial, with arguments that pipeline_def takes
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
