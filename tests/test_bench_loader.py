"""The benchmarks of loaders: images of any size, stopped loaders, tables of sizes and of memory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import bench_loader, loader_tables
from benchmarks.bench_memory import measure_growth, measure_peak
from benchmarks.common import Record, spread
from benchmarks.loaders import Settings, contenders
from benchmarks.photos import mean_size, parse_size, prepare_images, write_resized
from pipelines.demo_data import make_demo_dataset
from pipelines.folders import list_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two JPEGs in each of ten class folders."""
    folder = tmp_path_factory.mktemp("bench")
    return make_demo_dataset(folder / "set", train_per_class=2, val_per_class=1) / "train"


@pytest.mark.parametrize(
    ("source_size", "sides"),
    [("original", None), ("500", (500, 500)), ("1280x960", (1280, 960)), ("4000x3000", (4000, 3000))],
)
def test_sizes_are_parsed(source_size: str, sides: tuple[int, int] | None) -> None:
    assert parse_size(source_size) == sides


@pytest.mark.parametrize("source_size", ["", "0", "-5", "12x", "x12", "0x9", "12 x 9", "big", "1e3"])
def test_wrong_sizes_are_errors(source_size: str) -> None:
    with pytest.raises(ValueError, match='must be "original", N or WIDTHxHEIGHT; got'):
        parse_size(source_size)


@pytest.mark.parametrize(
    ("before", "source_size", "after"),
    [
        ((64, 48), "128", (128, 96)),
        ((48, 64), "32", (24, 32)),
        ((64, 48), "120x60", (120, 60)),
        ((48, 64), "120x60", (120, 60)),
    ],
)
def test_pictures_get_their_size(
    tmp_path: Path, before: tuple[int, int], source_size: str, after: tuple[int, int]
) -> None:
    Image.new("L", before, 90).save(tmp_path / "a.png")
    write_resized(tmp_path / "a.png", tmp_path / "b.jpg", source_size, seed=0)
    with Image.open(tmp_path / "b.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", after)


def test_a_jpeg_of_the_size_is_copied(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg", quality=50)
    for source_size in ("64", "64x48"):
        write_resized(tmp_path / "a.jpg", tmp_path / "b.jpg", source_size, seed=0)
        assert (tmp_path / "b.jpg").read_bytes() == (tmp_path / "a.jpg").read_bytes()


def test_enlarged_pictures_have_noise(tmp_path: Path) -> None:
    """A standard deviation of 4, another noise for every seed, and always the same."""
    Image.new("RGB", (16, 16), (90, 90, 90)).save(tmp_path / "a.png")
    contents = []
    for seed in (0, 0, 1):
        write_resized(tmp_path / "a.png", tmp_path / "b.jpg", "256", seed)
        contents.append((tmp_path / "b.jpg").read_bytes())
    assert contents[0] == contents[1] != contents[2]
    with Image.open(tmp_path / "b.jpg") as image:
        assert np.asarray(image).std() == pytest.approx(4, abs=0.4)
    write_resized(tmp_path / "a.png", tmp_path / "b.jpg", "8", seed=0)
    with Image.open(tmp_path / "b.jpg") as image:
        assert np.asarray(image).std() == 0


def test_images_are_linked_until_there_are_enough(images: Path, tmp_path: Path) -> None:
    made = prepare_images(images, tmp_path, batch_size=8, source_size="40x30", photos=6, batches=3)
    listed = list_images(made)
    assert len(listed.files) == 24
    assert len({(made / file).resolve() for file in listed.files}) == 6
    assert {Image.open(made / file).size for file in listed.files} == {(40, 30)}
    assert len(set(listed.labels)) == 6  # spread over the folder
    assert 500 < mean_size(made) < 5000


def test_images_are_generated_without_a_folder(tmp_path: Path) -> None:
    made = prepare_images(None, tmp_path, batch_size=4, batches=1)
    assert len(list_images(made).classes) == 10


@pytest.mark.parametrize("name", ["dali-hmix", "dali-unscaled-hmix", "dali-plain"])
def test_loaders_do_the_same_work(name: str, images: Path) -> None:
    """Normalised float32 images with targets that sum to 1."""
    settings = Settings(data=images, batch_size=4, image_size=32, workers=1)
    batch, targets = next(contenders()[name].batches(settings))
    assert (batch.shape, str(batch.dtype)) == ((4, 3, 32, 32), "torch.float32")
    assert -2.2 < float(batch.min()) < float(batch.max()) < 2.7
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-5)


def test_a_loader_is_measured(images: Path) -> None:
    settings = Settings(data=images, batch_size=4, image_size=32, workers=1, images=8)
    (record,) = bench_loader.measure([("dali-decoder", settings)], rounds=2)
    assert (record["loader"], record["batch_size"]) == ("dali-decoder", 4)
    assert len(record["rates"]) == record["images_per_s"]["rounds"] == 2
    assert min(record["rates"]) > 0
    assert record["peak_MiB"] > 50


def test_a_loader_is_stopped_between_its_turns(images: Path) -> None:
    """And has ended afterwards."""
    settings = Settings(data=images, batch_size=4, image_size=32, workers=1)
    server = bench_loader.Server("dali-decoder", settings)
    stat = Path(f"/proc/{server.pid}/stat")

    def is_stopped() -> bool:
        return stat.read_text().rsplit(")", 1)[1].split()[0] == "T"

    try:
        for _ in range(2):
            server.time(8)
            deadline = time.monotonic() + 20
            while not is_stopped():
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        server.end()
    assert not stat.exists()


def record(loader: str, mix: str, source_size: str, rate: float) -> Record:
    return {"loader": loader, "mix": mix, "source_size": source_size, "images_per_s": spread([rate, rate])}


def test_table_of_sizes() -> None:
    """Several files; a loader may be missing in one."""
    small = [record("turboloader", "none", "500", 50), record("dali", "hmix", "500", 200)]
    large = [record("dali", "hmix", "4000x3000", 10)]
    header, ours, peer = loader_tables.loader_sizes({"results": small}, {"results": large})
    of = "of this project, HMix"
    assert header == [
        "loader",
        "500 pixels: images/s (quartiles)",
        of,
        "4000 x 3000: images/s (quartiles)",
        of,
    ]
    assert ours == ["**this project, HMix**", "200 (200-200)", "1.00", "10 (10-10)", "1.00"]
    assert peer == ["TurboLoader, no mixing", "50 (50-50)", "0.25", "", ""]


def test_tables_of_memory() -> None:
    setting = {"measure": "peak", "workers": 2, "batch_size": 16}
    peaks = [
        setting | {"scaled_decoding": way, "peak_MiB": peak} for way, peak in (("off", 1500), ("on", 900))
    ]
    growth: Record = {"measure": "growth", "source_size": "500", "scaled_decoding": "on"}
    growth |= {"epochs_MiB": [900.4, 901], "growth_MiB_per_epoch": 0.6}
    content = {"results": [*peaks, growth]}
    assert loader_tables.memory(content)[1] == ["2", "16", "1500", "900"]
    assert loader_tables.memory_growth(content)[1] == ["500 pixels", "on", "2", "900, 901", "0.6"]


def test_memory_is_measured(images: Path) -> None:
    setting = {"mix": "hmix", "image_size": 32, "batch_size": 4, "workers": 1, "scaled_decoding": "off"}
    peak = measure_peak(images, setting, 2)
    assert 50 < peak["before_MiB"] <= peak["peak_MiB"]
    growth = measure_growth(images, setting, 3)
    assert len(growth["epochs_MiB"]) == 3
    first, _, last = growth["epochs_MiB"]
    assert growth["growth_MiB_per_epoch"] == pytest.approx((last - first) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loaders", "dali"], "--loaders must be of dali-plain, .*; got dali$"),
        (["--source-sizes", "big"], '--source-sizes must be "original", N or WIDTHxHEIGHT; got "big"'),
        (
            ["--data", "nowhere"],
            "--data must be a folder of class folders; got nowhere, which is not a folder",
        ),
    ],
)
def test_wrong_options(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench_loader", *arguments])
    with pytest.raises(SystemExit, match=message):
        bench_loader.main()


def test_a_peer_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.loader_settings.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["bench_loader", "--loaders", "ffcv-mixup"])
    with pytest.raises(SystemExit, match="--loaders must be installed; got ffcv-mixup"):
        bench_loader.main()
