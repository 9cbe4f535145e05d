"""The rules of a source, for class folders, CIFAR's files and the in-memory example, up to the trainer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nvidia.dali.pipeline import Pipeline

from pipelines.cifar import CifarRecords
from pipelines.datasets import list_source
from pipelines.folders import ImageFolder, check_dataset, list_images
from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.loader import DALILoader
from pipelines.records import Augmentation, Output, Shard
from pipelines.sources import Order, Source, find_substitutes
from tests.image_sets import CLASSES, TRAIN_LABELS, indices
from tests.sources import memory_class
from tests.training_runs import losses, status, train, without_clock
from training.bad_files import GuardedLoader, Quarantine

BATCH, COUNT = 4, 23
SHARDS = [(0, 1), (0, 3), (2, 3)]


@pytest.fixture(scope="module")
def memory() -> Any:
    """The class of the example in the protocol's docstring."""
    return memory_class()


def load(memory: Any, folder: ImageFolder) -> Source:
    """Load the images of a folder into memory."""
    contents = [folder.encoded(position) for position in range(len(folder))]
    source: Source = memory(folder.classes, list(zip(contents, folder.labels, strict=True)))
    return source


@pytest.fixture(params=["folder", "memory", "cifar"])
def source(request: pytest.FixtureRequest, coded: Path, coded_cifar: Path, memory: Any) -> Source:
    """23 images of three classes; each shows its position."""
    if request.param == "cifar":
        return list_source(coded_cifar, "train")
    folder = list_images(coded / "train")
    return folder if request.param == "folder" else load(memory, folder)


def make_order(source: Source, shuffle: bool, shard: int = 0, shards: int = 1) -> Order:
    return Order(
        size=len(source),
        batch_size=BATCH,
        shuffle=shuffle,
        seed=5,
        shard=Shard(index=shard, count=shards),
    )


def loader(source: Source, order: Order, state: dict[str, Any] | None = None, **options: Any) -> DALILoader:
    """A loader of small training images, or of validation images if `order` does not shuffle."""
    common: dict[str, Any] = {
        "batch_size": BATCH,
        "output": Output(image_size=8),
        "num_threads": 1,
        "shard": order.shard,
        "report_stand_ins": True,
    }
    if not order.shuffle:
        return DALILoader(val_pipeline(source, **common), order=order)
    pipeline = train_pipeline(
        source,
        num_classes=3,
        seed=order.seed,
        enable_checkpointing=True,
        checkpoint=None if state is None else state["pipeline"],
        **{"mix": "none", **options},
        **common,
    )
    return DALILoader(pipeline, order=order, state=state)


def epoch(batches: Any) -> list[int]:
    """The positions of the images of an epoch."""
    return [i for images, _ in batches for i in indices(images)]


def test_both_follow_the_protocol(source: Source) -> None:
    assert isinstance(source, Source)
    assert not isinstance(str(source), Source)
    assert len(source) == COUNT
    assert source.classes == CLASSES
    assert source.labels_present == {0, 1, 2}
    assert len({source.name(position) for position in range(COUNT)}) == COUNT
    assert source.stand_ins == frozenset()


def test_nodes_and_encoded_give_the_same_bytes(source: Source) -> None:
    order = make_order(source, shuffle=False)
    pipeline = Pipeline(BATCH, 1, None)
    with pipeline:
        pipeline.set_outputs(*source.without([2]).read(order, report_stand_ins=True))
    pipeline.build()
    for start in range(0, 16, BATCH):
        encoded, labels, kept = pipeline.run()
        positions = range(start, start + BATCH)
        read = [3 if position == 2 else position for position in positions]
        assert [encoded.at(i).tobytes() for i in range(BATCH)] == [source.encoded(i) for i in read]
        assert labels.as_array().tolist() == [[TRAIN_LABELS[i]] for i in read]
        assert kept.as_array().tolist() == [[int(position != 2)] for position in positions]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_every_sample_comes_once_per_epoch(shards: int, shuffle: bool, source: Source) -> None:
    parts = [loader(source, make_order(source, shuffle, shard, shards)) for shard in range(shards)]
    epochs = [[epoch(part) for part in parts] for _ in range(3)]
    for found in epochs:
        assert sorted(itertools.chain(*found)) == list(range(COUNT))
    if shuffle:
        assert epochs[0] != epochs[1]
    else:
        assert list(itertools.chain(*epochs[0])) == list(range(COUNT))
        assert epochs[0] == epochs[1] == epochs[2]


@pytest.mark.parametrize(("shard", "shards"), SHARDS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_upcoming_has_the_next_samples(shuffle: bool, shard: int, shards: int, source: Source) -> None:
    order = make_order(source, shuffle, shard, shards)
    batches = loader(source, order)
    endless = (batch for _ in itertools.count() for batch in batches)
    for taken in range(0, 21, 2):
        state: dict[str, Any] = {"epoch": 0, "position": batches.position, "pipeline": None}
        if shuffle:
            state = batches.state()
        found = source.upcoming(
            order,
            batches=3,
            epoch=state["epoch"],
            taken=state["position"],
            checkpoint=state["pipeline"] if taken else None,
        )
        sees_enough = shuffle or batches.position + 2 <= order.batches  # not the next epoch, unshuffled
        read = set(epoch(itertools.islice(endless, 2)))
        assert read <= set(found) or not sees_enough, taken
        assert len(found) <= 3 * BATCH, taken


@pytest.mark.parametrize(
    "options", [{"mix": "hmix"}, {"mix": "gmix", "augmentation": Augmentation(auto_augment="rand")}]
)
def test_a_state_resumes_bit_for_bit(options: dict[str, Any], source: Source) -> None:
    order = make_order(source, True, 1, 2)

    def batches(loader: DALILoader) -> Iterator[tuple[bytes, bytes]]:
        while True:
            for images, targets in loader:
                yield images.numpy().tobytes(), targets.numpy().tobytes()

    expected = list(itertools.islice(batches(loader(source, order, **options)), 16))
    observed = loader(source, order, **options)
    for number, batch in enumerate(itertools.islice(batches(observed), 9), 1):
        assert batch == expected[number - 1], number
        if number in (1, 5, 6, 9):
            resumed = loader(source, order, observed.state(), **options)
            assert list(itertools.islice(batches(resumed), 7)) == expected[number : number + 7], number


def test_digest_differs_between_listings(source: Source, coded: Path, coded_cifar: Path, memory: Any) -> None:
    assert len(source.digest()) == 64
    other: Source = list_source(coded_cifar if isinstance(source, CifarRecords) else coded, "val")
    if not isinstance(source, ImageFolder | CifarRecords):
        assert isinstance(other, ImageFolder)
        other = load(memory, other)
    assert source.digest() != other.digest()


def test_stand_ins_must_be_reported(source: Source) -> None:
    with pytest.raises(ValueError, match="report_stand_ins must be True for images with"):
        val_pipeline(source.without([0]), batch_size=BATCH, num_threads=1)


def test_substitutes() -> None:
    assert find_substitutes("abcde", frozenset([1, 2, 4])) == {1: 3, 2: 3, 4: 0}
    with pytest.raises(ValueError, match="none of the 2 images in ab can be decoded"):
        find_substitutes("ab", frozenset([0, 1]))


def test_neither_path_nor_source() -> None:
    with pytest.raises(TypeError, match=r"data_dir must be a path or a Source; got \[1, 2\]"):
        train_pipeline([1, 2], num_classes=3, batch_size=BATCH, num_threads=1)  # type: ignore[arg-type]


def test_order_of_another_batch_size(memory: Any, coded: Path) -> None:
    source = load(memory, list_images(coded / "train"))
    order = make_order(source, shuffle=False)
    pipeline = val_pipeline(source, batch_size=BATCH + 1, num_threads=1)
    with pytest.raises(ValueError, match="order must have the batch size of the pipeline, 5; got 4"):
        DALILoader(pipeline, order=order)


# Bad samples, in memory: finding and skipping them does not depend on files


@pytest.fixture
def damaged(memory: Any, coded: Path) -> Callable[[str, set[int]], Source]:
    """A split in memory, with some samples that are not images."""

    def make(split: str, bad: set[int]) -> Source:
        folder = list_images(coded / split)
        contents = [folder.encoded(position) for position in range(len(folder))]
        for position in bad:
            contents[position] = b"" if position % 2 else b"no image"
        source: Source = memory(folder.classes, list(zip(contents, folder.labels, strict=True)))
        return source

    return make


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("bad", [{0, 7, 8, 15}, {1}, {15}, {8}])
def test_bad_samples_are_skipped(bad: set[int], shuffle: bool, damaged: Any, tmp_path: Path) -> None:
    source = damaged("train", bad)
    order = make_order(source, shuffle)
    guarded = GuardedLoader(
        source,
        lambda source, state: loader(source, order, state),
        order,
        Quarantine(tmp_path / "quarantine.jsonl", skip=True),
        lambda: {"epoch": 0},
        resumable=shuffle,
    )
    for _ in range(2):
        assert sorted(epoch(guarded)) == [i for i in range(COUNT) if i not in bad]
    assert guarded.left_out == {f"sample {position}" for position in bad}
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    reasons = {line["path"]: line["reason"] for line in lines}
    assert reasons.keys() == guarded.left_out
    assert len(lines) == len(bad)
    for position in bad:
        expected = "empty file" if position % 2 else "unknown content, b'no image': "
        assert reasons[f"sample {position}"].startswith(expected)


@pytest.mark.usefixtures("plain_model")
def test_trainer(damaged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains, evaluates, skips bad samples and resumes bit for bit, but not with another listing."""
    train_set, val_set = damaged("train", {3, 8}), damaged("val", {1})
    monkeypatch.setattr("training.inputs.check_dataset", lambda *_, **__: (train_set, val_set))
    extra = ["--image-size", 8, "--mix", "hmix", "--checkpoint-every", 1, "--keep", 9]
    whole = train(tmp_path, tmp_path / "whole", *extra)
    assert len(losses(whole)) == 4
    lines = (tmp_path / "whole" / "quarantine.jsonl").read_text().splitlines()
    quarantined = {json.loads(line)["path"] for line in lines}
    assert {"sample 1"} <= quarantined <= {f"sample {position}" for position in (1, 3, 8)}
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-00000001.pt"
    assert status(tmp_path, tmp_path / "resumed", *extra, "--resume", checkpoint) == 0
    assert without_clock(tmp_path / "resumed") == without_clock(tmp_path / "whole")
    assert (tmp_path / "whole" / "first_batch.png").exists()
    val_set = damaged("val", set())
    assert status(tmp_path, tmp_path / "other", *extra, "--resume", checkpoint) == 2


def test_evaluation(
    coded: Path,
    memory: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same images in two forms give the same result."""
    train(coded, tmp_path / "run", "--max-steps", 1, "--image-size", 8)
    weights = tmp_path / "run" / "best.pt"
    in_memory = load(memory, check_dataset(coded)[1])

    def evaluate() -> str:
        capsys.readouterr()
        assert status(coded, tmp_path / "out", "--eval-only", "--init-weights", weights) == 0
        return capsys.readouterr().out

    expected = evaluate()
    assert "17 images of 32 pixels" in expected
    monkeypatch.setattr("training.inputs.list_split", lambda *_, **__: in_memory)
    assert evaluate() == expected
