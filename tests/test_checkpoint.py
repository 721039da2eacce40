"""Checkpoints whose content was changed, paths where none can lie, links put in the
way.
"""

import copy
import functools
import random
import secrets

import pytest
import torch

import flatnb
from flatnb import _files, data, models


@functools.cache
def points():
    return data.plane("gaussian", n_train=20, n_val=4, n_test=4, batch_size=10)


def run(path, method=flatnb.ERM):
    """Two epochs of a small net; the objects that a damaged checkpoint must not
    change.
    """
    torch.manual_seed(1)
    model = models.mlp(2, 4, 1, 2)
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3])
    before = copy.deepcopy(model.state_dict())
    try:
        flatnb.fit(
            model,
            points(),
            method(),
            optimizer,
            epochs=2,
            seed=0,
            every=2,
            scheduler=scheduler,
            checkpoint=path,
        )
    except ValueError:
        same = [
            torch.equal(value, before[name])
            for name, value in model.state_dict().items()
        ]
        assert all(same) and not optimizer.state
        raise


def places(node):
    """Every (container, key) below a node."""
    keys = list(node) if isinstance(node, dict) else range(len(node))
    inner = [key for key in keys if isinstance(node[key], dict | list)]
    return [(node, key) for key in keys] + [
        p for key in inner for p in places(node[key])
    ]


def other(value, draw):
    """A value of another type, or a tensor of another shape."""
    if isinstance(value, torch.Tensor) and draw.random() < 0.7:
        return draw.choice(
            [value[None], value.flatten()[:-1], value.double(), value.half()]
        )
    odd = [
        None,
        "x",
        -1,
        2.5,
        [],
        {},
        {"a": 1},
        torch.zeros(3),
        torch.zeros(0, dtype=torch.uint8),
    ]
    return draw.choice([one for one in odd if type(one) is not type(value)])


def mutate(state, draw):
    container, key = draw.choice(places(state))
    step = draw.choice(["change", "change", "remove", "add"])
    if step == "change":
        container[key] = other(container[key], draw)
    elif step == "remove":
        del container[key]
    elif isinstance(container, dict):
        container["added"] = other(None, draw)
    else:
        container.append(other(None, draw))


def damaged(path, method, seeds):
    """Every change of what a checkpoint holds is found, and nothing was loaded then."""
    run(path, method)
    whole = torch.load(path, weights_only=True)
    for seed in seeds:
        state = copy.deepcopy(whole)
        mutate(state, random.Random(seed))
        torch.save(state, path)
        with pytest.raises(
            ValueError, match=r"run\.pt is damaged, or .*Delete it to start"
        ):
            run(path, method)


def test_a_checkpoint_with_other_content_is_refused_and_loads_nothing(tmp_path):
    damaged(tmp_path / "run.pt", lambda: flatnb.NSO(0.1, seed=1), range(60))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [flatnb.ERM, lambda: flatnb.WeightNoise(0.1, seed=1)]
)
def test_many_checkpoints_with_other_content(method, tmp_path):
    damaged(tmp_path / "run.pt", method, range(1000, 3000))


def test_one_that_another_version_wrote_is_refused_and_loads_nothing(tmp_path):
    """Its form is in order, and its parts do not fit."""
    from flatnb.checkpoint import _form

    path = tmp_path / "run.pt"
    run(path)
    whole = torch.load(path, weights_only=True)
    del whole["form"]
    for name, value in (
        ("model", {}),
        ("model", {"x": torch.ones(3)}),
        ("optimizer", {}),
        ("model", None),
        ("optimizer", {"state": {}, "param_groups": []}),
        ("scheduler", 3),
        ("optimizer", [1]),
    ):
        state = copy.deepcopy(whole)
        state["parts"][name] = value
        torch.save({**state, "form": _form(state)}, path)
        with pytest.raises(
            ValueError, match=r"run\.pt is damaged, or .*Delete it to start"
        ):
            run(path)


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("gone/run.pt", FileNotFoundError, "there is no folder .*gone; make it"),
        ("file/run.pt", FileNotFoundError, "there is no folder .*file; make it"),
        ("folder", IsADirectoryError, "is a folder; give a file in it"),
        (3, TypeError, "checkpoint=3; allowed: the path of a file, or None"),
        ("", TypeError, "checkpoint=''; allowed"),
    ],
)
def test_where_no_checkpoint_can_lie_is_said_before_anything_runs(
    place, error, message, tmp_path
):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(error, match=message):
        run(tmp_path / place if isinstance(place, str) and place else place)


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


def test_an_error_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), _files.whole(path) as file:
        file.write(str(1 / 0))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", ["gone", "file"])
def test_a_missing_folder_is_named(folder, tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / folder / "a.json"
    with (
        pytest.raises(OSError, match="there is no folder") as error,
        _files.whole(path),
    ):
        pass
    assert error.value.filename == str(path)


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
