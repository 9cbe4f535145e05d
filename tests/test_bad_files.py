"""Files that cannot be decoded: found, logged, skipped; every other sample comes once."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import records
from pipelines.examine import describe_error
from pipelines.folders import list_images
from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.loader import DALILoader
from pipelines.records import Output
from pipelines.sources import Order, Source
from tests.damage import Kind, kinds
from tests.devices import trainer_options, with_device
from tests.image_sets import TRAIN_LABELS, indices
from tests.trainer_process import Trainer
from training.bad_files import BadFileError, GuardedLoader, Quarantine

BATCH = 4
SETTINGS = ["--arch", "resnet18", "--image-size", "8", "--batch-size", "8", "--epochs", "2", "--mix", "none"]
SETTINGS += ["--amp", "none", "--device", "cpu", "--workers", "1", "--log-every", "1", "--lr", "0.01"]
RAISING = [kind for kind in kinds() if kind.outcome == "raises"]


@pytest.fixture
def data(coded: Path, tmp_path: Path) -> Path:
    """A copy of 23 training and 17 validation images, to damage."""
    shutil.copytree(coded, tmp_path / "data")
    return tmp_path / "data"


def damage(root: Path, index: int, content: bytes | None = b"") -> Path:
    """Overwrite the image at an index; None removes it."""
    (path,) = root.glob(f"*/{index:03d}.*")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    return path


class Shard:
    """The guarded loader of one process, and what it logged."""

    def __init__(self, images: Source, folder: Path, shard: int = 0, shards: int = 1, **options: Any) -> None:
        common: dict[str, Any] = {"shard": records.Shard(index=shard, count=shards)}
        order = Order(size=len(images), batch_size=BATCH, shuffle=True, seed=5, **common)

        def make(images: Source, state: dict[str, Any] | None) -> DALILoader:
            pipeline = train_pipeline(
                images,
                num_classes=3,
                output=Output(image_size=8),
                batch_size=BATCH,
                num_threads=1,
                seed=5,
                mix=options.get("mix", "none"),
                enable_checkpointing=True,
                checkpoint=None if state is None else state["pipeline"],
                report_stand_ins=True,
                device=options.get("device", "cpu"),
                **common,
            )
            return DALILoader(pipeline, order=order, drop_last=options.get("drop_last", False), state=state)

        self.lines = folder / "quarantine.jsonl"
        self.loader = GuardedLoader(
            images,
            make,
            order,
            Quarantine(self.lines, skip=options.get("skip", True)),
            lambda: {"rank": shard},
        )

    def quarantined(self) -> list[str]:
        return [json.loads(line)["path"] for line in self.lines.read_text().splitlines()]


def epoch(shard: Shard) -> list[int]:
    """The indices of one epoch, after checking that the targets are the images' classes."""
    seen = []
    for images, targets in shard.loader:
        found = indices(images)
        np.testing.assert_array_equal(targets, np.eye(3, dtype=np.float32)[TRAIN_LABELS[found]])
        seen += found
    return seen


def may_decode(kind: Kind) -> bool:
    """Whether a crop from the top of a file of this kind may decode, because only its end is missing."""
    return "cut" in kind.name or "end" in kind.name or "from the middle" in kind.name


@with_device(
    "kind",
    RAISING,
    [kind for kind in RAISING if kind.name in ("empty.JPEG", "cut at half.JPEG", "html.JPEG")],
)
def test_every_kind_of_damage_raises(kind: Kind, device: str, tmp_path: Path) -> None:
    """By itself, in the training pipeline: an error, which the guarded loader can explain, and no crash."""
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / kind.name).write_bytes(kind.data)
    output = Output(image_size=8)
    pipeline = train_pipeline(
        tmp_path, num_classes=1, batch_size=1, num_threads=1, mix="none", output=output, device=device
    )
    reason = ""
    try:
        pipeline.run()
    except RuntimeError as error:
        reason = describe_error(error)
    assert reason or may_decode(kind)


@with_device("first", range(0, len(RAISING), 11), [0])
def test_every_kind_of_damage_is_found(first: int, device: str, data: Path, tmp_path: Path) -> None:
    """Each file is named with a reason, and all others come once. Eleven kinds in a set save processes."""
    kinds_of = {1 + 2 * place: kind for place, kind in enumerate(RAISING[first : first + 11])}
    paths = {str(damage(data / "train", index, kind.data)): kind for index, kind in kinds_of.items()}
    shard = Shard(list_images(data / "train"), tmp_path, device=device)
    came: list[int] = []
    for images, _ in shard.loader:
        plain = [image for image in images if float(image.std((1, 2)).max()) < 0.05]
        came += indices(torch.stack(plain)) if plain else []
    assert [i for i in sorted(came) if i not in kinds_of] == [i for i in range(23) if i not in kinds_of]
    lines = [json.loads(line) for line in shard.lines.read_text().splitlines()]
    assert all(line["reason"] and line["rank"] == 0 for line in lines)
    found = [line["path"] for line in lines]
    assert len(found) == len(set(found))
    assert set(found) <= set(paths)
    assert all(may_decode(kind) for path, kind in paths.items() if path not in found)


# Positions in an epoch of 23 samples in batches of four.
PLACES = {
    "first": [0],
    "last": [22],
    "three of a batch": [4, 5, 7],
    "a whole batch": [8, 9, 10, 11],
    "one of each batch": [0, 5, 10, 15, 16, 20],
    "nearly all": list(range(21)),
}


@pytest.fixture(scope="module")
def order(coded: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """The first epoch without damage."""
    return epoch(Shard(list_images(coded / "train"), tmp_path_factory.mktemp("order")))


@pytest.mark.parametrize(
    ("where", "drop_last"),
    [
        *((where, False) for where in PLACES),
        # Of those with only full batches: one beyond them, and batches that would become empty.
        *((where, True) for where in ("last", "a whole batch", "nearly all")),
    ],
)
def test_several(where: str, drop_last: bool, order: list[int], data: Path, tmp_path: Path) -> None:
    images = list_images(data / "train")
    places = PLACES[where]
    bad = {order[place] for place in places}
    for index in bad:
        damage(data / "train", index, b"no image")
    shard = Shard(images, tmp_path, drop_last=drop_last)
    batches = [indices(images) for images, _ in shard.loader]
    parts = [order[start : start + BATCH] for start in range(0, 20 if drop_last else 23, BATCH)]
    expected = [[i for i in part if i not in bad] for part in parts]  # all others keep their order
    if drop_last:
        for batch, good in zip(batches, expected, strict=True):
            assert batch == good if good else not bad.intersection(batch)
    else:
        assert batches == [good for good in expected if good]
    assert len(shard.quarantined()) == len(bad)


def test_damage_in_the_middle_of_training(data: Path, tmp_path: Path) -> None:
    """During an epoch, one file is emptied and another deleted."""
    shard = Shard(list_images(data / "train"), tmp_path)
    first = iter(shard.loader)
    seen = [i for images, _ in itertools.islice(first, 1) for i in indices(images)]
    rest = [i for i in range(23) if i not in seen]
    damage(data / "train", rest[-1])
    damage(data / "train", rest[-2], None)
    seen += [i for images, _ in first for i in indices(images)]
    # Samples that DALI had read before may still come once.
    assert set(range(23)) - set(seen) <= set(rest[-2:])
    assert len(seen) == len(set(seen))
    assert sorted(epoch(shard)) == [i for i in range(23) if i not in rest[-2:]]
    assert len(shard.quarantined()) == 2


@pytest.mark.parametrize("mix", ["hmix", "gmix"])
def test_state_goes_on_with_the_stand_ins(mix: str, data: Path, tmp_path: Path) -> None:
    """A loader restored from another's state makes the same batches, bit for bit."""
    for index in (3, 12):
        damage(data / "train", index, b"no image")
    images = list_images(data / "train")

    def batches(shard: Shard, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        found: list[tuple[np.ndarray, np.ndarray]] = []
        while len(found) < count:
            for pixels, targets in shard.loader:
                found.append((pixels.numpy().copy(), targets.numpy().copy()))
                if len(found) == count:
                    break
        return found

    def assert_same(found: Any, wanted: Any) -> None:
        for got, want in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(got[0], want[0])
            np.testing.assert_array_equal(got[1], want[1])

    expected = batches(Shard(images, tmp_path, mix=mix, drop_last=True), 13)
    shard, taken = Shard(images, tmp_path, mix=mix, drop_last=True), 0
    for stop in (1, 3, 5, 6):
        assert_same(batches(shard, stop - taken), expected[taken:stop])
        taken = stop
        later = Shard(images, tmp_path, mix=mix, drop_last=True)
        later.loader.load_state_dict(shard.loader.state_dict())
        assert_same(batches(later, 7), expected[stop : stop + 7])


def test_two_shards(data: Path, tmp_path: Path) -> None:
    """Each finds its own; together they have every other sample once, over epochs in which shards rotate."""
    for index in (0, 5, 6, 22):
        damage(data / "train", index, b"no image")
    images = list_images(data / "train")
    shards = [Shard(images, tmp_path, shard, 2) for shard in range(2)]
    for _ in range(3):
        assert sorted(i for shard in shards for i in epoch(shard)) == [
            i for i in range(23) if i not in (0, 5, 6, 22)
        ]


def test_error_names_the_file(data: Path, tmp_path: Path) -> None:
    path = damage(data / "train", 9, b"no image")
    with pytest.raises(BadFileError, match=rf"{path.name} cannot be decoded .*--bad-files skip"):
        epoch(Shard(list_images(data / "train"), tmp_path, skip=False))


def test_an_error_that_is_no_file_s_is_raised(data: Path, tmp_path: Path) -> None:
    shard = Shard(list_images(data / "train"), tmp_path)

    def broken() -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        shard.loader._guarded(broken)


def test_nothing_is_left(data: Path, tmp_path: Path) -> None:
    for index in range(23):
        damage(data / "train", index, b"no image")
    with pytest.raises(ValueError, match="none of the 23 images"):
        len(Shard(list_images(data / "train"), tmp_path).loader)


@pytest.mark.parametrize("shards", [1, 2])
def test_validation(shards: int, data: Path, tmp_path: Path) -> None:
    for index in (0, 7, 16):
        damage(data / "val", index, b"no image")
    images = list_images(data / "val")
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", skip=True)

    def loader(shard: int) -> GuardedLoader:
        part = records.Shard(index=shard, count=shards)
        order = Order(size=17, batch_size=BATCH, shuffle=False, shard=part)

        def make(images: Source, _: Any) -> DALILoader:
            return DALILoader(
                val_pipeline(
                    images,
                    output=Output(image_size=8),
                    batch_size=BATCH,
                    num_threads=1,
                    shard=part,
                    report_stand_ins=True,
                )
            )

        return GuardedLoader(images, make, order, quarantine, dict, resumable=False)

    loaders = [loader(shard) for shard in range(shards)]
    for _ in range(2):
        seen = [i for each in loaders for batch, _ in each for i in indices(batch)]
        assert sorted(seen) == [i for i in range(17) if i not in (0, 7, 16)]


@with_device("processes", [1, 2], [1])
def test_trainer(processes: int, device: str, trainer: Trainer, data: Path, tmp_path: Path) -> None:
    """Bad files in both sets, in the shards of both processes: the run finishes, nothing hangs."""
    train_bad, val_bad = (0, 3, 12, 22), (1, 16)
    paths = [damage(data / "train", index, b"no image") for index in train_bad]
    paths += [damage(data / "val", index) for index in val_bad]
    output = tmp_path / "run"
    command = ["--data", data, "--output", output, *SETTINGS, *trainer_options(device)]
    outcome = trainer.run(*command, processes=processes, record=tmp_path, model="plain")
    assert outcome.statuses == [0] * processes, outcome.said
    stopped = trainer.run(
        "--data", data, "--output", tmp_path / "error", "--bad-files", "error", *SETTINGS, timeout=60
    )
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    for epoch_number in range(2):
        train = [i for each in seen for i in each["train"][epoch_number]]
        assert len(train) == len(set(train))
        assert not set(train) & set(train_bad)
        assert len(train) >= 16 - len(train_bad)  # two batches of eight, less the bad files in them
        assert sorted(i for each in seen for i in each["val"][epoch_number]) == [
            i for i in range(17) if i not in val_bad
        ]
    lines = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    assert {line["path"] for line in lines} <= set(map(str, paths))
    assert {line["path"] for line in lines} >= set(map(str, paths[-2:]))
    assert all(line["reason"] and line["epoch"] in (0, 1) for line in lines)
    assert stopped.statuses != [0]
    assert "cannot be decoded" in stopped.said
    assert not (tmp_path / "error" / "quarantine.jsonl").exists()
