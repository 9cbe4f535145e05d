"""The picture of the first batch and the table at the end."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from pipelines.constants import MEAN, STD
from tests.training_runs import train
from training.learner import Learner
from training.report import batch_picture


def test_picture(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows the first training batch with its masks, in the folder and in TensorBoard."""
    first: list[tuple[Tensor, Tensor]] = []
    step = Learner.train_step

    def noting(self: Learner, batches: Any) -> Tensor:
        images, targets = next(batches)
        first.append((images.clone(), targets.clone()))
        return step(self, itertools.chain([(images, targets)], batches))

    monkeypatch.setattr(Learner, "train_step", noting)
    shown: list[np.ndarray] = []
    draw = batch_picture

    def drawing(images: np.ndarray, targets: np.ndarray, masks: np.ndarray, *rest: Any) -> bytes:
        shown.extend((images, targets, masks))
        return draw(images, targets, masks, *rest)

    monkeypatch.setattr("training.run.batch_picture", drawing)
    train(photos, tmp_path / "run", "--max-steps", 1, "--mix", "gmix", "--auto-augment", "rand")
    np.testing.assert_array_equal(shown[0].transpose(0, 3, 1, 2), first[0][0])
    np.testing.assert_array_equal(shown[1], first[0][1])
    picture = np.asarray(Image.open(tmp_path / "run" / "first_batch.png"))
    # Upper left: the first image and its mask, enlarged from 32 pixels by a whole number.
    image = np.clip(shown[0][0] * np.array(STD) + np.array(MEAN) + 0.5, 0, 255).astype(np.uint8)
    mask = np.clip(shown[2][0] * 255 + 0.5, 0, 255).astype(np.uint8).repeat(3, 2)
    side = 128
    np.testing.assert_array_equal(picture[19 : 19 + side, 6 : 6 + side][::4, ::4], image)
    below = 19 + side + 6
    np.testing.assert_array_equal(picture[below : below + side, 6 : 6 + side][::4, ::4], mask)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    (event,) = events.Images("first_batch")
    assert (event.height, event.width) == picture.shape[:2]


def test_summary(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(photos, tmp_path / "data")
    bad = sorted((tmp_path / "data" / "train").rglob("*.JPEG"))[0]
    bad.write_bytes(b"")
    found = train(tmp_path / "data", tmp_path / "run", "--epochs", 3)
    said = capsys.readouterr().out
    table = dict(re.findall(r"^  (\S+(?: \S+)*?) {2,}(.+)$", said, re.MULTILINE))
    evaluations = [line for line in found if line["event"] == "eval"]
    best = max(range(3), key=lambda epoch: evaluations[epoch]["top1"])
    assert table["best top-1"] == f"{evaluations[best]['top1']:.1f} %, epoch {best + 1} of 3"
    assert table["last epoch"].startswith(f"top-1 {evaluations[-1]['top1']:.1f} %, top-5")
    assert "minutes for 9 steps" in table["time"]
    assert re.fullmatch(r"\d+ images/s, \d+% data wait", table["training"])
    assert "GiB" in table["memory"]
    assert table["bad files"] == f"1 lines in {tmp_path / 'run' / 'quarantine.jsonl'}"
    assert table["results"] == str(tmp_path / "run")
