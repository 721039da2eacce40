"""Records: results with their settings and provenance, one small JSON file per task and
method.

A record lies at `root()/<name>.json` and has the form of records.schema.json, which
says what each part is. It is data alone: reading or verifying one calls nothing that it
names, so it may come from anyone; `null` stands where there is no number.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatnb._checks import flag, instance, sequence, shown
from flatnb._files import whole
from flatnb.results import form
from flatnb.results.form import RecordError

if TYPE_CHECKING:
    import pandas

    from flatnb.results.sweep import Job

PACKAGE = Path(__file__).resolve().parents[1]

# --- the folder ---------------------------------------------------------------------


def root() -> Path:
    """The folder of records: $FLATNB_RECORDS, else book/records of this checkout.

    It need not exist yet.

    Raises:
        RecordError: flatnb is installed without its repository.

    >>> root().name
    'records'
    """
    if folder := os.environ.get("FLATNB_RECORDS"):
        return Path(folder)
    if not (PACKAGE.parent / "_toc.yml").is_file():
        raise RecordError(
            "flatnb is installed without its repository, which holds the records: set "
            "FLATNB_RECORDS to a folder, or install a clone with `pip install -e .`"
        )
    return PACKAGE.parent / "book" / "records"


def names() -> list[str]:
    """The names of all records, sorted.

    >>> "plane/gaussian-0/SAM/narrow-grid" in names()
    True
    """
    folder = root()
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))
    visible = [path for path in paths if "/." not in f"/{path}"]
    return sorted(path.removesuffix(".json") for path in visible)


def match(patterns: Iterable[str], known: Sequence[str]) -> list[str]:
    """Those of the `known` names that fit one of the shell-like patterns.

    Raises:
        RecordError: a pattern that no name fits.

    >>> match(["plane/*"], ["plane/a/SAM", "images/b/SAM"])
    ['plane/a/SAM']
    """
    fits: dict[str, None] = {}
    allowed = "a list of texts, such as ['plane/*']"
    for pattern in sequence("patterns", patterns, str, allowed):
        matches = [name for name in known if fnmatchcase(name, pattern)]
        if not matches:
            near = difflib.get_close_matches(pattern, known, n=5, cutoff=0.0)
            closest = f"the closest are {', '.join(near)}" if near else "nothing exists"
            raise RecordError(f"nothing is named {pattern}; {closest}")
        fits |= dict.fromkeys(matches)
    return list(fits)


def path_of(name: str) -> Path:
    """The file of a record, whether it exists or not.

    Raises:
        RecordError: no record can have this name.

    >>> path_of("plane/gaussian-0/SAM").name
    'SAM.json'
    """
    pattern = form.schema()["properties"]["name"]["pattern"]
    # fullmatch: unlike JSON's, Python's $ also holds before a line's end.
    if not re.fullmatch(pattern, instance("name", name, str, "text")):
        raise RecordError(
            f"name={shown(name)} is no name of a record; allowed: words of A-Z a-z "
            "0-9 . _ + -, with / between them"
        )
    return root() / f"{name}.json"


# --- reading ------------------------------------------------------------------------


def load(name: str) -> dict[str, Any]:
    """The record of that name, checked.

    Raises:
        RecordError: there is none, or the file is not of the form.

    >>> load("plane/gaussian-0/SAM/narrow-grid")["method"]
    'SAM'
    """
    path = path_of(name)
    try:
        record = form.parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise RecordError(
            f"no record {name} in {root()}: `flatnb records list` shows all, `flatnb "
            "records todo` what makes the others"
        ) from None
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not JSON: {error}") from None
    if record["name"] != name:
        raise RecordError(
            f"{path} holds the record {record['name']}: the two must agree"
        )
    return record


def lookup(data: Any, path: str) -> Any:
    """What stands at a dotted path of nested dicts and lists.

    Integers index lists, from the end with -1.

    Raises:
        RecordError: the path leads nowhere; it says what there is.

    >>> lookup({"runs": [{"norm": 2.0}]}, "runs.-1.norm")
    2.0
    """
    steps: list[str] = []
    for key in instance("path", path, str, "text, as final.test_loss.0.0").split("."):
        if isinstance(data, dict) and key in data:
            data = data[key]
        elif isinstance(data, list) and key in map(str, range(-len(data), len(data))):
            data = data[int(key)]
        else:
            place = ".".join(steps) or "the top"
            keys = ", ".join(data) if isinstance(data, dict) else shown(data)
            raise RecordError(f"no {key!r} at {place}; there is {keys}")
        steps.append(key)
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
    """A row for each setting and seed: hyperparameters, `seed`, and the final metrics.

    A metric of a failed run is NaN; so is a hyperparameter that a setting lacks.

    >>> record = load("plane/gaussian-0/SAM/narrow-grid")
    >>> len(frame(record)) == len(record["settings"]) * len(record["seeds"])
    True
    """
    import pandas

    rows = []
    for i, setting in enumerate(record["settings"]):
        for j, seed in enumerate(record["seeds"]):
            final = {metric: table[i][j] for metric, table in record["final"].items()}
            rows.append({**setting, "seed": seed, **final})
    return pandas.DataFrame(rows).astype(dict.fromkeys(record["final"], float))


# --- writing ------------------------------------------------------------------------


def save(record: Mapping[str, Any], *, replace: bool = False) -> Path:
    """Write a record to its file, whole or not at all.

    Results (final, curves, the sample's metrics, provenance) are kept to 6 significant
    digits, NaN and infinity as null; what was put in (task, settings, the sample's
    settings) exactly. Arrays and tensors become lists. The same result with another
    provenance leaves the file as it is.

    Args:
        record: of the form of records.schema.json.
        replace: whether another result of that name is replaced.

    Returns:
        The file.

    Raises:
        RecordError: the record is not of the form, or another result of that name
            exists and `replace` is not set.
        OSError: the file cannot be written; what was there before is untouched.

    >>> save(load("plane/gaussian-0/SAM/narrow-grid")).name  # it is there already
    'narrow-grid.json'
    """
    instance("record", record, Mapping, "a dict of the form of records.schema.json")
    flag("replace", replace)
    order = list(form.schema()["properties"])
    try:
        content = form.plain(record, "record")
        content = {key: content[key] for key in (*order, *content) if key in content}
        text = form.dump(content)
    except (RecursionError, ValueError) as error:
        raise RecordError(f"this is not a valid record: {error}") from None
    content = form.parse(text)  # what is written can be read
    path = path_of(content["name"])
    if path.exists() and not replace:
        if _result(load(content["name"])) == _result(content):
            return path
        raise RecordError(
            f"{path} holds another result: keep it, or replace it (replace=True, or "
            "--replace on the command line)"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            file.write(text)
    except OSError as error:
        reason = f"{error.strerror}; the record is not saved, nothing else is lost"
        raise OSError(error.errno, reason, str(path)) from None
    return path


def _result(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in record.items() if key != "provenance"}


# --- repeating a sample -------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One metric of a sample, recorded and repeated."""

    metric: str
    recorded: float | None
    repeated: float | None
    tolerance: float

    @property
    def inside(self) -> bool:
        """|repeated - recorded| <= tolerance, or neither is a number."""
        if self.recorded is None or self.repeated is None:
            return self.recorded is self.repeated
        difference = abs(self.repeated - self.recorded)
        return difference <= self.tolerance + 1e-12 * abs(self.recorded)


def check_sample(record: Mapping[str, Any], sample: Job) -> None:
    """Check that a record's sample is that of its experiment.

    What the record does not name may have been added since, with a default.

    Raises:
        RecordError: it is another; it names the difference.
    """
    settings = form.plain(sample.settings, "settings")
    stated = record["sample"]["settings"]
    differences = [
        f"record.sample.settings.{name} is {shown(value)}, of the experiment "
        f"{shown(settings.get(name, 'nothing'))}"
        for name, value in stated.items()
        if not (name in settings and _agrees(value, settings[name]))
    ]
    if record["sample"]["call"] != sample.call:
        differences.insert(0, f"record.sample.call is not {sample.call}")
    if differences:
        raise RecordError(
            f"{record['name']} is not verified, because its sample is not that of the "
            f"experiment of this name: {form.one_line('; '.join(differences))}"
        )


def _agrees(stated: Any, computed: Any) -> bool:
    """Whether they are equal, but for keys that only `computed` has."""
    if isinstance(stated, dict) and isinstance(computed, dict):
        return all(
            key in computed and _agrees(part, computed[key])
            for key, part in stated.items()
        )
    if isinstance(stated, list) and isinstance(computed, list):
        return len(stated) == len(computed) and all(map(_agrees, stated, computed))
    return stated == computed


def verify(record: Mapping[str, Any], sample: Job) -> list[Check]:
    """Repeat a record's sample, and hold each of its metrics against the record.

    Args:
        record: from anywhere; nothing that it names is called.
        sample: the experiment's, which is what runs: `Experiment.sample` of the
            record's name.

    Raises:
        RecordError: the record states another sample, or a metric that the sample does
            not return.
    """
    check_sample(record, sample)
    result = form.plain(sample.run(), "record.sample.metrics")
    checks = []
    for metric, recorded in record["sample"]["metrics"].items():
        repeated = lookup(result, metric)
        if repeated is not None and not form.is_number(repeated):
            raise RecordError(
                f"{sample.call} returns {shown(repeated)} as {metric}: no number"
            )
        tolerance = record["sample"]["tolerance"][metric]
        checks.append(Check(metric, recorded, repeated, tolerance))
    return checks
