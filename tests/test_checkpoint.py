"""Checkpoints whose content was changed, paths where none can lie, links put in the
way.
"""

import functools
import random
import re
import secrets

import pytest
import torch

import flatnb
from flatnb import _files, data, models

DAMAGED = r"run\.pt is damaged, or .*Delete it to start"


@functools.cache
def points():
    return data.plane("gaussian", n_train=20, n_val=4, n_test=4, batch_size=10)


def run(path):
    """Two epochs of a small net, or the rest of them; the net's parameters."""
    torch.manual_seed(1)
    model = models.mlp(2, 4, 1, 2)
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3])
    flatnb.fit(
        model,
        points(),
        flatnb.ERM(),
        optimizer,
        epochs=2,
        seed=0,
        every=2,
        scheduler=scheduler,
        checkpoint=path,
    )
    return list(model.parameters())


def test_a_changed_byte_of_the_content_is_found(tmp_path):
    path = tmp_path / "run.pt"
    trained = run(path)
    whole, draw, harmless = path.read_bytes(), random.Random(0), 0
    for _ in range(60):
        changed, at = bytearray(whole), draw.randrange(len(whole))
        changed[at] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            resumed = run(path)
        except ValueError as error:
            assert re.search(DAMAGED, str(error))
        else:  # it lies between the parts of the archive
            harmless += 1
            assert all(map(torch.equal, resumed, trained))
        path.write_bytes(whole[:at])
        with pytest.raises(ValueError, match=DAMAGED):
            run(path)
    assert harmless < 60


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", {}),
        ("model", {"x": torch.ones(3)}),
        ("optimizer", {}),
        ("model", None),
        ("optimizer", {"state": {}, "param_groups": []}),
        ("scheduler", 3),
        ("optimizer", [1]),
    ],
)
def test_parts_that_do_not_fit_are_refused(name, value, tmp_path):
    path = tmp_path / "run.pt"
    run(path)
    state = torch.load(path, weights_only=True)
    state["parts"][name] = value
    torch.save(state, path)
    with pytest.raises(ValueError, match=DAMAGED):
        run(path)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("gone/run.pt", ValueError),
        ("file/run.pt", ValueError),
        ("folder", ValueError),
        ("", ValueError),
        (3, TypeError),
    ],
)
def test_a_path_where_no_file_can_be_is_refused_before_anything_runs(
    place, error, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(error, match=r"checkpoint=.*; allowed: None, or the path"):
        run(place)


# --- files --------------------------------------------------------------------------


def test_no_link_is_followed(tmp_path, monkeypatch):
    victim, path = tmp_path / "victim", tmp_path / "a.json"
    victim.write_text("mine")
    for name in (
        "a.json.part",
        ".a.json.part",
        "a.part",
    ):  # names that a writer might take
        (tmp_path / name).symlink_to(victim)
    path.symlink_to(victim)  # the link itself is replaced
    with _files.whole(path) as file:
        file.write("new")
    assert path.read_text() == "new" and not path.is_symlink()
    monkeypatch.setattr(secrets, "token_hex", lambda n: "guessed")
    (tmp_path / ".a.json.guessed.part").symlink_to(victim)
    with pytest.raises(FileExistsError), _files.whole(path) as file:
        file.write("newer")
    assert victim.read_text() == "mine" and path.read_text() == "new"


def test_an_error_leaves_the_file_as_it_was_and_no_other_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), _files.whole(path) as file:
        file.write(str(1 / 0))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_killed_writers_left_is_swept_up(tmp_path):
    for name in (
        ".a[1].json.12.part",
        ".a[1].json.part",
        ".a1.json.12.part",
        "a[1].json",
    ):
        (tmp_path / name).touch()
    _files.sweep_up(tmp_path / "a[1].json")
    assert {path.name for path in tmp_path.iterdir()} == {
        ".a[1].json.part",
        ".a1.json.12.part",
        "a[1].json",
    }
