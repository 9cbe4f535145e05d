"""`dali_msda.torch` where users put it: loops, collate functions, transforms, compiled graphs."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from dali_msda import reference
from dali_msda import torch as torch_msda
from dali_msda.methods import MIXING
from dali_msda.torch import HMix, Mix, MixUp
from dali_msda.torch.classes import class_name
from tests.devices import on_each_device
from tests.test_torch import CENTER, LABELS, LAM, PARTNER, SIZE, given, numbers, on, random_images
from tests.trainer_process import ROOT

N, K = 6, 10
IMAGES = random_images(torch.uint8)


def test_the_classes_are_those_of_the_table() -> None:
    names = [class_name(name) for name in MIXING[:5]]
    assert names == ["MixUp", "CutMix", "Stochastic", "HMix", "GMix"]
    assert set(names) < set(torch_msda.__all__)
    for method, name in zip(MIXING, map(class_name, MIXING), strict=True):
        mix = getattr(torch_msda, name)(K)
        assert mix.method == method
        assert repr(mix).startswith(f"{name}({method!r}")
        assert type(pickle.loads(pickle.dumps(mix))) is type(mix)
    with pytest.raises(AttributeError, match="has no attribute 'PuzzleMix'"):
        _ = torch_msda.PuzzleMix


def test_the_modules_stay_light() -> None:
    script = (
        "import sys, dali_msda\nassert 'torch' not in sys.modules\nimport dali_msda.torch\n"
        "print(*(name for name in sys.modules if name.startswith(('nvidia.dali', 'numba', 'triton'))))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@on_each_device
@pytest.mark.parametrize("method", ["CutMix", "Stochastic", "GMix"])
def test_a_compiled_graph_has_no_breaks(method: str, device: str) -> None:
    torch._dynamo.reset()
    images, labels = IMAGES.to(on(device)), LABELS.to(on(device))
    eager = getattr(torch_msda, method)(K, label_smoothing=0.1, return_params=True)
    compiled: Any = torch.compile(eager, backend="aot_eager", fullgraph=True)
    torch.manual_seed(3)
    mixed, targets, params = compiled(images, labels)
    torch.manual_seed(3)
    wanted, wanted_targets, wanted_params = eager(images, labels)
    assert torch.allclose(mixed.float(), wanted.float(), atol=1.0)  # a mask's last bit may round a pixel
    assert torch.allclose(targets, wanted_targets, atol=1e-6)
    assert torch.allclose(params.mask, wanted_params.mask, atol=1e-6)
    first, second = (compiled(images, labels)[2] for _ in range(2))
    assert not torch.equal(first.mask, second.mask)
    assert sorted(first.partner.tolist()) == list(range(N))
    if device == "cpu":
        with pytest.raises(ValueError, match=r"labels must be in \[0, 10\); got 10 in sample 2"):
            compiled(IMAGES, torch.tensor([0, 1, 10, 3, 4, 5]))


def test_a_compiled_graph_normalises() -> None:
    torch._dynamo.reset()
    mix = torch_msda.HMix(mean=[1.0, 2.0, 3.0], std=4.0, output_dtype=torch.bfloat16)
    images = IMAGES.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(mix, backend="aot_eager", fullgraph=True)(images, **given())
    assert torch.equal(compiled, mix(images, **given()))
    assert compiled.stride() == images.stride()


@pytest.mark.parametrize("method", MIXING[:5])
def test_the_host_never_reads_a_tensor_of_a_gpu(method: str) -> None:
    """A fake GPU's tensors have no values: reading one would raise."""
    with FakeTensorMode():
        images, labels = (torch.empty(N, 3, 8, 8, device="cuda"), torch.zeros(N, dtype=int, device="cuda"))  # type: ignore[call-overload]
        for arguments in ({}, {"granularity": "batch", "allow_self": False, "correct_lam": False}):
            mix = torch_msda.Mix(method, K, return_params=True, backend="torch", **arguments)  # type: ignore[arg-type]
            mixed, targets, params = mix(images, labels, lam=0.3, center=(1, 2))
            drawn = mix.draw(images)
            mix.mix_images(labels[:, None, None].expand(N, 4, 4), drawn, nearest=True)
            assert {t.device.type for t in (mixed, targets, *params, drawn.lam, drawn.partner)} == {"cuda"}
        partner = torch.zeros(N, dtype=torch.int32, device="cuda")
        torch_msda.Mix(method, backend="torch")(images, partner=partner)
    with FakeTensorMode(), pytest.raises(RuntimeError):
        torch.zeros(1, device="cuda").item()


@pytest.mark.gpu
@pytest.mark.parametrize("method", MIXING[:5])
def test_a_gpu_is_not_waited_for(method: str) -> None:
    images, labels = IMAGES.cuda(), LABELS.cuda()
    mix = torch_msda.Mix(method, K, return_params=True)
    mix(images, labels)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        mix(images, labels)
        mix(images, labels, lam=0.3, center=(1, 2), partner=[1, 2, 3, 4, 5, 0])
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Samples(Dataset[Any]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 400, 400), float(index)), index % K


def test_in_a_collate_function_with_workers() -> None:
    mix = torch_msda.CutMix(K)
    loader = DataLoader(Samples(), 4, num_workers=2, collate_fn=lambda batch: mix(*default_collate(batch)))
    batches = list(loader)
    assert len(batches) == 3
    for i, (images, targets) in enumerate(batches):
        assert targets.shape == (4, K)
        assert torch.allclose(targets.sum(1), torch.ones(4))
        ids = torch.arange(4 * i, 4 * i + 4)
        assert torch.isin(images, ids.float()).all()
        share = (images[:, 0] == ids[:, None, None]).float().mean((1, 2))
        assert (targets.gather(1, (ids % K)[:, None])[:, 0] >= share - 1e-5).all()
    shares = torch.cat([targets.max(1).values for _, targets in batches])
    assert len(set(shares.tolist())) > 6  # workers draw different numbers


def test_as_a_transform_of_torchvision() -> None:
    mix = torch_msda.HMix(K)
    for transform in (
        v2.Compose([v2.ToDtype(torch.float32), mix]),
        v2.RandomChoice([mix, torch_msda.MixUp(K)]),
    ):
        images, targets = transform(IMAGES, LABELS)
        assert (images.shape, targets.shape) == (IMAGES.shape, (N, K))
        images, targets = v2.Compose([mix])((IMAGES, LABELS))
        assert targets.shape == (N, K)
    assert v2.Compose([mix])(IMAGES).shape == IMAGES.shape


def test_in_a_training_loop_and_in_a_module() -> None:
    """As a child of a module, and in Lightning's hook, which is a method of the module."""

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch_msda.HMix(K, mean=127.0, std=60.0)
            self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE[0] * SIZE[1], K))

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return self.mix(*batch)

    model = Classifier()
    before = set(model.state_dict())
    assert before == {"body.1.weight", "body.1.bias"}
    model.apply(lambda module: None)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    losses = []
    for _ in range(5):
        images, targets = model.on_after_batch_transfer((IMAGES, LABELS), 0)
        loss = torch.nn.functional.cross_entropy(model.body(images), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@on_each_device
def test_views_and_maps_share_draws(device: str) -> None:
    """Each at its own size; a given centre moves in proportion."""
    images, large = IMAGES.to(on(device)), random_images(torch.float32, size=(42, 40)).to(on(device))
    ids = torch.arange(N, device=on(device))[:, None, None].expand(N, 42, 40).contiguous()
    mix = torch_msda.HMix(K, return_params=True)
    (small, other), targets, params = mix([images, large], LABELS.to(on(device)), **given(device))
    drawn = mix.draw(images, **given(device))
    assert torch.equal(mix.mix_images(images, drawn), small)
    assert torch.equal(mix.mix_images(large, drawn), other)
    again = mix.mix_labels(LABELS.to(on(device)), drawn)
    assert isinstance(again, torch.Tensor)
    assert torch.equal(again, targets)
    selected = mix.mix_images(ids, drawn, nearest=True).cpu()
    for i in range(N):
        row, column = (
            int((c + 0.5) * a / b) for c, a, b in zip(CENTER[i].tolist(), (42, 40), SIZE, strict=True)
        )
        mask = reference.mask("hmix", (42, 40), float(LAM[i]), center=(row, column), ratio=0.75)
        exact = reference.blend(numbers(large)[i], numbers(large)[PARTNER[i]], mask, "CHW")
        assert np.abs(numbers(other)[i] - exact).max() < 1e-6
        assert selected[i].tolist() == np.where(mask < 0.5, int(PARTNER[i]), i).tolist()
    assert torch.allclose(params.mask.mean((1, 2, 3)), params.lam, atol=1e-6)
    for kind in (torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.float64):
        as_kind = mix.mix_images(ids.to(kind), drawn, nearest=True).cpu()
        assert torch.equal(as_kind, selected.to(kind)), kind
    equal = MixUp().draw(images, lam=0.5, partner=PARTNER.to(on(device)))
    assert torch.equal(MixUp().mix_images(ids, equal, nearest=True), ids)
    clip = images[:, :, None].expand(-1, -1, 4, -1, -1).contiguous()
    assert torch.equal(mix.mix_images(clip, drawn), small[:, :, None].expand_as(clip))


def test_a_second_source() -> None:
    others = IMAGES.flip(0)
    mix = torch_msda.MixUp(K)
    mixed, targets = mix(IMAGES, LABELS, partner_images=others, partner_labels=LABELS.flip(0), **given())
    swapped, swapped_targets = mix(IMAGES, LABELS, lam=LAM, partner=5 - PARTNER)
    assert torch.equal(mixed, swapped)
    assert torch.equal(targets, swapped_targets)


def test_targets() -> None:
    """Vectors, pairs and the drawn lam."""
    one_hot = torch.nn.functional.one_hot(LABELS, K).float()
    for smoothing in (0.0, 0.1):
        ids = torch_msda.HMix(K, label_smoothing=smoothing)(IMAGES, LABELS, **given())[1]
        vectors = torch_msda.HMix(label_smoothing=smoothing)(IMAGES, one_hot.double(), **given())[1]
        assert vectors.dtype == torch.float32
        assert torch.allclose(ids, vectors, atol=1e-6)
    _, pair, params = torch_msda.CutMix(output="pair", return_params=True)(IMAGES, LABELS.int(), **given())
    assert isinstance(pair, torch_msda.Pair)
    assert (pair.own.tolist(), pair.partner.tolist()) == (LABELS.tolist(), LABELS[PARTNER].tolist())
    assert torch.equal(pair.lam, params.lam)
    assert not torch.allclose(params.lam.double(), LAM, atol=1e-3)
    drawn = torch_msda.CutMix(K, correct_lam=False, return_params=True)(IMAGES, LABELS, **given())
    assert torch.allclose(drawn[2].lam.double(), LAM)
    assert torch.allclose(drawn[1][1, 9].double(), LAM[1])
    unmixed = torch_msda.Mix("none", K)(IMAGES, LABELS[:, None])
    assert torch.equal(unmixed[0], IMAGES)
    assert torch.equal(unmixed[1], one_hot)
    nothing = torch_msda.GMix(K, probability=0.0)(IMAGES, LABELS)
    assert torch.equal(nothing[0], IMAGES)
    assert torch.equal(nothing[1], one_hot)


def test_the_page_runs() -> None:
    text = (ROOT / "docs/torch.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert (names["targets"].shape, names["maps"].dtype) == ((8, 1000), torch.int64)


Call = Callable[[], Any]
HMIX = HMix(K)
NOT_DRAWN: Any = None

FAULTS: list[tuple[Call, str]] = [
    (lambda: Mix("hmx"), "method must be one of 'none', 'mixup'"),
    (lambda: Mix("puzzlemix"), "needs the model's gradients"),
    (lambda: HMix(alpha=-1.0), "alpha must be at least 0; got -1.0"),
    (lambda: HMix(ratio="1"), "ratio must be a number in [0, 1]; got '1'"),
    (lambda: MixUp(ratio=0.5), "mixup has no argument 'ratio'"),
    (lambda: HMix(rato=0.5), "did you mean ratio?"),
    (lambda: HMix(0), "num_classes must be at least 1; got 0"),
    (lambda: HMix(probability=1.5), "probability must be in [0, 1]; got 1.5"),
    (lambda: HMix(convention="ours"), "convention must be one of 'reference', 'paper'"),
    (lambda: HMix(granularity="pair"), "granularity must be one of 'sample', 'batch'"),
    (lambda: HMix(mean=1.0), "mean and std must be given together; got mean=1.0, std=None"),
    (lambda: HMix(scale=2.0), "scale must be left out without mean= and std=; got 2.0"),
    (lambda: HMix(mean=0, std=0), "std must be above 0 in every channel; got 0"),
    (lambda: HMix(mean=0, std=1, output_dtype=torch.int8), "output_dtype must be one of"),
    (lambda: HMix(backend="numba"), "backend must be one of 'auto', 'kernel'"),
    (lambda: HMix(generator=3), "generator must be of type Generator; got 3"),
    (lambda: HMix(output="pair", label_smoothing=0.1), "label_smoothing must be 0 with"),
    (lambda: HMIX(IMAGES.numpy()), "images must be a tensor; got 'ndarray'"),
    (lambda: HMIX([]), "images must be a tensor or a sequence of them; got an empty one"),
    (lambda: HMIX(IMAGES[0]), "images must be of shape [N, C, H, W]; got [3, 21, 16]"),
    (lambda: HMIX(IMAGES.double()), "images must be one of uint8, int16, uint16, float16, bfloat16"),
    (lambda: HMIX(IMAGES, LABELS + 1), "labels must be in [0, 10); got 10 in sample 1"),
    (lambda: HMIX(IMAGES, LABELS - 1), "labels must be in [0, 10); got -1 in sample 0"),
    (lambda: HMIX(IMAGES, LABELS.tolist()), "labels must be a tensor, class ids [6] or vectors"),
    (lambda: HMIX(IMAGES, LABELS[:5]), "labels must be class ids [6] or vectors of floats [6, K]"),
    (lambda: HMIX(IMAGES, LABELS.float()), "labels must be class ids [6] or vectors of floats [6, K]"),
    (lambda: HMIX(IMAGES, torch.zeros(6, 9)), "labels must be class ids or vectors of num_classes=10"),
    (lambda: HMIX(IMAGES, LABELS > 1), "labels must be class ids [6] or vectors of floats [6, K]"),
    (lambda: HMIX(IMAGES, LABELS.to("meta")), "labels must be on cpu, like the images; got a tensor on meta"),
    (lambda: HMix()(IMAGES, LABELS), "num_classes must be given with class ids"),
    (lambda: HMIX(IMAGES, lam=1.5), "lam must be in [0, 1]; got 1.5"),
    (lambda: HMIX(IMAGES, lam=LAM[:4]), "lam must be one number, or 6; got 'a tensor of shape [4]'"),
    (lambda: HMIX(IMAGES, center=(1, -1)), "center column must be a pixel index of at least 0; got -1"),
    (lambda: HMIX(IMAGES, center=CENTER[:3]), "center must be (row, column) in pixels, or a tensor"),
    (lambda: HMIX(IMAGES, partner=6), "partner must be an index in [0, 6), or one per sample; got 6"),
    (lambda: HMIX(IMAGES, partner=PARTNER + 1), "partner must be in [0, 6); got 6 in sample 4"),
    (lambda: HMIX(IMAGES, partner=LAM), "partner must be an index in [0, 6)"),
    (lambda: HMix(allow_self=False)(IMAGES, partner=PARTNER), "allow_self must be True with partner="),
    (lambda: HMIX(IMAGES, LABELS, partner_images=IMAGES), "partner_labels must be given with partner_images"),
    (lambda: HMIX(IMAGES, partner_images=IMAGES[:, :, :9]), "partner_images must have the shape of images"),
    (lambda: HMIX(IMAGES, partner_images=[IMAGES] * 2), "partner_images must be as many as images, 1; got 2"),
    (lambda: HMIX(IMAGES, LABELS, partner_labels=LABELS), "partner_labels must be left out without"),
    (lambda: HMix(mean=[1, 2], std=1)(IMAGES), "mean must be one number per channel, 3; got 2"),
    (lambda: HMIX.mix_labels(LABELS, NOT_DRAWN), "drawn must be what draw() returns; got None"),
    (lambda: HMIX.mix_images(IMAGES[:2], HMIX.draw(IMAGES)), "images must be 6, as drawn; got 2"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "words"), FAULTS, ids=[words[:30] for _, words in FAULTS])
def test_bad_input(call: Call, words: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
