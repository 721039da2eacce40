"""Folders of images: what is read, what is kept, and hostile ones."""

import math
import os
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flatnb import data
from flatnb.data import folder
from flatnb.data.images import BUILT_IN


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


def folder_of(path: Path, images: dict[str, Image.Image], **options: object) -> Path:
    """An image folder in which all classes have the images given, by file name."""
    for part, name in [(p, c) for p in ("train", "test") for c in "ab"]:
        (path / part / name).mkdir(parents=True, exist_ok=True)
        for file, image in images.items():
            image.save(path / part / name / file, **options)
    return path


def gray(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(
        0, 256, (height, width), dtype=np.uint8
    )
    return Image.fromarray(values)


def pngs(arrays: list[np.ndarray]) -> dict[str, Image.Image]:
    return {f"{i}.png": Image.fromarray(array) for i, array in enumerate(arrays)}


def test_a_folder_is_read_pixel_by_pixel(pictures) -> None:
    path, arrays = pictures
    kept = folder.read_folder(path, None)
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


def test_a_folder_becomes_normalized_data(pictures) -> None:
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


def test_channels_are_normalized_apart_and_a_constant_one_becomes_zero(
    tmp_path: Path,
) -> None:
    arrays = list(np.random.default_rng(0).integers(0, 256, (4, 3, 3, 3), np.uint8))
    for array in arrays:
        array[..., 1] = 77
    made = read(folder_of(tmp_path / "f", pngs(arrays)), val_fraction=0.25)
    assert torch.equal(made.test.x[:, 1], torch.zeros(8, 3, 3))
    assert made.test.x.isfinite().all() and made.test.x[:, 0].std() > 0.5


def test_gray_images_have_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    arrays = [np.full((2, 2), value, dtype=np.uint8) for value in (0, 10)]
    path = folder_of(tmp_path / "f", pngs(arrays))
    gray = folder.read_folder(path, None)
    assert gray.train_x.shape == (4, 1, 2, 2)
    assert gray.train_x[:, 0, 0, 0].tolist() == [0, 10, 0, 10]
    color = np.full((2, 2, 3), (1, 2, 3), dtype=np.uint8)
    write(path / "test" / "b" / "1.png", color)
    mixed = folder.read_folder(path, None)
    assert mixed.train_x[:, :, 0, 0].tolist() == [[v] * 3 for v in (0, 10, 0, 10)]
    assert mixed.test_x[-1, :, 0, 0].tolist() == [1, 2, 3]


def test_size_resizes_the_shorter_side_and_crops_the_middle(tmp_path: Path) -> None:
    # Left and right quarter black: at half size, the middle 4 x 4 of 4 x 8 is white.
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 4:12] = 255
    arrays = [np.ascontiguousarray(wide.transpose(1, 0, 2)), wide]
    x = folder.read_folder(folder_of(tmp_path / "f", pngs(arrays)), 4).train_x
    assert x.shape == (4, 3, 4, 4)
    assert x[1, :, :, 1:3].min() == 255 and x[0, :, 1:3].min() == 255
    assert x.float().mean() > 230


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The paths of the images decoded so far."""
    paths = []
    decode = folder._decode

    def watched(path: str, size: int | None) -> np.ndarray:
        paths.append(path)
        return decode(path, size)

    monkeypatch.setattr(folder, "_decode", watched)
    return paths


def test_a_folder_is_decoded_once(pictures, decoded) -> None:
    path, _ = pictures
    first = folder.read_folder(path, None)
    assert len(decoded) == 26
    again = folder.read_folder(path, None)
    assert len(decoded) == 26
    assert all(torch.equal(a, b) for a, b in zip(first[:4], again[:4], strict=True))
    folder.read_folder(path, 4)
    assert len(decoded) == 52, "another size is another set"


@pytest.mark.parametrize("change", ["content", "removed", "added"])
def test_a_changed_folder_is_read_again(pictures, change: str) -> None:
    path, _ = pictures
    before = folder.read_folder(path, None)
    victim = path / "train" / "ant" / "00.png"
    if change == "content":
        was = victim.stat()
        write(victim, np.full((4, 6, 3), 9, dtype=np.uint8))
        os.utime(victim, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
    elif change == "removed":
        victim.unlink()
    else:
        shutil.copy(victim, victim.with_name("zz.PNG"))
    after = folder.read_folder(path, None)
    assert len(after.train_x) == {"removed": 19, "added": 21}.get(change, 20)
    assert bool((after.train_x[0] == 9).all()) == (change == "content")
    assert torch.equal(after.test_x, before.test_x)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_folder_under_a_built_in_name_is_refused(pictures, name: str) -> None:
    with pytest.raises(
        ValueError, match=f"name='{name}' with a folder; allowed: any but digits"
    ):
        data.images(name, folder=pictures[0])


def test_a_name_beside_a_built_in_one_is_allowed(pictures) -> None:
    assert data.images("cifar10-jpeg", folder=pictures[0]).name == "cifar10-jpeg"


def test_a_folder_without_a_split_holds_a_fifth_of_each_class_out(
    pictures,
) -> None:
    path, arrays = pictures
    (path / "train" / "LICENSE").write_text("no class")
    read_once = folder.read_folder(path / "train", None)
    assert read_once.classes == ("ant", "bee")
    assert read_once.train_y.tolist() == [0] * 8 + [1] * 8
    assert read_once.test_y.tolist() == [0] * 2 + [1] * 2
    # Every image is in one of the parts, under its own label.
    kept = torch.cat([read_once.train_x, read_once.test_x])
    labels = torch.cat([read_once.train_y, read_once.test_y])
    for name, array in arrays.items():
        if name.startswith("train"):
            (place,) = (
                (kept == torch.from_numpy(array).movedim(2, 0))
                .all(dim=(1, 2, 3))
                .nonzero()
            )
            assert labels[place] == int("bee" in name)


def test_the_images_held_out_are_the_same_under_every_seed(pictures) -> None:
    path = pictures[0] / "train"
    parts = [read(path, val_fraction=0.25, seed=seed) for seed in (0, 1)]
    own = folder.read_folder(path, None)
    assert [len(s) for s in (parts[0].train, parts[0].val, parts[0].test)] == [12, 4, 4]
    for made in parts:
        x = made.test.x - made.test.x.mean((0, 2, 3), keepdim=True)
        y = own.test_x.float() - own.test_x.float().mean((0, 2, 3), keepdim=True)
        assert torch.corrcoef(torch.stack([x[:, 0].flatten(), y[:, 0].flatten()]))[
            0, 1
        ] == pytest.approx(1)
    assert not torch.equal(parts[0].val.x, parts[1].val.x)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_folder_with_half_a_split_is_refused(pictures, part: str) -> None:
    path, _ = pictures
    shutil.rmtree(path / part)
    with pytest.raises(FileNotFoundError, match=r"allowed: a folder with train/"):
        read(path)


def test_a_folder_of_one_class_without_a_split_is_refused(pictures) -> None:
    path, _ = pictures
    shutil.rmtree(path / "train" / "bee")
    with pytest.raises(
        ValueError, match=r"has classes \['ant'\]; allowed: two or more"
    ):
        read(path / "train")


def test_two_folders_are_kept_decoded(pictures, decoded) -> None:
    path, _ = pictures
    for part in ("train", "test", "train", "test"):
        folder.read_folder(path / part, None)
    assert len(decoded) == 26


def test_errors_of_a_folder_name_what_is_wrong(pictures, tmp_path: Path) -> None:
    path, _ = pictures
    archive = tmp_path / "set.tar.xz"
    archive.write_bytes(b"")
    for wrong in (tmp_path / "nowhere", archive):
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
def test_an_unreadable_image_is_named(pictures, content: bytes | None) -> None:
    victim = pictures[0] / "test" / "bee" / "01.png"
    victim.write_bytes(victim.read_bytes()[:60] if content is None else content)
    with pytest.raises(ValueError, match=f"{victim} cannot be read"):
        read(pictures[0])


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


def test_other_suffixes_are_passed_over(pictures) -> None:
    path, _ = pictures
    (path / "train" / "ant" / "Thumbs.db").write_bytes(b"?")
    assert len(folder.read_folder(path, None).train_x) == 20


# Hostile folders


@pytest.mark.parametrize(
    "shape", [(1, 60_000), (60_000, 1), (2, 30_001), (1, 1), (3, 5)]
)
def test_a_strip_is_cropped_before_it_is_resized(
    shape, tmp_path: Path, monkeypatch
) -> None:
    made = []
    resize = Image.Image.resize

    def watched(image, size, *more, **options):
        result = resize(image, size, *more, **options)
        made.append(result.size)
        return result

    monkeypatch.setattr(Image.Image, "resize", watched)
    path = folder_of(tmp_path / "f", {"1.png": gray(*shape), "2.png": gray(*shape)})
    x = folder.read_folder(path, 224).train_x
    assert x.shape == (4, 1, 224, 224)
    assert set(made) == {(224, 224)}


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (33, 33), (9, 200)])
def test_resizing_is_that_of_torchvision(shape, tmp_path: Path) -> None:
    """Its Resize of the shorter side and CenterCrop round the longer side, and the
    place.
    """
    from torchvision.transforms import functional

    image = Image.fromarray(
        (np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % 256).astype(np.uint8)
    )
    path = folder_of(tmp_path / "f", {"1.png": image, "2.png": image})
    x = folder.read_folder(path, 16).train_x[0, 0].float()
    expected = functional.pil_to_tensor(
        functional.center_crop(functional.resize(image, 16), 16)
    )
    pixel = 255 / min(
        shape
    )  # by which the ramp rises in a pixel of the result, at most
    assert (x - expected[0].float()).abs().mean() < pixel


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    path = folder_of(tmp_path / "f", {f"{i}.png": gray(11, 11 + i) for i in range(4)})
    with pytest.raises(ValueError, match=r"cannot be read .*decompression bomb"):
        folder.read_folder(path, 5)


@pytest.mark.parametrize("part", ["train/a", "train/b/1.png", "test/b", "train"])
@pytest.mark.parametrize("target", ["itself", "nowhere", "through a file"])
def test_links_that_lead_nowhere_are_named(
    part: str, target: str, tmp_path: Path
) -> None:
    path = folder_of(tmp_path / "f", {"1.png": gray(4, 4), "2.png": gray(4, 4)})
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
    orientation: int, end: str, tmp_path: Path
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
    x = folder.read_folder(path, None).train_x[0, 0].int()
    assert x.shape == (24, 16)
    assert (x - torch.from_numpy(np.array(shown)).int()).abs().max() < 6


def test_broken_exif_data_say_nothing(tmp_path: Path) -> None:
    image = gray(4, 6)
    exif = b"Exif\0\0II*\0\xff\xff"
    path = folder_of(tmp_path / "f", {"1.png": image, "2.png": image}, exif=exif)
    assert folder.read_folder(path, None).train_x.shape == (4, 1, 4, 6)


@pytest.mark.parametrize("fraction", [1e-9, 0.1, 0.5, 0.9, 1 - 1e-9])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_images_for_a_split_are_counted(
    n: int, fraction: float, tmp_path: Path
) -> None:
    path = folder_of(tmp_path / "f", {f"{i}.png": gray(2, 2) for i in range(n)})
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
def test_damaged_images_are_read_or_named(end: str, tmp_path: Path) -> None:
    """Whatever the bytes: an image of its size, or an error with the file's name."""
    path = folder_of(
        tmp_path / "f", {f"1{end}": gray(9, 7), f"2{end}": gray(9, 7, seed=1)}
    )
    victim = path / "train" / "b" / f"2{end}"
    whole = victim.read_bytes()
    for seed in range(40):
        victim.write_bytes(damaged(whole, random.Random(seed)))
        os.utime(victim, ns=(seed, seed))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x = folder.read_folder(path, 8).train_x
        except ValueError as error:
            assert f"{victim} cannot be read" in str(error)
        else:
            assert x.shape[0] == 4 and x.shape[2:] == (8, 8)
