"""The loader for PyTorch: lengths, epochs, last batches, layouts, memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from nvidia.dali import Pipeline, fn

from pipelines.loader import DALILoader
from pipelines.records import Shard
from tests.devices import on_each_device, with_device
from tests.image_sets import TRAIN_COUNTS, TRAIN_LABELS, VAL_COUNTS, VAL_LABELS, indices, train, val

TRAIN, VAL = sum(TRAIN_COUNTS), sum(VAL_COUNTS)


def epoch(loader: DALILoader) -> list[list[int]]:
    """The indices of the images of one epoch, batch by batch; checks their targets."""
    batches = []
    for images, targets in loader:
        batches.append(indices(images))
        if targets.dtype == torch.int64:
            assert targets.tolist() == VAL_LABELS[batches[-1]].tolist()
        else:
            assert targets.argmax(1).tolist() == TRAIN_LABELS[batches[-1]].tolist()
    return batches


@with_device(
    ["make", "batch_size", "drop_last"],
    itertools.product([train, val], [1, 4, 5, 12, 17], [False, True]),
    [(train, 5, False), (train, 5, True), (val, 5, False)],
)
def test_epochs(make: Any, batch_size: int, drop_last: bool, device: str, coded: Path) -> None:
    """Full batches and, unless dropped, a last one; no image twice in an epoch."""
    size = TRAIN if make is train else VAL
    full, rest = divmod(size, batch_size)
    sizes = [batch_size] * full + ([rest] if rest and not drop_last else [])
    loader = DALILoader(make(coded, batch_size=batch_size, device=device), drop_last=drop_last)
    assert len(loader) == len(sizes)
    left_out = set()
    for _ in range(4):
        batches = epoch(loader)
        assert list(map(len, batches)) == sizes
        assert len(loader) == len(sizes)
        seen = [index for batch in batches for index in batch]
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(range(size))
        left_out.add(frozenset(range(size)) - frozenset(seen))
    assert {len(missing) for missing in left_out} == {rest if drop_last else 0}
    if make is train and drop_last and rest:
        assert len(left_out) > 1  # each shuffle leaves out different images


@pytest.mark.parametrize("make", [train, val])
def test_batch_larger_than_the_set(make: Any, coded: Path) -> None:
    loader = DALILoader(make(coded, batch_size=30))
    assert len(loader) == 1
    for _ in range(3):
        (batch,) = epoch(loader)
        assert sorted(batch) == list(range(TRAIN if make is train else VAL))


# Both pipelines in 2 and 3 shards. These divide neither 23 nor 17, so shards differ in size. If the smaller
# shards are full batches, the larger ones need one batch more, for a single image.
SHARD_CASES = [
    pytest.param(make, size, shards, batch_size, id=f"{make.__name__}-{shards}-{batch_size}")
    for make, size in ((train, TRAIN), (val, VAL))
    for shards, batch_size in itertools.product([2, 3], [1, 2, 3, 4, 5])
]


@pytest.mark.parametrize(("make", "size", "shards", "batch_size"), SHARD_CASES)
def test_shards_without_last_batches(make: Any, size: int, shards: int, batch_size: int, coded: Path) -> None:
    """All shards make the same number of full batches, of different images."""
    loaders = [
        DALILoader(make(coded, batch_size=batch_size, shard=Shard(index=i, count=shards)), drop_last=True)
        for i in range(shards)
    ]
    full = size // shards // batch_size
    assert [len(loader) for loader in loaders] == [full] * shards
    for _ in range(4):
        batches = [epoch(loader) for loader in loaders]
        assert [list(map(len, part)) for part in batches] == [[batch_size] * full] * shards
        seen = [index for part in batches for batch in part for index in batch]
        assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(("make", "size", "shards", "batch_size"), SHARD_CASES)
def test_shards_with_last_batches(make: Any, size: int, shards: int, batch_size: int, coded: Path) -> None:
    """Together the shards make every sample once; no batch is empty."""
    loaders = [
        DALILoader(make(coded, batch_size=batch_size, shard=Shard(index=i, count=shards)))
        for i in range(shards)
    ]
    for _ in range(4):
        batches = [epoch(loader) for loader in loaders]
        assert sorted(index for part in batches for batch in part for index in batch) == list(range(size))
        assert [len(part) for part in batches] == [len(loader) for loader in loaders]
        assert all(map(len, itertools.chain(*batches)))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5])
def test_rotating_shards(batch_size: int, drop_last: bool, coded: Path) -> None:
    """A reader that moves to the next shard after every epoch, as DALI's do by default."""
    bounds = [0, 5, 11, 17]
    for shard in range(3):
        pipeline = Pipeline(batch_size, 1, None)
        with pipeline:
            encoded, labels = fn.readers.file(
                files=sorted(map(str, (coded / "val").rglob("*.*"))),
                labels=list(range(VAL)),
                shard_id=shard,
                num_shards=3,
                pad_last_batch=True,
            )
            pipeline.set_outputs(fn.resize(fn.decoders.image(encoded), size=[8, 8]), labels)
        loader = DALILoader(pipeline, drop_last=drop_last, layout="HWC")
        for turn in range(shard, shard + 5):
            part = list(range(bounds[turn % 3], bounds[turn % 3 + 1]))
            expected = [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
            if drop_last:
                expected = [batch for batch in expected if len(batch) == batch_size][: 5 // batch_size]
            assert len(loader) == len(expected)
            assert [labels[:, 0].tolist() for _, labels in loader] == expected


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("make", [train, val])
def test_loop_continues_after_an_early_exit(make: Any, drop_last: bool, coded: Path) -> None:
    """Loops of two batches until the end of the epoch (4 to 6 batches); later epochs are complete."""
    whole = DALILoader(make(coded), drop_last=drop_last)
    parts = DALILoader(make(coded), drop_last=drop_last)
    expected = [epoch(whole) for _ in range(3)]
    found: list[list[int]] = []
    while len(found) < len(whole):
        found += [indices(images) for images, _ in itertools.islice(parts, 2)]
    assert found == expected[0]
    assert [epoch(parts), epoch(parts)] == expected[1:]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("shards", "batch_size"), [(1, 4), (2, 3), (3, 7)])
def test_state(shards: int, batch_size: int, drop_last: bool, coded: Path) -> None:
    """A new loader resumes with the same batches from the state after any batch of three epochs."""

    def make(state: dict[str, Any] | None = None) -> DALILoader:
        pipeline = train(
            coded,
            mix="hmix",
            batch_size=batch_size,
            shard=Shard(index=shards - 1, count=shards),
            enable_checkpointing=True,
            checkpoint=None if state is None else state["pipeline"],
        )
        return DALILoader(pipeline, drop_last=drop_last, state=state)

    loader = make()
    states, batches = [loader.state()], []
    for _ in range(3):
        for images, targets in loader:
            batches.append((images.clone(), targets.clone()))
            states.append(loader.state())
    assert len({str(state) for state in states}) == len(states)
    for at, state in enumerate(states):
        resumed = make(state)
        assert resumed.state() == state
        for images, targets in batches[at : at + 8]:
            found = next(iter(resumed))
            assert torch.equal(found[0], images)
            assert torch.equal(found[1], targets)


def test_state_and_pipeline_belong_together(coded: Path) -> None:
    loader = DALILoader(train(coded, enable_checkpointing=True))
    state = loader.state()
    with pytest.raises(ValueError, match="got a state and a pipeline without a checkpoint"):
        DALILoader(train(coded, enable_checkpointing=True), state=state)
    with pytest.raises(ValueError, match="got no state and a pipeline with a checkpoint"):
        DALILoader(train(coded, checkpoint=state["pipeline"]))
    with pytest.raises(ValueError, match="checkpointing disabled"):
        DALILoader(train(coded)).state()


@on_each_device
def test_channels_last(device: str, coded: Path) -> None:
    """HWC gives the same batches in channels_last format, CHW in contiguous format."""
    first, last = (
        list(DALILoader(train(coded, mix="hmix", image_size=12, layout=layout, device=device), layout=layout))
        for layout in ("CHW", "HWC")
    )
    assert len(first) == len(last) == 6
    for (images, targets), (same_images, same_targets) in zip(first, last, strict=True):
        assert images.shape[1:] == (3, 12, 12)
        # On a GPU each layout has its own kernel, which may round differently.
        torch.testing.assert_close(images, same_images, rtol=0, atol=1e-6 if device == "gpu" else 0)
        assert torch.equal(targets, same_targets)
        assert images.is_contiguous()
        assert not images.is_contiguous(memory_format=torch.channels_last)
        assert same_images.is_contiguous(memory_format=torch.channels_last)
        assert not same_images.is_contiguous()


@on_each_device
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_tensors(layout: str, device: str, coded: Path) -> None:
    loaders = [DALILoader(make(coded, layout=layout, device=device), layout=layout) for make in (train, val)]
    kind_of_device = "cuda" if device == "gpu" else "cpu"
    for loader, kind in zip(loaders, (torch.float32, torch.int64), strict=True):
        for images, targets in loader:
            assert type(images) is type(targets) is torch.Tensor
            assert (images.dtype, targets.dtype) == (torch.float32, kind)
            assert (images.device.type, targets.device.type) == (kind_of_device, kind_of_device)
            assert images.shape == (len(targets), 3, 8, 8)
            assert targets.shape[1:] == ((3,) if loader is loaders[0] else ())


@on_each_device
def test_batches_may_be_kept(device: str, coded: Path) -> None:
    """Later batches do not overwrite one that is still in use."""
    loader = DALILoader(train(coded, mix="hmix", device=device))
    kept: list[torch.Tensor] = []
    copies: list[torch.Tensor] = []
    for _ in range(3):
        for batch in loader:
            kept += batch
            copies += [tensor.clone() for tensor in batch]
    assert all(map(torch.equal, kept, copies))
    assert not torch.equal(kept[0], kept[2])


@on_each_device
def test_batches_may_be_read_late(device: str, coded: Path) -> None:
    """On a GPU: work queued on the caller's stream reads the right batch.

    By then the tensors are deleted, and more batches have been made.
    """

    def read(late: bool) -> torch.Tensor:
        loader = DALILoader(train(coded, mix="hmix", device=device))
        own_stream = late and device == "gpu"
        stream = torch.cuda.Stream() if own_stream else None  # type: ignore[no-untyped-call]
        found = []
        with torch.cuda.stream(stream):  # None: nothing changes
            for _ in range(6):
                for images, targets in loader:
                    if stream is not None:
                        # Cycles, some milliseconds: longer than a batch takes.
                        torch.cuda._sleep(10_000_000)  # type: ignore[no-untyped-call]
                    found.append(torch.cat([images.flatten(), targets.flatten()]))
                    del images, targets
            return torch.cat(found).cpu()

    assert torch.equal(read(late=True), read(late=False))


def test_layout_error(coded: Path) -> None:
    with pytest.raises(ValueError, match="layout must be one of 'CHW', 'HWC'; got 'NCHW'"):
        DALILoader(train(coded), layout="NCHW")


def test_pipeline_needs_one_reader(coded: Path) -> None:
    for readers, found in ((0, "none"), (2, "first, second")):
        pipeline = Pipeline(4, 1, None)
        with pipeline:
            nodes = [fn.random.uniform(shape=[2]), fn.random.uniform(shape=[2])]
            for i, name in enumerate(("first", "second")[:readers]):
                nodes[i] = fn.readers.file(file_root=str(coded / "train"), name=name)[1]
            pipeline.set_outputs(*nodes)
        with pytest.raises(ValueError, match=f"pipeline must have exactly one reader; got {found}"):
            DALILoader(pipeline)


def test_drop_last_needs_a_full_batch(coded: Path) -> None:
    assert len(DALILoader(train(coded, batch_size=TRAIN), drop_last=True)) == 1
    expected = "with drop_last, batch_size must be at most 23, the number of samples in a shard; got 24"
    with pytest.raises(ValueError, match=expected):
        DALILoader(train(coded, batch_size=24), drop_last=True)


def test_reader_must_pad(coded: Path) -> None:
    pipeline = Pipeline(4, 1, None)
    with pipeline:
        encoded, labels = fn.readers.file(file_root=str(coded / "train"))
        pipeline.set_outputs(fn.decoders.image(encoded), labels)
    with pytest.raises(ValueError, match="pad_last_batch=True; got False"):
        DALILoader(pipeline)
