"""What files of results hold. :func:`.common.save` checks it before it writes, a test checks every file.

Every file has a header (:class:`Header`). Those of ``benchmarks/results`` are :class:`Results`, those of
``docs/measured`` are a :class:`Report` of a GPU or results of an :class:`Experiment`. A figure of several
rounds is a :class:`Spread` wherever it is. Records of the benchmarks in :data:`RECORDS` have exactly these
fields; those of the others have any fields whose names are identifiers.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

SourceSize = Annotated[str, StringConstraints(pattern=r"^(original|[1-9]\d*(x[1-9]\d*)?)$")]


class Form(BaseModel):
    """Has exactly the fields that are declared."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Spread(Form):
    """A figure that was measured several times."""

    median: float
    q1: float
    q3: float
    rounds: PositiveInt

    @model_validator(mode="after")
    def check_order(self) -> Self:
        """The median must be between the quartiles."""
        if not self.q1 <= self.median <= self.q3:
            raise ValueError(f"median must be from q1 to q3; got {self.median}, {self.q1} and {self.q3}")
        return self


def _check_record(value: Any, name: str = "") -> Any:
    """Check names, spreads and that numbers are finite, at all depths."""
    if isinstance(value, Mapping):
        if "median" in value:
            Spread.model_validate(value)
        for key, inner in value.items():
            if not key.isidentifier():
                raise ValueError(f"names must be identifiers; got {key!r}")
            _check_record(inner, key)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_record(inner, name)
    elif isinstance(value, float) and value - value != 0:
        raise ValueError(f"{name} must be finite; got {value}")
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"{name} must be a number, a string, a list or a record; got {type(value).__name__}")
    return value


AnyRecord = Annotated[dict[str, Any], AfterValidator(_check_record)]


class LoaderRecord(Form):
    """A loader with one size of the images, of bench_loader."""

    loader: str
    mix: str
    device: Literal["cpu", "gpu"]
    batch_size: PositiveInt
    image_size: PositiveInt
    workers: PositiveInt
    cores: PositiveInt
    first_batch_s: PositiveFloat
    rates: list[PositiveFloat]
    images_per_s: Spread
    peak_MiB: PositiveFloat
    kB_per_file: PositiveFloat
    source_size: SourceSize | None = None
    """None in files from before there was a choice."""

    @model_validator(mode="after")
    def check_median(self) -> Self:
        """The spread must be that of the rates."""
        found = self.images_per_s
        if found.rounds != len(self.rates) or found.median != statistics.median(self.rates):
            raise ValueError(f"images_per_s must be the spread of rates; got {found} for {self.rates}")
        return self


class MemoryRecord(Form):
    """A training pipeline in a process of its own, of bench_memory."""

    measure: Literal["peak", "growth"]
    mix: str
    source_size: SourceSize
    kB_per_file: PositiveFloat
    image_size: PositiveInt
    batch_size: PositiveInt
    workers: PositiveInt
    scaled_decoding: Literal["auto", "on", "off"]
    peak_MiB: PositiveFloat
    before_MiB: PositiveFloat
    """After importing everything, before the pipeline is built."""
    epochs_MiB: list[PositiveFloat]
    """Resident at the end of each epoch, without the first for warm-up."""
    growth_MiB_per_epoch: float | None
    """Slope of these."""


RECORDS: dict[str, type[Form]] = {"bench_loader": LoaderRecord, "bench_memory": MemoryRecord}


class Machine(Form):
    """What a benchmark ran on."""

    processor: str
    cores: PositiveInt
    memory_GiB: PositiveFloat
    gpu: str
    versions: dict[str, str]


class Header(Form):
    """What every file begins with."""

    benchmark: str
    date: Annotated[AwareDatetime, Field(strict=False)]
    command: Annotated[str, StringConstraints(pattern=r"^python -m [\w.]+( |$)")]
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None
    """None if it was not recorded."""
    dirty: bool | None
    calculated: bool
    machine: Machine


class Results(Header):
    """Of a benchmark."""

    settings: dict[str, Any]
    results: Annotated[list[AnyRecord], Field(min_length=1)]

    @model_validator(mode="after")
    def check_records(self) -> Self:
        """Records of some benchmarks must have the fields of :data:`RECORDS`."""
        if form := RECORDS.get(self.benchmark):
            for record in self.results:
                form.model_validate(record)
        return self


class Stage(Form):
    """Of a GPU's report."""

    name: str
    title: str
    status: str
    box_s: PositiveFloat
    seconds: float
    error: str | None
    records: list[dict[str, Any]]


class Report(Header):
    """Of a GPU, by benchmarks.gpu_day."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    device: dict[str, Any]
    settings: dict[str, Any]
    stages: list[Stage]


class Experiment(Header):
    """Of the study or of the robustness of networks; :mod:`experiments` describes further fields."""

    model_config = ConfigDict(extra="allow")

    results: Annotated[list[AnyRecord], Field(min_length=1)]


FORMS: dict[str, type[Header]] = {"gpu_day": Report, "study": Experiment, "robustness": Experiment}
"""The form of a file by its benchmark; all others are Results."""


def check_content(content: Mapping[str, Any]) -> None:
    """Check the content of a results file.

    Raises
    ------
    ValueError
        It does not have its form.
    """
    name = content.get("benchmark")
    try:
        FORMS.get(str(name), Results).model_validate(content)
    except ValidationError as error:
        raise ValueError(
            f"results of {name} must have the form of benchmarks/schema.py; got {error}"
        ) from None
