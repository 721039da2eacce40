"""Image data sets: normalization, splits, options, and what is downloaded."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import stat
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from flatnb import _torchvision, data
from flatnb.data import augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The digits


def test_digits_are_normalized_by_their_training_part() -> None:
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
    parts = torch.cat([s.x for s in (made.train, made.val, made.test)]).flatten(1)
    levels = parts.unique()
    assert len(levels) == len(raw.unique()) == 17
    back = torch.bucketize(parts, levels).tolist()
    assert sorted(back) == sorted(raw.long().tolist())


def test_the_seed_moves_the_validation_part_and_not_the_test_set() -> None:
    one, same, other = (data.images(seed=s) for s in (1, 1, 2))
    assert torch.equal(one.train.x, same.train.x) and torch.equal(one.val.y, same.val.y)
    assert not torch.equal(one.val.y, other.val.y)
    assert torch.equal(one.test.y, other.test.y)


def test_few_images_are_drawn_from_the_whole_normalized_set() -> None:
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
    assert (made.name, made.batch_size, made.augment) == ("digits", 7, [flip])
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
        ({"seed": -1}, "'random_state' parameter .* Got -1"),
        ({"seed": 1.5}, r"'random_state' parameter .* Got 1\.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"size": 16}, "size=16; allowed for digits: None"),
    ],
)
def test_options_out_of_range_are_named(arguments: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        data.images(**arguments)


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
    labels = [i % 10 for i in range(20)]
    x = {}
    content = {}
    for name in ("one", "test"):
        x[name] = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        content[name] = pickle.dumps({"data": x[name], "labels": labels})
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
    assert made.test.y.tolist() == labels
    # Channels, rows and columns in their places: normalizing is affine in each channel.
    expected = torch.from_numpy(x["test"]).view(20, 3, 32, 32).double()
    for c in range(3):
        a, b = made.test.x[:, c].flatten().double(), expected[:, c].flatten()
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 1 - 1e-9


@pytest.mark.data
def test_the_real_mnist(monkeypatch) -> None:
    monkeypatch.undo()
    made = data.images("MNIST")
    sizes = [len(s) for s in (made.train, made.val, made.test)]
    assert sizes == [48_000, 12_000, 10_000]
    assert made.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    whole = made.train.y.bincount() + made.val.y.bincount()
    published = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert whole.tolist() == published
