"""PuzzleMix: saliency, costs, draws and mixed batches; a run with it resumes exactly."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional

import dali_msda as msda
from dali_msda import Mixing
from pipelines.constants import STD
from tests.trainer_process import Trainer, restless_classifier
from tests.training_runs import SMALL, assert_same_run, status
from training.config import Config, resolve
from training.learner import LOSSES
from training.methods import mixing_of, mixing_of_pipeline
from training.mix_schedule import MixSchedule
from training.mixers import MIXERS, create_mixer
from training.model import checkpoint_activations
from training.options import parse, saved_settings, settings
from training.puzzle_costs import costs_of, move_patches, pool_saliency
from training.puzzlemix import PuzzleMixer
from training.ranks import Ranks

N, SIZE, CLASSES = 6, 16, 3


def config_with(fields: dict[str, Any] | None = None, **more: Any) -> Config:
    """Settings of a small run; `fields` are those of the mixing."""
    base: dict[str, Any] = {"image_size": SIZE, "batch_size": N, "device": "cpu", "amp": "none", "workers": 1}
    return resolve(Config(mixing=mixing_of("puzzlemix", **(fields or {})), **base | more))


def mixer_with(
    model: nn.Module | None = None, fields: dict[str, Any] | None = None, rank: int = 0, **more: Any
) -> PuzzleMixer:
    model = model or restless_classifier("", CLASSES)
    return PuzzleMixer(
        config_with(fields, **more), Ranks(rank, rank + 1), model, GradScaler("cpu", enabled=False), 10
    )


def batch(smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    images = torch.randn(N, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    labels = functional.one_hot(torch.arange(N) % CLASSES, CLASSES).float()
    targets = (1 - smoothing) * labels + smoothing / CLASSES
    return images.to(memory_format=torch.channels_last), targets


class Spot(nn.Module):
    """A model that sees one pixel for each class."""

    def __init__(self, *pixels: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.pixels = pixels

    def forward(self, images: Tensor) -> Tensor:
        return self.weight * torch.stack([images[:, :, y, x].sum(1) for y, x in self.pixels], 1)


def test_saliency_is_the_norm_of_the_gradient() -> None:
    """By finite differences: what a change of each channel of a pixel does to the loss."""
    model, (images, targets) = restless_classifier("", CLASSES).double(), batch()
    images, targets = images.double(), targets.double()
    found = mixer_with(model)._saliency(images, targets)
    model.eval()
    for place in ((2, 3, 4), (0, 0, 0), (5, 9, 7)):
        slopes = []
        for channel in range(3):
            losses = []
            for step in (1e-5, -1e-5):
                moved = images.clone()
                moved[place[0], channel, place[1], place[2]] += step
                with torch.no_grad():
                    losses.append(functional.cross_entropy(model(moved), targets).item())
            slopes.append((losses[0] - losses[1]) / 2e-5)
        expected = float(np.linalg.norm(slopes)) / 3**0.5
        assert found[place].item() == pytest.approx(expected, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_saliency_pass_leaves_no_trace(loss: str) -> None:
    """No gradient of a parameter, no new statistics, no draw for dropout; what was not trained stays so."""
    model = restless_classifier("", CLASSES)
    model[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    images, targets = batch()
    mixed, _ = mixer_with(model, loss=loss)(images, targets)
    assert not torch.equal(mixed, images)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, it in model.named_parameters() if not it.requires_grad] == ["0.bias"]
    assert all(module.training for module in model.modules())
    assert not images.requires_grad


def test_grad_checkpointing_gives_the_same_saliency() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(restless_classifier("", 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    model = nn.Sequential(body, nn.Linear(8, CLASSES))
    expected = mixer_with(model)._saliency(*batch())
    checkpoint_activations(model)
    assert torch.equal(mixer_with(model)._saliency(*batch()), expected)


def test_pooled_saliency() -> None:
    saliency = torch.zeros(4, 4, 4)
    saliency[0, 0, 1], saliency[0, 3, 3] = 3.0, 1.0
    saliency[2], saliency[3, 0, 0] = torch.nan, torch.inf
    found = pool_saliency(saliency, 2)
    assert found[0].tolist() == [[0.75, 0.0], [0.0, 0.25]]
    assert found[1:].tolist() == [[[0.25] * 2] * 2] * 3  # no gradient, or one that overflowed


@pytest.mark.parametrize("neighbor_size", [1, 2, 3])
def test_costs_are_those_of_the_paper(neighbor_size: int) -> None:
    """Of all 16 masks of 2 x 2 blocks, but for the same constant: saliency, smoothness, pixels at borders."""
    beta, gamma = 1.5, 0.7
    generator = torch.Generator().manual_seed(3)
    images, saliency = torch.randn(2, 3, 4, 4, generator=generator), torch.rand(2, 4, 4, generator=generator)
    partner = torch.tensor([1, 0])
    costs = costs_of(images, saliency, partner, 2, beta=beta, gamma=gamma, neighbor_size=neighbor_size)
    pixels = images.numpy() * np.array(STD).reshape(3, 1, 1) / 255
    square = 2 if neighbor_size == 2 else 1
    means = pixels.reshape(2, 3, 4 // square, square, 4 // square, square).mean((3, 5))
    half = 2 // square
    shares = pool_saliency(saliency, 2).numpy()
    weight = beta / 2 / 16
    differences = []
    for mask in itertools.product((0, 1), repeat=4):
        z = np.reshape(mask, (2, 2))
        shown = np.where(z == 1, 0, 1)  # of image 0: itself or its partner
        expected = sum(shares[1 - shown[y, x], y, x] for y, x in np.ndindex(2, 2))
        for i in range(2):
            for first, second, ours in (
                ((0, i), (1, i), (half - 1, half)),
                ((i, 0), (i, 1), (half - 1, half)),
            ):
                along = slice(i * half, (i + 1) * half)
                above = means[shown[first]][:, ours[0], along] if first[1] == second[1] else None
                if above is not None:
                    below = means[shown[second]][:, ours[1], along]
                else:
                    above = means[shown[first]][:, along, ours[0]]
                    below = means[shown[second]][:, along, ours[1]]
                expected += weight * float(z[first] != z[second])
                expected += weight * gamma * np.abs(above - below).mean()
        found = np.where(z == 1, costs.own[0].numpy(), costs.other[0].numpy()).sum()
        found += (costs.down[0].numpy() * (z[0] != z[1])).sum()
        found += (costs.across[0].numpy() * (z[:, 0] != z[:, 1])[:, None]).sum()
        differences.append(found - expected)
    assert differences == pytest.approx([differences[0]] * 16, abs=1e-6)


def test_no_weight_is_negative() -> None:
    """Where the images agree at a border that a change of the mask would hide."""
    images = torch.zeros(2, 3, 2, 2)
    images[0, :, 0], images[1, :, 1] = 1e4, 1e4
    costs = costs_of(
        images, torch.ones(2, 2, 2), torch.tensor([1, 0]), 2, beta=1.0, gamma=1.0, neighbor_size=1
    )
    assert costs.down.min() >= 0
    assert costs.across.min() >= 0


def test_patches_move() -> None:
    images = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    places = torch.tensor([[0, 1, 2, 3], [3, 2, 0, 1]])
    moved = move_patches(images, places, 2)
    assert torch.equal(moved[0], images[0])
    for to, source in enumerate(places[1].tolist()):
        (row, column), (y, x) = divmod(to, 2), divmod(source, 2)
        here = moved[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(here, images[1, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2])


def test_a_salient_pixel_is_kept() -> None:
    """Only three pixels have a gradient: of each, the image that needs it more is shown."""
    model = Spot((2, 3), (13, 12), (0, 15))
    images, _ = batch()
    images, targets = images[:2], torch.eye(CLASSES)[:2]
    mixer = mixer_with(model, {"transport_size": 0, "beta": 0.0, "eta": 0.0, "granularity": "batch"})
    draws = next(it for it in map(mixer._draw, range(99), [2] * 99) if it.partner.tolist() == [1, 0])
    mixed, mixed_targets, masks = mixer._mix(images, targets, draws)
    shares = pool_saliency(mixer._saliency(images, targets), draws.grid)
    block = SIZE // draws.grid
    for number in range(2):
        for y, x in model.pixels:
            place = y // block, x // block
            own, other = shares[number][place], shares[1 - number][place]
            weight = masks[number, y, x].item()
            assert weight == (1.0 if own > other else 0.0)
            shown = images[number if weight == 1.0 else 1 - number]
            assert torch.equal(mixed[number, :, y, x], shown[:, y, x])
        ratio = masks[number].mean()
        assert mixed_targets[number].tolist() == pytest.approx(
            (ratio * targets[number] + (1 - ratio) * targets[1 - number]).tolist()
        )


@pytest.mark.parametrize("transport_size", [0, 1, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_images_follow_their_masks(smoothing: float, transport_size: int) -> None:
    """Pixel for pixel, with the patches moved; targets by the mean of the mask, with smoothed labels."""
    images, targets = batch(smoothing)
    mixer = mixer_with(fields={"label_smoothing": smoothing, "transport_size": transport_size, "levels": 4})
    for number in range(4):
        draws = mixer._draw(number, N)
        mixed, mixed_targets, masks = mixer._mix(images, targets, draws)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        assert set(np.unique(3 * masks.numpy())) <= {0.0, 1.0, 2.0, 3.0}
        for i, j in enumerate(draws.partner.tolist()):
            ratio = masks[i].mean().item()
            expected = ratio * targets[i] + (1 - ratio) * targets[j]
            assert mixed_targets[i].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
            if transport_size == 0:
                blend = masks[i] * images[i] + (1 - masks[i]) * images[j]
                assert torch.allclose(mixed[i], blend, atol=1e-6)
            else:  # a whole pixel of either image has only moved
                for image, weight in ((i, 1.0), (j, 0.0)):
                    there = {tuple(pixel) for pixel in images[image].flatten(1).T.tolist()}
                    seen = mixed[i][:, masks[i] == weight].T.tolist()
                    assert {tuple(pixel) for pixel in seen} <= there
        assert mixed_targets.sum(1).tolist() == pytest.approx([1.0] * N)


def test_masks_follow_prior_and_smoothness() -> None:
    """With a heavy prior, levels near lam; with heavy smoothness in both directions, one level per image."""
    images, targets = batch()
    prior = mixer_with(fields={"eta": 1e4, "beta": 0.0})
    draws = prior._draw(0, N)._replace(lam=np.array([0.0, 1.0, 0.5, 0.01, 0.99, 0.5]))
    masks = prior._mix(images, targets, draws)[2]
    assert masks.amin((1, 2)).tolist() == masks.amax((1, 2)).tolist() == [0.0, 1.0, 0.5, 0.0, 1.0, 0.5]
    smooth = mixer_with(fields={"eta": 0.0, "beta": 1e4})
    draws = prior._draw(0, N)._replace(grid=4)
    masks = smooth._mix(images, targets, draws)[2]
    assert torch.equal(masks.amin((1, 2)), masks.amax((1, 2)))


def test_patches_move_where_their_image_is_seen() -> None:
    """Each image shows one half; a salient patch at the other side of the border moves there."""
    mixer = mixer_with(fields={"transport_size": 4, "transport_cost": 1.0})
    draws = mixer._draw(0, 2)._replace(grid=2, partner=np.array([1, 0]))
    masks = np.array([[[1.0, 1.0], [0.0, 0.0]]] * 2)  # above: the image itself; below: its partner
    saliency = np.zeros((2, 4, 4))
    saliency[0, 2, 1], saliency[1, 1, 3] = 0.9, 0.9
    places = mixer._choose_places(masks, saliency, draws)
    assert places is not None
    own, partner = (each.reshape(2, 4, 4) for each in places)
    as_they_are = np.arange(16).reshape(4, 4)
    up, down = as_they_are.copy(), as_they_are.copy()
    up[1, 1], up[2, 1] = as_they_are[2, 1], as_they_are[1, 1]
    down[2, 3], down[1, 3] = as_they_are[1, 3], as_they_are[2, 3]
    # Image 0 is seen above in its own mix, and below as the partner of image 1; there its patch is already.
    assert own.tolist() == [up.tolist(), as_they_are.tolist()]
    assert partner.tolist() == [down.tolist(), as_they_are.tolist()]


def test_the_saliency_pass_computes_no_gradients_of_parameters() -> None:
    class Watched(Spot):
        seen: tuple[bool, bool] | None = None

        def forward(self, images: Tensor) -> Tensor:
            self.seen = self.training, self.weight.requires_grad
            return super().forward(images)

    model = Watched((2, 3), (13, 12), (0, 15))
    mixer_with(model)._saliency(*batch())
    assert model.seen == (False, False)
    assert (model.training, model.weight.requires_grad) == (True, True)


@pytest.mark.parametrize("fields", [{"probability": 0.0}, {"alpha": 0.0}])
def test_without_mixing_nothing_is_computed(fields: dict[str, float]) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

    images, targets = batch()
    mixed, mixed_targets = mixer_with(Unused(), fields)(images, targets)
    assert mixed is images
    assert mixed_targets is targets


def test_images_that_are_not_drawn_stay() -> None:
    images, targets = batch()
    mixer = mixer_with(fields={"probability": 0.5})
    draws = next(it for it in map(mixer._draw, range(99), [N] * 99) if 0 < it.mixed.sum() < N)
    mixed, mixed_targets, masks = mixer._mix(images, targets, draws)
    stay = torch.from_numpy(~draws.mixed)
    assert torch.equal(mixed[stay], images[stay])
    assert torch.equal(mixed_targets[stay], targets[stay])
    assert bool((masks[stay] == 1).all())
    changed = [not torch.equal(mixed[i], images[i]) for i in np.flatnonzero(draws.mixed)]
    assert any(changed)


def test_draws() -> None:
    """Each batch has its own; ranks differ; granularity and schedule are followed."""
    mixer, other_rank = mixer_with(), mixer_with(rank=1)
    drawn = [mixer._draw(number, 500) for number in range(40)]
    assert {it.grid for it in drawn} == {2, 4, 8, 16}
    assert sorted(drawn[0].partner) == list(range(500))
    assert len(np.unique(drawn[0].lam)) == 500
    assert abs(np.mean([it.lam.mean() for it in drawn]) - 0.5) < 0.01
    assert np.mean([it.lam.var() for it in drawn]) == pytest.approx(1 / 12, rel=0.05)  # Beta(1, 1)
    assert drawn[0].partner.tolist() != drawn[1].partner.tolist()
    assert drawn[0].partner.tolist() != other_rank._draw(0, 500).partner.tolist()
    assert {it.grid for it in (mixer_with(image_size=8)._draw(i, 2) for i in range(40))} == {2, 4, 8}

    one = mixer_with(fields={"granularity": "batch", "probability": 0.5})
    drawn = [one._draw(number, 50) for number in range(40)]
    assert all(len(np.unique(it.lam)) == len(np.unique(it.mixed)) == 1 for it in drawn)
    assert 5 < sum(it.mixed[0] for it in drawn) < 35

    schedule = MixSchedule(probability_start=0.0, ramp_epochs=2.0, off_epoch=3)  # 10 batches per epoch
    ramped = mixer_with(mix_schedule=schedule)
    assert [ramped._draw(number, 1000).mixed.mean() for number in (0, 10, 20, 29, 30)] == pytest.approx(
        [0.0, 0.5, 1.0, 1.0, 0.0], abs=0.06
    )
    slow = mixer_with(mix_schedule=MixSchedule(alpha_start=0.01, ramp_epochs=1.0))
    assert [slow._draw(number, 2000).lam.var() for number in (0, 10)] == pytest.approx(
        [1 / 4 / 1.02, 1 / 12], rel=0.1
    )


def test_a_mixer_continues_from_its_state() -> None:
    """Batch for batch; a preview shows the next one and takes nothing."""
    model, (images, targets) = restless_classifier("", CLASSES), batch()
    first = mixer_with(model)
    made = [first(images, targets) for _ in range(4)]
    second = mixer_with(model)
    second.load_state_dict({"batch": 2})
    assert first.state_dict() == {"batch": 4}
    shown, shown_targets, masks = second.preview(images.permute(0, 2, 3, 1).numpy(), targets.numpy())
    assert masks.shape == (N, SIZE, SIZE, 1)
    for expected, expected_targets in made[2:]:
        mixed, mixed_targets = second(images, targets)
        assert torch.equal(mixed, expected)
        assert torch.equal(mixed_targets, expected_targets)
    assert torch.equal(torch.from_numpy(shown).permute(0, 3, 1, 2), made[2][0])
    assert torch.equal(torch.from_numpy(shown_targets), made[2][1])
    assert not torch.equal(made[0][0], made[1][0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--mix-levels", "1"], "--mix-levels must be an integer of at least 2; got 1"),
        (["--mix-gamma", "1.5"], "--mix-gamma must be in [0, 1]; got 1.5"),
        (["--mix-beta", "-1"], "--mix-beta must be at least 0; got -1.0"),
        (["--mix-ratio", "0.5"], "--mix-ratio must be left out with 'puzzlemix', which takes alpha, beta, "),
        (["--mix-convention", "paper"], "--mix-convention must be 'reference' with 'puzzlemix', whose"),
        (["--image-size", "33"], "--image-size must be even with --mix puzzlemix; got 33"),
        (["--mix", "hmix", "--mix-beta", "1"], "--mix-beta must be left out with 'hmix', which takes"),
    ],
)
def test_wrong_settings(
    given: list[str], words: str, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert status(photos, tmp_path / "none", "--mix", "puzzlemix", *given) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "call", [lambda: Mixing("puzzlemix"), lambda: msda.mix(0, 0, method="puzzlemix", num_classes=2)]
)
def test_no_pipeline_has_it(call: Callable[[], Any]) -> None:
    """The error says why, and where it is."""
    with pytest.raises(ValueError, match=r"needs the model's gradients.*--mix puzzlemix\); got 'puzzlemix'"):
        call()
    assert mixing_of_pipeline(mixing_of("puzzlemix", label_smoothing=0.1)) == Mixing(
        "none", label_smoothing=0.1
    )
    wrong = [
        msda.Method(name=name, title="", summary="", mask=lambda f, grid: msda.Separable(1.0))
        for name in MIXERS
    ]
    with pytest.raises(ValueError, match=r"name must be none of .*puzzlemix; got 'puzzlemix'"):
        msda.register(wrong[0])


def test_settings_are_those_of_the_method() -> None:
    """Only its own are recorded, integers as such, and they come back."""
    config = parse(["--mix", "puzzlemix", "--mix-levels", "2", "--mix-alpha", "0.5"], Config())
    assert config.mixing == mixing_of("puzzlemix", levels=2, alpha=0.5)
    recorded = settings(config)
    own = {name.removeprefix("mix_"): value for name, value in recorded.items() if name.startswith("mix")}
    assert {name: own[name] for name in ("mix", "alpha", "beta", "levels", "ratio", "transport_size")} == {
        "mix": "puzzlemix",
        "alpha": 0.5,
        "beta": 1.2,
        "levels": 2,
        "ratio": None,
        "transport_size": 4,
    }
    of_before = recorded | {"scaled_decoding": "off"}  # a record without it is from before it was there
    assert saved_settings({"mix": "puzzlemix", "mix_levels": 2, "mix_alpha": 0.5}) == of_before
    assert parse(["--mix", "hmix"], config).mixing == Mixing("hmix")
    assert create_mixer(Config(), Ranks(), nn.Linear(1, 1), GradScaler("cpu", enabled=False), 1) is None


def test_a_stopped_run_resumes_exactly(trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    """Two processes, in the middle of an epoch, with everything that has a state or depends on the batch."""
    command: list[object] = ["--data", photos, *SMALL, "--mix", "puzzlemix", "--image-size", "16"]
    command += ["--accumulate", "2", "--ema-decay", "0.9", "--mix-probability-start", "0.5"]
    command += ["--mix-ramp-epochs", "1", "--checkpoint-every", "1", "--output"]
    run: dict[str, Any] = {"processes": 2, "model": "restless"}
    whole = trainer.run(*command, tmp_path / "whole", **run)
    assert whole.statuses == [0, 0], whole.said
    plan = {"event": "step", "number": 2, "rank": 1, "do": [int(signal.SIGTERM)]}
    stopped = trainer.run(*command, tmp_path / "run", plan=plan, **run)
    assert stopped.statuses == [128 + 15] * 2, stopped.said
    resumed = trainer.run(*command, tmp_path / "run", "--resume", "auto", **run)
    assert resumed.statuses == [0, 0], resumed.said
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert (tmp_path / "whole" / "first_batch.png").stat().st_size > 0
