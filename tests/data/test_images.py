"""Image data sets, their cache and their errors; augmentation of batches."""

import gzip
import hashlib
import io
import math
import os
import pickle
import random
import shutil
import stat
import tarfile
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flatnb import _torchvision, data
from flatnb.data import augment, folder
from flatnb.data.images import BUILT_IN


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the user's folders."""
    monkeypatch.delenv("FLATNB_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flatnb"


# The digits


def test_digits_are_normalised_by_their_training_part() -> None:
    made = data.images()
    assert made.name == "digits" and made.classes == tuple("0123456789")
    assert [len(s) for s in (made.train, made.val, made.test)] == [1149, 288, 360]
    assert made.train.x.shape[1:] == (1, 8, 8) and made.train.x.dtype == torch.float32
    x = made.train.x.double()
    assert x.mean().abs() < 1e-6 and (x.std(correction=0) - 1).abs() < 1e-6
    assert made.val.x.mean().abs() > 1e-6  # not by its own


def test_splits_are_stratified_and_together_the_whole_set() -> None:
    from sklearn.datasets import load_digits

    made = data.images()
    share = torch.from_numpy(load_digits().target).bincount() / 1797
    for split in (made.train, made.val, made.test):
        assert (split.y.bincount() - share * len(split)).abs().max() <= 1
    raw = torch.from_numpy(load_digits().images).flatten(1)
    levels = (
        torch.cat([s.x for s in (made.train, made.val, made.test)]).flatten(1).unique()
    )
    assert len(levels) == len(raw.unique()) == 17
    parts = torch.cat([s.x for s in (made.train, made.val, made.test)]).flatten(1)
    back = torch.bucketize(parts, levels).tolist()
    assert sorted(back) == sorted(raw.long().tolist())


def test_the_seed_moves_the_validation_part_and_not_the_test_set() -> None:
    one, same, other = (data.images(seed=s) for s in (1, 1, 2))
    assert torch.equal(one.train.x, same.train.x) and torch.equal(one.val.y, same.val.y)
    assert not torch.equal(one.val.y, other.val.y)
    assert torch.equal(one.test.y, other.test.y)


def test_few_images_are_drawn_from_the_whole_normalised_set() -> None:
    whole, few = data.images(seed=3), data.images(seed=3, n_train=40)
    order = torch.randperm(len(whole.train), generator=generator(3))[:40]
    assert torch.equal(few.train.x, whole.train.x[order])
    assert torch.equal(few.train.y, whole.train.y[order])
    assert torch.equal(few.val.x, whole.val.x)


def test_label_noise_redraws_its_share_of_training_labels_over_all_classes() -> None:
    clean, noisy = (data.images(seed=2, label_noise=p) for p in (0.0, 0.5))
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(clean, split).x, getattr(noisy, split).x)
    assert torch.equal(clean.val.y, noisy.val.y)
    assert torch.equal(clean.test.y, noisy.test.y)
    wrong = (clean.train.y != noisy.train.y).double().mean()
    # 1,149 labels, each wrong with 0.5 * 0.9: standard deviation 0.0147; five of them.
    assert abs(wrong - 0.45) < 0.074
    few = data.images(seed=2, n_train=100, label_noise=0.5)
    assert torch.equal(few.train.x, data.images(seed=2, n_train=100).train.x)


def test_options_reach_the_data() -> None:
    flip = augment.RandomFlip()
    made = data.images("digits", val_fraction=0.5, batch_size=7, augment=[flip])
    assert (made.name, made.batch_size, made.augment) == ("digits", 7, (flip,))
    assert (len(made.train), len(made.val)) == (718, 719)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name": "CIFAR-11"}, "name='CIFAR-11'; allowed: digits, MNIST, "),
        ({"val_fraction": 0.0}, r"val_fraction=0\.0"),
        ({"val_fraction": 1.0}, r"val_fraction=1\.0"),
        ({"val_fraction": float("nan")}, "val_fraction=nan"),
        ({"val_fraction": 1e-6}, "test_size = 1 should be .* number of classes"),
        ({"n_train": 1150}, r"n_train=1150; allowed: an integer in \[1, 1150\)"),
        ({"label_noise": 1.0}, r"label_noise=1\.0; allowed: a share"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, r"seed=1\.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"size": 16}, "size=16; allowed for digits: None"),
        ({"size": 0, "folder": "f", "name": "own"}, "size=0"),
    ],
)
def test_options_out_of_range_are_named(arguments: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        data.images(**arguments)


# Folders


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder of lossless images of 4 x 6 pixels, and what is in it."""
    rng, arrays = np.random.default_rng(0), {}
    for part, n in (("train", 10), ("test", 3)):
        for name in ("ant", "bee"):
            for i in range(n):
                array = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
                arrays[f"{part}/{name}/{i:02}.png"] = array
                write(tmp_path / "pictures" / part / name / f"{i:02}.png", array)
    return tmp_path / "pictures", arrays


def read(path: Path, **options) -> data.Data:
    return data.images("own", folder=path, **options)


def test_a_folder_is_read_pixel_by_pixel(pictures, cache: Path) -> None:
    path, arrays = pictures
    kept = folder.read_folder(path, None, cache)
    assert kept.classes == ("ant", "bee")
    for part, x, y in (
        ("train", kept.train_x, kept.train_y),
        ("test", kept.test_x, kept.test_y),
    ):
        names = sorted(n for n in arrays if n.startswith(part))
        assert torch.equal(
            x, torch.from_numpy(np.stack([arrays[n] for n in names])).movedim(3, 1)
        )
        assert y.tolist() == [int("bee" in n) for n in names]


def test_a_folder_becomes_normalised_data(pictures) -> None:
    made = read(pictures[0], val_fraction=0.3)
    assert made.name == "own" and made.classes == ("ant", "bee")
    assert [s.y.bincount().tolist() for s in (made.train, made.val, made.test)] == [
        [7, 7],
        [3, 3],
        [3, 3],
    ]
    x = made.train.x.double()
    assert x.shape == (14, 3, 4, 6)
    assert x.mean((0, 2, 3)).abs().max() < 1e-6
    assert (x.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6


def write_all(path: Path, arrays: list[np.ndarray]) -> Path:
    """A folder in which both classes of both parts have these images."""
    for part in ("train", "test"):
        for name in "ab":
            for i, array in enumerate(arrays):
                write(path / part / name / f"{i}.png", array)
    return path


def test_channels_are_normalised_apart_and_a_constant_one_becomes_zero(
    tmp_path: Path,
) -> None:
    arrays = list(np.random.default_rng(0).integers(0, 256, (4, 3, 3, 3), np.uint8))
    for array in arrays:
        array[..., 1] = 77
    made = read(write_all(tmp_path / "f", arrays), val_fraction=0.25)
    assert torch.equal(made.test.x[:, 1], torch.zeros(8, 3, 3))
    assert made.test.x.isfinite().all() and made.test.x[:, 0].std() > 0.5


def test_grey_images_have_one_channel_and_mixed_ones_three(
    tmp_path: Path, cache: Path
) -> None:
    arrays = [np.full((2, 2), value, dtype=np.uint8) for value in (0, 10)]
    path = write_all(tmp_path / "f", arrays)
    grey = folder.read_folder(path, None, cache)
    assert grey.train_x.shape == (4, 1, 2, 2)
    assert grey.train_x[:, 0, 0, 0].tolist() == [0, 10, 0, 10]
    color = np.full((2, 2, 3), (1, 2, 3), dtype=np.uint8)
    write(path / "test" / "b" / "1.png", color)
    mixed = folder.read_folder(path, None, cache)
    assert mixed.train_x[:, :, 0, 0].tolist() == [[v] * 3 for v in (0, 10, 0, 10)]
    assert mixed.test_x[-1, :, 0, 0].tolist() == [1, 2, 3]


def test_size_resizes_the_shorter_side_and_crops_the_middle(
    tmp_path: Path, cache: Path
) -> None:
    # Left and right quarter black: at half size, the middle 4 x 4 of 4 x 8 is white.
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 4:12] = 255
    arrays = [np.ascontiguousarray(wide.transpose(1, 0, 2)), wide]
    x = folder.read_folder(write_all(tmp_path / "f", arrays), 4, cache).train_x
    assert x.shape == (4, 3, 4, 4)
    assert x[1, :, :, 1:3].min() == 255 and x[0, :, 1:3].min() == 255
    assert x.float().mean() > 230


def test_a_folder_is_decoded_once(pictures, cache: Path, monkeypatch) -> None:
    path, _ = pictures
    first = folder.read_folder(path, None, cache)
    decoded = []
    decode = folder._decode

    def watched(path: str, size: int | None) -> np.ndarray:
        decoded.append(path)
        return decode(path, size)

    monkeypatch.setattr(folder, "_decode", watched)
    again = folder.read_folder(path, None, cache)
    assert decoded == []
    assert all(torch.equal(a, b) for a, b in zip(first[:4], again[:4], strict=True))
    assert again.classes == first.classes
    # One file in the cache, and none half-written beside it.
    assert [p.suffix for p in (cache / "folders").iterdir()] == [".pt"]

    folder.read_folder(path, 4, cache)
    assert decoded, "another size is another set"


class Hostile:
    """What runs code when it is unpickled by a careless reader."""

    def __reduce__(self) -> tuple:
        return (Path("hostile").touch, ())


@pytest.mark.parametrize("change", ["content", "removed", "added", "cut", "hostile"])
def test_a_changed_folder_or_a_broken_cache_is_read_again(
    pictures, cache, change: str, tmp_path: Path, monkeypatch
) -> None:
    path, _ = pictures
    monkeypatch.chdir(tmp_path)
    before = folder.read_folder(path, None, cache)
    victim = path / "train" / "ant" / "00.png"
    if change == "content":
        was = victim.stat()
        write(victim, np.full((4, 6, 3), 9, dtype=np.uint8))
        os.utime(victim, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
    elif change == "removed":
        victim.unlink()
    elif change == "added":
        shutil.copy(victim, victim.with_name("zz.PNG"))
    else:
        file = next((cache / "folders").iterdir())
        if change == "cut":
            file.write_bytes(file.read_bytes()[:100])
        else:
            torch.save({"key": Hostile(), "pixels": Hostile()}, file)
    after = folder.read_folder(path, None, cache)
    assert not Path("hostile").exists()
    assert len(after.train_x) == {"removed": 19, "added": 21}.get(change, 20)
    assert bool((after.train_x[0] == 9).all()) == (change == "content")
    assert torch.equal(after.test_x, before.test_x)


def test_a_cache_that_cannot_be_written_is_no_error(pictures, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file, so no folder can be made in it")
    kept = folder.read_folder(pictures[0], None, blocked)
    assert len(kept.train_x) == 20 and blocked.is_file()


def test_a_full_disk_leaves_no_half_cache(pictures, cache: Path, monkeypatch) -> None:
    def full(what, where) -> None:
        where.write(b"half")
        raise RuntimeError(
            "PytorchStreamWriter failed writing file: No space left on device"
        )

    monkeypatch.setattr(torch, "save", full)
    assert len(folder.read_folder(pictures[0], None, cache).train_x) == 20
    assert list((cache / "folders").iterdir()) == []


def test_the_cache_lies_with_the_user(pictures, cache: Path, tmp_path, monkeypatch):
    monkeypatch.setenv("FLATNB_DATA", str(tmp_path / "shared"))
    read(pictures[0])
    assert list((cache / "folders").glob("pictures-*.pt"))
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_folder_under_a_built_in_name_is_refused(pictures, name: str) -> None:
    with pytest.raises(
        ValueError, match=f"name='{name}' with a folder; allowed: any but digits"
    ):
        data.images(name, folder=pictures[0])


def test_a_name_beside_a_built_in_one_is_allowed(pictures) -> None:
    assert data.images("cifar10-jpeg", folder=pictures[0]).name == "cifar10-jpeg"


def test_errors_of_a_folder_name_what_is_wrong(pictures, tmp_path: Path) -> None:
    path, _ = pictures
    archive = tmp_path / "set.tar.xz"
    archive.write_bytes(b"")
    for wrong in (tmp_path / "nowhere", path / "train", archive):
        with pytest.raises(FileNotFoundError, match=f"folder={wrong}; allowed"):
            read(wrong)
    (path / "test" / "cat").mkdir()
    write(path / "test" / "cat" / "0.png", np.zeros((4, 6, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="'cat'] in test; allowed: the same in both"):
        read(path)
    (path / "train" / "cat").mkdir()
    (path / "train" / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match="no valid file for the classes cat"):
        read(path)


def test_a_folder_of_one_class_or_none_is_refused(pictures) -> None:
    path, _ = pictures
    for part in ("train", "test"):
        shutil.rmtree(path / part / "bee")
    with pytest.raises(ValueError, match=r"\['ant'\] in train .* two or more"):
        read(path)
    shutil.rmtree(path / "train" / "ant")
    with pytest.raises(FileNotFoundError, match="any class folder"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_an_unreadable_image_is_named(
    pictures, cache: Path, content: bytes | None
) -> None:
    victim = pictures[0] / "test" / "bee" / "01.png"
    victim.write_bytes(victim.read_bytes()[:60] if content is None else content)
    with pytest.raises(ValueError, match=f"{victim} cannot be read"):
        read(pictures[0])
    assert not (cache / "folders").exists()


def test_images_of_more_than_8_bits_are_refused(pictures) -> None:
    victim = pictures[0] / "train" / "bee" / "04.png"
    write(victim, np.full((4, 6), 40_000, dtype=np.uint16))
    with pytest.raises(ValueError, match=r"04\.png .* 8 bits per channel"):
        read(pictures[0])


def test_images_of_different_sizes_need_a_size(pictures) -> None:
    path, _ = pictures
    write(path / "test" / "ant" / "01.png", np.zeros((4, 5, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="size=None; allowed where images differ"):
        read(path)
    assert read(path, size=4).test.x.shape == (6, 3, 4, 4)


def test_other_suffixes_are_passed_over(pictures, cache: Path) -> None:
    path, _ = pictures
    (path / "train" / "ant" / "Thumbs.db").write_bytes(b"?")
    assert len(folder.read_folder(path, None, cache).train_x) == 20


# torchvision's sets, from a server on this machine


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files: zero, type 8 (bytes), dimensions, sizes, data."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def mnist_files() -> dict[str, bytes]:
    rng, files = np.random.default_rng(0), {}
    for part, n in (("train", 50), ("t10k", 10)):
        files[f"{part}-images-idx3-ubyte"] = idx(
            rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        )
        files[f"{part}-labels-idx1-ubyte"] = idx((np.arange(n) % 10).astype(np.uint8))
    return files


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which its files are served."""
    (tmp_path / "server").mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    serves = partial(Quiet, directory=str(tmp_path / "server"))
    with ThreadingHTTPServer(("127.0.0.1", 0), serves) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        yield tmp_path / "server", f"http://127.0.0.1:{served.server_port}/"
        served.shutdown()
        thread.join()


@pytest.fixture
def mnist(server: tuple[Path, str], monkeypatch) -> Path:
    """The folder that torchvision's MNIST downloads a small set from."""
    folder, address = server
    resources = []
    for name, content in mnist_files().items():
        packed = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    kind = _torchvision.load().datasets.MNIST
    monkeypatch.setattr(kind, "mirrors", [address])
    monkeypatch.setattr(kind, "resources", resources)
    return folder


def test_a_set_is_downloaded_once_to_the_users_cache(
    mnist: Path, cache: Path, capsys
) -> None:
    made = data.images("MNIST")
    assert made.name == "MNIST" and made.classes == tuple("0123456789")
    assert [len(s) for s in (made.train, made.val, made.test)] == [40, 10, 10]
    assert made.train.x.shape == (40, 1, 28, 28)
    assert str(cache) in capsys.readouterr().out
    assert set(mnist_files()) <= {p.name for p in cache.rglob("*")}
    shutil.rmtree(mnist)
    again = data.images("MNIST")
    assert torch.equal(again.train.x, made.train.x)
    assert capsys.readouterr().out == ""


def test_the_folder_is_flatnb_data(mnist, cache: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLATNB_DATA", str(tmp_path / "shared"))
    data.images("MNIST")
    assert (tmp_path / "shared" / "MNIST" / "raw").is_dir() and not cache.exists()


def test_offline_the_error_says_in_one_line_what_to_do(
    mnist, cache: Path, monkeypatch
) -> None:
    nobody = "http://127.0.0.1:1/"
    monkeypatch.setattr(_torchvision.load().datasets.MNIST, "mirrors", [nobody, nobody])
    with pytest.raises(FileNotFoundError) as raised:
        data.images("MNIST")
    message = str(raised.value)
    assert "\n" not in message
    for part in (
        f"MNIST is not whole in {cache}",
        "FLATNB_DATA",
        "connect to the network",
        "'digits'",
    ):
        assert part in message


def test_a_download_cut_short_is_refused_and_does_no_harm(
    mnist: Path, cache: Path
) -> None:
    archive = mnist / "t10k-images-idx3-ubyte.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-50])
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .*corrupted"):
        data.images("MNIST")
    archive.write_bytes(whole)
    assert len(data.images("MNIST").test) == 10


def test_a_file_cut_short_in_unpacking_is_to_be_deleted(mnist: Path, cache: Path):
    before = data.images("MNIST")
    broken = cache / "MNIST" / "raw" / "train-images-idx3-ubyte"
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match=r"not whole .* Delete what is there"):
        data.images("MNIST")
    shutil.rmtree(cache / "MNIST")
    assert torch.equal(data.images("MNIST").train.x, before.train.x)


def test_of_several_that_need_a_set_one_downloads(
    mnist: Path, cache: Path, monkeypatch
):
    downloads = []
    download = _torchvision.load().datasets.MNIST.download

    def watched(part) -> None:
        if not part._check_exists():
            downloads.append(part.train)
        download(part)

    monkeypatch.setattr(_torchvision.load().datasets.MNIST, "download", watched)
    with ThreadPoolExecutor(4) as pool:
        sets = list(pool.map(lambda _: data.images("MNIST"), range(4)))
    assert downloads == [True]
    assert all(torch.equal(made.train.x, sets[0].train.x) for made in sets)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder")
def test_a_read_only_root_is_an_error_that_says_so(
    mnist: Path, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(stat.S_IREAD | stat.S_IEXEC)
    monkeypatch.setenv("FLATNB_DATA", str(tmp_path / "locked"))
    with pytest.raises(FileNotFoundError, match="Permission denied"):
        data.images("MNIST")


def test_a_root_that_is_a_file_is_an_error_that_says_so(
    mnist: Path, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("FLATNB_DATA", str(tmp_path / "taken"))
    with pytest.raises(FileNotFoundError, match="File exists"):
        data.images("MNIST")


def test_color_sets_are_downloaded_and_turned_channels_first(
    server, monkeypatch
) -> None:
    rng = np.random.default_rng(0)
    x = {
        name: rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        for name in ("one", "test")
    }
    content = {
        name: pickle.dumps({"data": v, "labels": [i % 10 for i in range(20)]})
        for name, v in x.items()
    }
    content["meta"] = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    archive = server[0] / "set.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, value in content.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(value)
            tar.addfile(info, io.BytesIO(value))
    md5 = {name: hashlib.md5(value).hexdigest() for name, value in content.items()}
    kind = _torchvision.load().datasets.CIFAR10
    for key, value in {
        "url": f"{server[1]}{archive.name}",
        "filename": archive.name,
        "tgz_md5": hashlib.md5(archive.read_bytes()).hexdigest(),
        "train_list": [["one", md5["one"]]],
        "test_list": [["test", md5["test"]]],
        "meta": {"filename": "meta", "key": "label_names", "md5": md5["meta"]},
    }.items():
        monkeypatch.setattr(kind, key, value)
    made = data.images("CIFAR10", val_fraction=0.5)
    assert made.name == "CIFAR10" and made.classes[3] == "class 3"
    assert made.test.y.tolist() == [i % 10 for i in range(20)]
    # Channels, rows and columns in their places: normalising is affine in each channel.
    expected = torch.from_numpy(x["test"]).view(20, 3, 32, 32).double()
    for c in range(3):
        a, b = made.test.x[:, c].flatten().double(), expected[:, c].flatten()
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 1 - 1e-9


@pytest.mark.data
def test_the_real_mnist(monkeypatch) -> None:
    monkeypatch.undo()
    made = data.images("MNIST")
    assert [len(s) for s in (made.train, made.val, made.test)] == [
        48_000,
        12_000,
        10_000,
    ]
    assert made.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    whole = made.train.y.bincount() + made.val.y.bincount()
    assert whole.tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]


# Augmentation


def pictures_of(
    n: int, height: int = 6, width: int = 5, channels: int = 2
) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=generator(9))


def test_crop_is_exact() -> None:
    x = pictures_of(200)
    out = augment.RandomCrop(2)(x, generator(1))
    top, left = torch.randint(5, (2, 200), generator=generator(1)).tolist()
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    for i in range(200):
        expected = padded[i, :, top[i] : top[i] + 6, left[i] : left[i] + 5]
        assert np.array_equal(out[i].numpy(), expected)


def test_all_places_of_the_crop_are_equally_likely_and_independent() -> None:
    # A bright pixel in the middle of 9 x 9 shows where the window was.
    n, pad = 50_000, 2
    x = torch.zeros(n, 1, 9, 9)
    x[:, :, 4, 4] = 1
    out = augment.RandomCrop(pad)(x, generator())
    place = out.flatten(1).argmax(1)
    row, column = 4 + pad - place // 9, 4 + pad - place % 9
    offset = (row * 5 + column).view(-1)
    counts = offset.bincount(minlength=25)
    assert len(counts) == 25
    # 50000 draws at 1/25: standard deviation 43.8; five of them.
    assert (counts - n / 25).abs().max() < 219
    pairs = (offset[:-1] * 25 + offset[1:]).bincount(minlength=625)
    assert (pairs - n / 625).abs().max() < 5 * (n / 625) ** 0.5


def test_flip_is_exact_fair_and_independent() -> None:
    n = 20_000
    x = pictures_of(n, 2, 3, 1)
    out = augment.RandomFlip()(x, generator())
    flipped = (out == x.flip(3)).flatten(1).all(1)
    same = (out == x).flatten(1).all(1)
    assert torch.equal(flipped, ~same)
    # Standard deviations: sqrt(n) / 2 = 70.7, and sqrt(3 n / 16) = 61.2 for pairs; five
    # of them.
    assert abs(int(flipped.sum()) - n / 2) < 354
    assert abs(int((flipped[1:] & flipped[:-1]).sum()) - n / 4) < 354


STEPS = [augment.RandomCrop(2), augment.RandomFlip()]


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_the_generator_decides_and_the_input_stays(step) -> None:
    x = pictures_of(64)
    before = x.clone()
    state = torch.get_rng_state()
    one, same, other = (step(x, generator(s)) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    assert one.shape == x.shape and one.dtype == x.dtype


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_memory_format_and_precision_change_no_draw(step) -> None:
    x = pictures_of(64)
    out = step(x, generator())
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(step(last, generator()), out)
    assert torch.equal(step(x.bfloat16(), generator()), out.bfloat16())


def test_augmentations_follow_one_another() -> None:
    crop, flip = augment.RandomCrop(2), augment.RandomFlip()
    split = data.Split(pictures_of(30), torch.zeros(30, dtype=torch.long))
    made = data.Data("a", split, split, split, ("b",), 30, [crop, flip])
    g = generator(5)
    order = torch.randperm(30, generator=g)
    expected = flip(crop(split.x[order], g), g)
    assert torch.equal(next(made.batches(generator(5)))[0], expected)


def test_augmentations_print_as_written_and_compare_by_value() -> None:
    steps = (augment.RandomCrop(pad=4), augment.RandomFlip())
    assert repr(steps) == "(RandomCrop(pad=4), RandomFlip())"
    assert steps == (augment.RandomCrop(4), augment.RandomFlip())
    assert steps[0] != augment.RandomCrop(3)


def test_augmentations_name_what_is_out_of_range() -> None:
    with pytest.raises(ValueError, match="pad=0"):
        augment.RandomCrop(0)
    with pytest.raises(RuntimeError, match="Padding size should be less"):
        augment.RandomCrop(5)(pictures_of(1), generator())


# Hostile folders


def folder_of(path: Path, images: dict[str, Image.Image], **options: object) -> Path:
    """An image folder in which all classes have the images given, by file name."""
    for part, name in [(p, c) for p in ("train", "test") for c in "ab"]:
        (path / part / name).mkdir(parents=True, exist_ok=True)
        for file, image in images.items():
            image.save(path / part / name / file, **options)
    return path


def grey(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(
        0, 256, (height, width), dtype=np.uint8
    )
    return Image.fromarray(values)


@pytest.mark.parametrize(
    "shape", [(1, 60_000), (60_000, 1), (2, 30_001), (1, 1), (3, 5)]
)
def test_a_strip_is_cropped_before_it_is_resized(
    shape, tmp_path: Path, cache, monkeypatch
) -> None:
    made = []
    resize = Image.Image.resize

    def watched(image, size, *more, **options):
        result = resize(image, size, *more, **options)
        made.append(result.size)
        return result

    monkeypatch.setattr(Image.Image, "resize", watched)
    path = folder_of(tmp_path / "f", {"1.png": grey(*shape), "2.png": grey(*shape)})
    x = folder.read_folder(path, 224, cache).train_x
    assert x.shape == (4, 1, 224, 224)
    assert set(made) == {(224, 224)}


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (33, 33), (9, 200)])
def test_resizing_is_that_of_torchvision(shape, tmp_path: Path, cache) -> None:
    """Its Resize of the shorter side and CenterCrop round the longer side, and the
    place.
    """
    from torchvision.transforms import functional

    image = Image.fromarray(
        (np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % 256).astype(np.uint8)
    )
    path = folder_of(tmp_path / "f", {"1.png": image, "2.png": image})
    x = folder.read_folder(path, 16, cache).train_x[0, 0].float()
    expected = functional.pil_to_tensor(
        functional.center_crop(functional.resize(image, 16), 16)
    )
    pixel = 255 / min(
        shape
    )  # by which the ramp rises in a pixel of the result, at most
    assert (x - expected[0].float()).abs().mean() < pixel


def test_decompression_bombs_are_refused(tmp_path: Path, cache, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    path = folder_of(tmp_path / "f", {f"{i}.png": grey(11, 11 + i) for i in range(4)})
    with pytest.raises(ValueError, match=r"cannot be read .*decompression bomb"):
        folder.read_folder(path, 5, cache)


@pytest.mark.parametrize("part", ["train/a", "train/b/1.png", "test/b", "train"])
@pytest.mark.parametrize("target", ["itself", "nowhere", "through a file"])
def test_links_that_lead_nowhere_are_named(
    part: str, target: str, tmp_path: Path, cache
) -> None:
    path = folder_of(tmp_path / "f", {"1.png": grey(4, 4), "2.png": grey(4, 4)})
    place = path / part
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    targets = {
        "itself": place,
        "nowhere": tmp_path / "gone",
        "through a file": Path(__file__) / "a",
    }
    place.symlink_to(targets[target])
    with pytest.raises((ValueError, OSError)) as error:
        read(path)
    message = str(error.value)
    assert str(place) in message or "the same in both" in message or part == "train"


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("end", ["png", "jpg", "tif", "webp"])
def test_images_are_turned_as_exif_says(
    orientation: int, end: str, tmp_path: Path, cache
) -> None:
    shown = Image.fromarray(
        np.repeat(np.repeat([[0, 90], [170, 250], [40, 210]], 8, 0), 8, 1).astype(
            np.uint8
        )
    )
    T = Image.Transpose
    stored = {
        2: T.FLIP_LEFT_RIGHT,
        3: T.ROTATE_180,
        4: T.FLIP_TOP_BOTTOM,
        5: T.TRANSPOSE,
        6: T.ROTATE_90,
        7: T.TRANSVERSE,
        8: T.ROTATE_270,
    }
    image = shown.transpose(stored[orientation]) if orientation in stored else shown
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {
        "webp": {"lossless": True},
        "jpg": {"quality": 100},
        "tif": {"compression": "tiff_lzw"} if orientation in stored else {},
    }
    images = {f"{i}.{end}": image for i in range(2)}
    path = folder_of(tmp_path / "f", images, exif=exif, **options.get(end, {}))
    x = folder.read_folder(path, None, cache).train_x[0, 0].int()
    assert x.shape == (24, 16)
    assert (x - torch.from_numpy(np.array(shown)).int()).abs().max() < 6


def test_broken_exif_data_say_nothing(tmp_path: Path, cache) -> None:
    image = grey(4, 6)
    exif = b"Exif\0\0II*\0\xff\xff"
    path = folder_of(tmp_path / "f", {"1.png": image, "2.png": image}, exif=exif)
    assert folder.read_folder(path, None, cache).train_x.shape == (4, 1, 4, 6)


def test_a_cache_of_another_decoder_is_not_used(
    tmp_path: Path, cache, monkeypatch
) -> None:
    path = folder_of(tmp_path / "f", {"1.png": grey(4, 4), "2.png": grey(4, 4)})
    folder.read_folder(path, None, cache)
    monkeypatch.setattr(folder, "_DECODER", 99)
    decoded = []
    decode = folder._decode

    def watched(path: str, size: int | None) -> np.ndarray:
        decoded.append(path)
        return decode(path, size)

    monkeypatch.setattr(folder, "_decode", watched)
    folder.read_folder(path, None, cache)
    assert decoded


@pytest.mark.parametrize("fraction", [1e-9, 0.1, 0.5, 0.9, 1 - 1e-9])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_images_for_a_split_are_counted(
    n: int, fraction: float, tmp_path: Path
) -> None:
    path = folder_of(tmp_path / "f", {f"{i}.png": grey(2, 2) for i in range(n)})
    kept = math.ceil(fraction * 2 * n)
    if n > 1 and 2 <= kept <= 2 * n - 2:
        assert len(read(path, val_fraction=fraction).val) == kept
        return
    with pytest.raises(ValueError, match=r"test_size|least populated class"):
        read(path, val_fraction=fraction)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A file with bytes flipped, cut out, doubled, or put before it."""
    at = draw.randrange(len(content))
    n = draw.choice([1, 1, 8, 60])
    noise = draw.randbytes(n)
    return draw.choice(
        [
            content[:at] + noise + content[at + n :],
            content[:at] + content[at + n :],
            content[:at] + content[max(0, at - n) :],
            noise + content,
            content[:at],
            b"",
        ]
    )


SUFFIXES = (".bmp", ".jpg", ".pgm", ".png", ".tif", ".webp")


@pytest.mark.parametrize("end", SUFFIXES)
def test_damaged_images_are_read_or_named(end: str, tmp_path: Path, cache) -> None:
    """Whatever the bytes: an image of its size, or an error with the file's name."""
    path = folder_of(
        tmp_path / "f", {f"1{end}": grey(9, 7), f"2{end}": grey(9, 7, seed=1)}
    )
    victim = path / "train" / "b" / f"2{end}"
    whole = victim.read_bytes()
    for seed in range(40):
        victim.write_bytes(damaged(whole, random.Random(seed)))
        os.utime(victim, ns=(seed, seed))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x = folder.read_folder(path, 8, cache).train_x
        except ValueError as error:
            assert f"{victim} cannot be read" in str(error)
        else:
            assert x.shape[0] == 4 and x.shape[2:] == (8, 8)
