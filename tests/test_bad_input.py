"""Odd values for each public parameter: an error that names the parameter, or a listed
exception.

Each case is called once as it should be, then with one parameter at a time replaced by
each of `ODD`. Allowed are ValueError, TypeError and FileNotFoundError whose text names
the parameter; what is taken instead must be listed, with the values.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_records import NAME, example
from torch import nn

import flatnb
from flatnb import models
from flatnb.data import Data, Split, images, mnist1d, plane, stack
from flatnb.results import compare, records, sweep

ODD: dict[str, Any] = {
    "None": None,
    "text": "a",
    "no_text": "",
    "minus": -1,
    "half": 0.5,
    "nan": math.nan,
    "True": True,
    "inf": 1e400,
    "list": [],
    "dict": {},
    "listed": [None],
    "texts": ["a"],
    "huge": 10**30,
    "longest": 10**5000,
    "object": object(),
    "bytes": b"a",
    "class": int,
    "tensor": torch.zeros(2, 3),
    "complex": 1j,
    "nul": "a\0b",
}


def net() -> nn.Module:
    return models.mlp(2, 3, 1, 2)


@functools.cache
def points() -> Data:
    return plane("gaussian", n_train=4, n_val=4, n_test=4, batch_size=2)


def training() -> dict[str, Any]:
    model = net()
    return {
        "model": model,
        "data": points(),
        "method": flatnb.ERM(),
        "seed": 0,
        "epochs": 1,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "every": 1,
        "dtype": None,
        "checkpoint": None,
    }


# function, arguments that it takes, and by parameter the odd ones that it may take,
# too.
CASES: dict[
    str, tuple[Callable[..., Any], Callable[[], dict[str, Any]], dict[str, str]]
] = {
    "fit": (
        flatnb.fit,
        training,
        {
            "checkpoint": "None text",
            "dtype": "None",
            "every": "huge longest",
        },
    ),
    "fit_grid": (
        functools.partial(
            flatnb.fit_grid, make_data=lambda seed: points(), method=flatnb.ERM()
        ),
        lambda: {
            "make_model": net,
            "seeds": [0],
            "epochs": 1,
            "every": None,
            "seed": 0,
        },
        {"every": "None huge longest"},
    ),
    "plane": (
        plane,
        lambda: {
            "name": "spiral",
            "n_train": 4,
            "n_val": 4,
            "n_test": 4,
            "noise": 0.1,
            "seed": 0,
            "batch_size": 2,
        },
        {"seed": "huge longest", "batch_size": "huge longest"},
    ),
    "mnist1d": (
        mnist1d,
        lambda: {
            "n_train": 4,
            "n_val": 4,
            "n_test": 4,
            "label_noise": 0.1,
            "seed": 0,
            "batch_size": 2,
        },
        {"label_noise": "half", "seed": "huge longest", "batch_size": "huge longest"},
    ),
    "images": (
        images,
        lambda: {
            "name": "digits",
            "folder": None,
            "val_fraction": 0.2,
            "n_train": 4,
            "label_noise": 0.0,
            "batch_size": 64,
            "size": None,
        },
        {
            "folder": "None",
            "size": "None",
            "val_fraction": "half",
            "n_train": "None",
            "label_noise": "half",
            "batch_size": "huge longest",
        },
    ),
    "Split": (
        Split,
        lambda: {"x": torch.zeros(2, 3), "y": torch.zeros(2, dtype=torch.long)},
        {"x": "tensor"},
    ),
    "Data": (
        functools.partial(Data, name="a", classes=("a", "b")),
        lambda: {
            **{p: getattr(points(), p) for p in ("train", "val", "test")},
            "batch_size": 2,
        },
        {"batch_size": "huge longest"},
    ),
    "Data.batches": (
        lambda generator: list(points().batches(generator)),
        lambda: {"generator": torch.Generator()},
        {"generator": "None"},
    ),
    "stack": (stack, lambda: {"parts": [points(), points()]}, {}),
    "select": (
        compare.select,
        lambda: {"patterns": [NAME], "runs": "selected"},
        {"patterns": "list"},
    ),
    "run": (
        lambda jobs, workers: sweep.run(jobs, "runs", workers=workers),
        lambda: {"jobs": [], "workers": None},
        {"jobs": "list", "workers": "None huge longest"},
    ),
    "match": (
        lambda patterns: records.match(patterns, ["a"]),
        lambda: {"patterns": ["a"]},
        {"patterns": "list texts"},
    ),
}


# Where the error speaks of the value by another word than the parameter's name.
WORDS = {
    "patterns": "nothing is named",
    "metrics": "metric",
    "name": "no record",
    "folder": "embedded null",
    "checkpoint": "embedded null",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATNB_RECORDS", str(tmp_path / "records"))
    monkeypatch.delenv("FLATNB_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    record = example()
    record["final"] |= {name: [[1.0, 2.0]] * 3 for name in ("trace", "train_loss")}
    records.save(record)


@pytest.mark.parametrize("case", CASES)
def test_odd_values_are_refused_by_name(case: str) -> None:
    function, good, accepted = CASES[case]
    function(**good())
    wrong = []
    for parameter in good():
        for kind, value in ODD.items():
            try:
                function(**{**good(), parameter: value})
            except (ValueError, TypeError, FileNotFoundError) as error:
                named = parameter in str(error) or WORDS.get(
                    parameter, parameter
                ) in str(error)
                if not named or len(str(error)) > 3000:
                    wrong.append(
                        f"{parameter}, {kind}: {type(error).__name__}: {error}"[:300]
                    )
            except Exception as error:
                wrong.append(
                    f"{parameter}, {kind}: {type(error).__name__}: {error}"[:300]
                )
            else:
                if kind not in accepted.get(parameter, "").split():
                    wrong.append(f"{parameter}, {kind}: taken")
    assert not wrong, "\n" + "\n".join(wrong)
