"""Records: results, their settings and provenance, a JSON file per task and method.

`root()/<name>.json` has the form of records.schema.json, `null` where there is no
number. Reading or verifying it calls nothing that it names: it may come from anyone.
`root()/verified.json` keeps what verifying found.
"""

import datetime
import difflib
import glob
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from filelock import FileLock

from flatnb._checks import sequence, shown
from flatnb._files import whole
from flatnb.results import form
from flatnb.results.form import RecordError
from flatnb.results.jobs import Job
from flatnb.results.provenance import PACKAGE, code, machine

_VERIFIED = "verified.json"


def root() -> Path:
    """The folder of records: $FLATNB_RECORDS, else book/records of this checkout.

    >>> root().name
    'records'
    """
    if folder := os.environ.get("FLATNB_RECORDS"):
        return Path(folder)
    if not (PACKAGE.parent / "_toc.yml").is_file():
        raise RecordError(
            "flatnb is installed without its records: set FLATNB_RECORDS to a folder, "
            "or install a clone with `pip install -e .`"
        )
    return PACKAGE.parent / "book" / "records"


def names() -> list[str]:
    """The names of all records, sorted.

    >>> "plane/gaussian-0/SAM/narrow-grid" in names()
    True
    """
    paths = glob.glob("**/*.json", root_dir=root(), recursive=True)  # no hidden ones
    return sorted(path.removesuffix(".json") for path in paths if path != _VERIFIED)


def match(patterns: Iterable[str], known: Sequence[str]) -> list[str]:
    """Those of the `known` names that fit a shell-like pattern; each must fit some.

    >>> match(["plane/*"], ["plane/a/SAM", "images/b/SAM"])
    ['plane/a/SAM']
    """
    fits: dict[str, None] = {}
    for pattern in sequence("patterns", patterns, str, "texts, such as 'plane/*'"):
        matches = [name for name in known if fnmatchcase(name, pattern)]
        if not matches:
            near = difflib.get_close_matches(pattern, known, n=5, cutoff=0.0)
            closest = f"the closest are {', '.join(near)}" if near else "nothing exists"
            raise RecordError(f"nothing is named {pattern}; {closest}")
        fits |= dict.fromkeys(matches)
    return list(fits)


def load(name: str) -> dict[str, Any]:
    """The record of a name, a dict.

    Raises:
        RecordError: there is none, or the file is not of the form.

    >>> load("plane/gaussian-0/SAM/narrow-grid")["method"]
    'SAM'
    """
    path = root() / f"{name}.json"
    if not path.exists():
        raise RecordError(f"no record {name} in {root()}: see `flatnb records list`")
    record = form.parse(path.read_bytes(), str(path))
    if record["name"] != name:
        raise RecordError(f"{path} holds the record {record['name']}: rename one")
    return record


def lookup(data: Any, path: str) -> Any:
    """What stands at a dotted path of nested dicts and lists (-1: the last).

    >>> lookup({"runs": [{"norm": 2.0}]}, "runs.-1.norm")
    2.0
    """
    for key in path.split("."):
        try:
            data = data[int(key)] if isinstance(data, list) else data[key]
        except (KeyError, IndexError, TypeError, ValueError):
            keys = ", ".join(data) if isinstance(data, dict) else shown(data)
            raise RecordError(f"no {key!r} in {path}; there is {keys}") from None
    return data


def selected(record: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Metric -> its final value per seed, at the setting that was chosen for the seed.

    >>> record = load("plane/gaussian-0/SAM/narrow-grid")
    >>> len(selected(record)["test_loss"]) == len(record["seeds"])
    True
    """
    chosen = record["selection"]["chosen"]
    return {
        metric: [table[setting][seed] for seed, setting in enumerate(chosen)]
        for metric, table in record["final"].items()
    }


def frame(record: Mapping[str, Any]) -> pandas.DataFrame:
    """The selection of one record as a table, a row for each setting and seed.

    Columns setting (its index), the hyperparameters, seed and the final metrics; NaN
    where a run failed or a setting lacks the hyperparameter.

    >>> record = load("plane/gaussian-0/SAM/narrow-grid")
    >>> len(frame(record)) == len(record["settings"]) * len(record["seeds"])
    True
    """
    settings, seeds = record["settings"], record["seeds"]
    columns = setting_columns(settings, np.arange(len(settings)).repeat(len(seeds)))
    columns["seed"] = np.tile(seeds, len(settings))
    for metric, table in record["final"].items():
        columns[metric] = np.array(table, dtype=float).ravel()
    return pandas.DataFrame(columns)


def setting_columns(
    settings: Sequence[Mapping[str, Any]], indices: Sequence[int] | np.ndarray
) -> dict[str, Any]:
    """Columns of a table: setting, and the hyperparameters of the settings of these
    indices, NaN where a setting lacks one.

    >>> setting_columns([{"lr": 0.1}, {"lr": 0.2}], [1, 1])["lr"].tolist()
    [0.2, 0.2]
    """
    table = pandas.DataFrame(settings)
    rows = np.asarray(indices, dtype=int)
    return {"setting": rows} | {name: table[name].to_numpy()[rows] for name in table}


def save(record: Mapping[str, Any], *, replace: bool = False) -> Path:
    """Write a record to its file below `root()`, whole or not at all; returns the file.

    Results (final, curves, the sample's metrics, provenance) are kept to 6 significant
    digits, NaN and infinity as null; all else exactly. Arrays and tensors become lists.
    The same result with another provenance leaves the file as it is; another result of
    that name is a RecordError unless `replace` is set.

    >>> save(load("plane/gaussian-0/SAM/narrow-grid")).name  # it is there already
    'narrow-grid.json'
    """
    content = form.plain(record)
    form.check(content)
    path = root() / f"{content['name']}.json"
    if path.exists() and not replace:
        before = {**load(content["name"]), "provenance": content["provenance"]}
        if before == content:
            return path
        raise RecordError(f"{path} holds another result: replace=True replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = form.schema()["properties"]
    ordered = {key: content[key] for key in keys if key in content}
    with whole(path) as file:
        file.write(form.dump(ordered) + "\n")
    return path


def check_sample(record: Mapping[str, Any], sample: Job) -> None:
    """RecordError unless the record's sample is that of its experiment; what it does
    not name may have been added since, with a default."""
    stated = {key: record["sample"][key] for key in ("call", "settings")}
    expected = {"call": sample.call, "settings": form.plain(sample.settings)}
    if not _agrees(stated, expected):
        raise RecordError(
            f"{record['name']} is not verified, because its sample is not that of the "
            f"experiment of this name, {shown(sample)}"
        )


def _agrees(stated: Any, expected: Any) -> bool:
    """Whether they are equal, but for keys that only `expected` has."""
    if isinstance(stated, dict) and isinstance(expected, dict):
        return stated.keys() <= expected.keys() and all(
            _agrees(part, expected[key]) for key, part in stated.items()
        )
    return stated == expected


def verify(record: Mapping[str, Any], sample: Job) -> pandas.DataFrame:
    """Repeat a record's sample, and hold each of its metrics against the record.

    What runs is `sample`, `Experiment.sample` of the record's name; if the record
    states another, or a metric that it does not return, it is a RecordError. Columns
    metric, recorded, tolerance, repeated, inside (the two differ by the tolerance at
    most, or neither is a number).

    >>> job = {"call": "json:loads", "settings": {"s": "[2.0]"}}
    >>> record = {"sample": {**job, "metrics": {"0": 2.1}, "tolerance": {"0": 0.2}}}
    >>> verify(record, Job(**job))["inside"].tolist()
    [True]
    """
    check_sample(record, sample)
    result = form.plain(sample.run(), "record.sample.metrics")
    sampled = record["sample"]
    columns = {"recorded": sampled["metrics"], "tolerance": sampled["tolerance"]}
    table = pandas.DataFrame(columns, dtype=float).rename_axis("metric").reset_index()
    repeated = [lookup(result, metric) for metric in table["metric"]]
    table["repeated"] = np.array(repeated, dtype=float)
    inside = [  # one by one: numpy before 2 takes no tolerances beside a NaN
        np.isclose(found, stated, rtol=1e-12, atol=most, equal_nan=True)
        for _, stated, most, found in table.itertuples(index=False)
    ]
    return table.assign(inside=np.array(inside, dtype=bool))


def verified() -> dict[str, Any]:
    """What `keep_check` wrote: name -> part -> what a repetition found.

    >>> isinstance(verified(), dict)
    True
    """
    path = root() / _VERIFIED
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RecordError(
            f"{path} is not JSON: {error}; restore or remove it"
        ) from None


def keep_check(
    record: Mapping[str, Any], part: str, checks: pandas.DataFrame | None
) -> None:
    """Write what repeating a part ("sample", "whole") of a record found to the file of
    `verified`; entries of other records, and of the other part, stay.

    An entry has the date of the record, date, code and device of the repetition, and
    from the table of `verify`, change, {metric: repeated - recorded}, and inside. With
    None, of a repetition that failed, nothing was inside. (Older entries have off in
    place of change, without its sign.)
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry: dict[str, Any] = {
        "record": record["provenance"]["date"],
        "date": now,
        "code": code(),
        "device": machine()["device"],
        "change": {},
        "inside": checks is not None and bool(checks["inside"].all()),
    }
    if checks is not None:
        gaps = checks["repeated"] - checks["recorded"]
        gaps[checks["repeated"].isna() & checks["recorded"].isna()] = 0.0
        change = dict(zip(checks["metric"], gaps, strict=True))
        entry["change"] = form.plain(change, "record.sample.metrics")
    with FileLock(root() / f".{_VERIFIED}.lock"):
        entries = verified()
        entries.setdefault(record["name"], {})[part] = entry
        with whole(root() / _VERIFIED) as file:
            file.write(form.dump(dict(sorted(entries.items()))) + "\n")


def dashboard() -> pandas.DataFrame:
    """What was repeated of each record: a row per record and part.

    A record of which nothing was repeated has one row.

    Columns name, method, schema, device, date (of the record), repeated ("sample",
    "whole", or ""), on (the day), off (the largest difference of a metric; NaN if a
    number was missing), accuracy (the change of the test accuracy, NaN if its sign is not
    known), inside (or None). What was repeated of an earlier record of that name does
    not count.

    >>> "plane/gaussian-0/SAM/narrow-grid" in set(dashboard()["name"])
    True
    """
    entries, rows = verified(), []
    for name in names():
        record = load(name)
        made = record["provenance"]
        facts = {key: record[key] for key in ("name", "method", "schema")}
        facts |= {"device": made["device"], "date": made["date"][:10]}
        nothing = dict.fromkeys(("off", "accuracy", "inside"))
        nothing |= {"repeated": "", "on": ""}
        found = [
            {
                "repeated": part,
                "on": entry["date"][:10],
                **_changes(entry),
                "inside": entry["inside"],
            }
            for part, entry in sorted(entries.get(name, {}).items())
            if entry["record"] == made["date"]
        ]
        rows += [facts | entry for entry in found or [nothing]]
    table = pandas.DataFrame(rows)
    return table.astype({"off": float, "accuracy": float}) if rows else table


def _changes(entry: Mapping[str, Any]) -> dict[str, float | None]:
    """The columns off and accuracy of `dashboard`."""
    change = entry.get("change", {})
    sizes = np.abs(np.array(list((change or entry.get("off", {})).values()), float))
    of_accuracy = (v for name, v in change.items() if ".test_accuracy." in name)
    off = float(sizes.max()) if sizes.size else None
    return {"off": off, "accuracy": next(of_accuracy, None)}
