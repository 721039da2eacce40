"""Records: results with their settings and provenance, one small JSON file a task and
method.

A record lies at `root()/<name>.json` and has the form of records.schema.json, which
says what each
part is. It is data alone: reading one runs no code, and `null` stands where there is no
    number.

A number typed in prose is held against its record by a marker that stands immediately
after it:

    SAM reaches 93.1 %<!-- record: plane/circle-0.05/SAM:selected.test_accuracy.mean -->
    of …

    marker = "<!-- record: " name ":" path " -->", directly behind the number or its
    percent sign
    number = [sign] digits ["." digits] ["e" [sign] digits] [[space] "%"]   ("%": 100 ×
    the value)

The number must be what the path leads to (see `value`), to within half a unit of its
last digit; `faults` finds those that are not. Nothing but the standard library is
imported at the top.

A record may be a stranger's: reading and verifying it calls nothing that it names.
"""

from __future__ import annotations

import datetime
import difflib
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatnb._checks import flag, instance, sequence, shown
from flatnb._files import whole
from flatnb.results.statistics import interval

if TYPE_CHECKING:
    import pandas

    from flatnb.results.sweep import Job

PACKAGE = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "numpy", "flatnb")
# Final metrics of ensembles: attributes of `flatnb.curvature.EnsembleFlatness`, on
# training data.
FLATNESS = (
    "trace",
    "top_eigenvalue",
    "relative_flatness",
    "sharpness",
    "adaptive_sharpness",
)


class RecordError(ValueError):
    """A record, its name or a path into it that does not hold; the message says what to do."""


# --- the folder ---------------------------------------------------------------------


def root() -> Path:
    """The folder of records: $FLATNB_RECORDS, else book/records of the checkout of this
    package.

    It need not be there yet. Raises RecordError where flatnb is installed without its
    repository.
    """
    given = os.environ.get("FLATNB_RECORDS")
    if given:
        return Path(given)
    if not (PACKAGE.parent / "_toc.yml").is_file():
        raise RecordError(
            "flatnb is installed without its repository, which holds the records: set "
            "FLATNB_RECORDS to a folder, or install from a clone with `pip install -e .`"
        )
    return PACKAGE.parent / "book" / "records"


def names() -> list[str]:
    """The names of all records, sorted."""
    folder = root()
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))
    return sorted(
        name.removesuffix(".json") for name in found if "/." not in f"/{name}"
    )


def match(patterns: Iterable[str], known: Sequence[str]) -> list[str]:
    """Those of the `known` names that fit one of the shell-like patterns, such as
    "plane/*".

    Raises RecordError for a pattern that none fits.
    """
    found: dict[str, None] = {}
    for pattern in sequence(
        "patterns", patterns, str, "a list of texts, such as ['plane/*']"
    ):
        fitting = [name for name in known if fnmatchcase(name, pattern)]
        if not fitting:
            near = difflib.get_close_matches(pattern, known, n=5, cutoff=0.0)
            closest = (
                f"the closest are {', '.join(near)}" if near else "there is nothing yet"
            )
            raise RecordError(f"nothing is named {pattern}; {closest}")
        found |= dict.fromkeys(fitting)
    return list(found)


def path_of(name: str) -> Path:
    """The file of a record, there or not. Raises RecordError for a name that no record can have."""
    instance("name", name, str, "text")
    pattern = schema()["properties"]["name"]["pattern"]
    # fullmatch: unlike JSON's, Python's $ also holds before a line's end.
    if not re.fullmatch(pattern, name):
        raise RecordError(
            f"name={shown(name)} is no name of a record: words of A-Z a-z 0-9 . _ + -, with /"
        )
    return root() / f"{name}.json"


# --- reading ------------------------------------------------------------------------


def load(name: str) -> dict[str, Any]:
    """The record of that name, checked.

    Raises RecordError when there is none, or when the file is not of the form.
    """
    path = path_of(name)
    try:
        record = _checked(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise RecordError(
            f"no record {name} in {root()}: `flatnb records list` shows those there are, "
            "`flatnb records todo` what makes the others"
        ) from None
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not JSON: {error}") from None
    if record["name"] != name:
        raise RecordError(
            f"{path} holds the record {record['name']}: the two must agree"
        )
    return record


def _checked(text: str, source: object = None) -> dict[str, Any]:
    """The record that a text holds; `source`, its file, is for the error."""
    label = source or "this"
    try:
        record = json.loads(
            text,
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_object,
        )
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{label} is not JSON: {error}") from None
    check(record, source)
    if _ODD.search(text):
        for place, part in _texts(record, ()):
            if _UNPRINTED.search(part):
                raise RecordError(
                    f"{label} is not a valid record: {_place(place)}: {_short(part)} has a "
                    "character that cannot be shown"
                )
    return record


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{_cut(text)} is no finite number; write null")
    return number


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**63:
        raise ValueError(f"{_cut(text)} is too large; an integer has 64 bits")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {_short(twice)} stands twice in one object")
    return made


def value(name: str, path: str) -> Any:
    """What stands in a record at a dotted path: a number, a text, a list or a part.

    Integers index lists, from 0, or from the end with -1. Beside the record's own keys
    there is `selected.<metric>`, the final metric of each seed at the setting chosen
    for it; and behind any list of numbers `mean`, or `interval`, the half-width of the
    mean's 95 % interval.

        value("plane/circle-0.05/SAM", "selected.test_accuracy.mean")

    Raises RecordError, with the keys there are, where the path leads nowhere.
    """
    record = load(name)
    try:
        return at({**record, "selected": selected(record)}, path)
    except RecordError as error:
        raise RecordError(f"{name}: {error}") from None


def at(data: Any, path: str) -> Any:
    """What stands at a dotted path of nested dicts and lists, `mean` and `interval` included."""
    done: list[str] = []
    for key in instance("path", path, str, "text, as final.test_loss.0.0").split("."):
        if isinstance(data, dict) and key in data:
            data = data[key]
        elif isinstance(data, list) and _indexes(key, data):
            data = data[int(key)]
        elif isinstance(data, list) and key in {"mean", "interval"}:
            data = _of_all(data)[key == "interval"]
        else:
            place = ".".join(done) or "the top"
            raise RecordError(f"no {key!r} at {place}; there is {_keys(data)}")
        done.append(key)
    return data


def _indexes(key: str, data: Sequence[Any]) -> bool:
    return bool(re.fullmatch(r"-?[0-9]+", key)) and -len(data) <= int(key) < len(data)


def _keys(data: Any) -> str:
    if isinstance(data, dict):
        return ", ".join(data) or "nothing"
    if isinstance(data, list):
        return f"a list of {len(data)}: an index, mean or interval"
    return f"{data!r}, where the path ends"


def _of_all(values: Sequence[Any]) -> tuple[float, float]:
    """Mean and interval of a list that has nothing but numbers, and no run missing."""
    if not values or not all(_is_number(one) for one in values):
        raise RecordError(
            "mean and interval are of lists of numbers; null is a run that failed"
        )
    mean, half = interval(values)
    return float(mean), float(half)


def selected(record: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Metric -> its final value for each seed, at the setting that the selection chose for it."""
    chosen = record["selection"]["chosen"]
    return {
        metric: [table[setting][seed] for seed, setting in enumerate(chosen)]
        for metric, table in record["final"].items()
    }


def frame(record: Mapping[str, Any]) -> pandas.DataFrame:
    """One row for each setting and seed: the hyperparameters, `seed`, and the final
    metrics.

    A metric of a failed run is nan; so is a hyperparameter that a setting does not
    have.
    """
    import pandas

    rows = [
        {
            **setting,
            "seed": seed,
            **{m: table[i][j] for m, table in record["final"].items()},
        }
        for i, setting in enumerate(record["settings"])
        for j, seed in enumerate(record["seeds"])
    ]
    return pandas.DataFrame(rows).astype(dict.fromkeys(record["final"], float))


# --- the form -----------------------------------------------------------------------


@functools.cache
def schema() -> dict[str, Any]:
    """The schema, as JSON."""
    return json.loads(
        Path(__file__).with_name("records.schema.json").read_text(encoding="utf-8")
    )


def check(record: Any, source: object = None) -> None:
    """Raise RecordError, naming each fault and its place, unless this is a record.

    source: its file, for the error.
    """
    # The shapes can be looked at only where the form holds.
    try:
        faults = list(_form_faults(record)) or list(_shapes(record))
    except RecursionError:
        faults = ["it is nested too deeply"]
    except (
        ValueError
    ) as error:  # an integer of thousands of digits, which no text shows
        faults = [f"record: {error}"]
    if faults:
        name = record.get("name") if isinstance(record, dict) else None
        label = source or (
            name if isinstance(name, str) and _NAME.fullmatch(name) else "this"
        )
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise RecordError(
            f"{label} is not a valid record: {'; '.join(faults[:5])}{more}"
        )


# Characters that no file or no terminal takes as text; lines may end and have tabs.
_UNPRINTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_ODD = re.compile(rf"{_UNPRINTED.pattern}|\\u")  # JSON may write them by their numbers
_NAME = re.compile(r"[\w./+-]{1,200}")


def _form_faults(record: Any) -> Iterator[str]:
    """What breaks the schema, the most particular first."""
    errors = list(_validator().iter_errors(record))
    for error in sorted(errors, key=lambda error: -len(error.absolute_path)):
        yield f"{_place(error.absolute_path)}: {_cut(error.message)}"


@functools.cache
def _validator() -> Any:
    """Of the schema, for which 1.0 is no integer: it would be no index, either."""
    import jsonschema

    draft = jsonschema.Draft202012Validator
    kinds = draft.TYPE_CHECKER.redefine(
        "integer",
        lambda _, value: isinstance(value, int) and not isinstance(value, bool),
    )
    one_by_one = draft.VALIDATORS["items"]

    def items(validator: Any, rule: Any, value: Any, parent: Any) -> Iterator[Any]:
        # Nearly all of a record is numbers in lists; one by one, all records took 20 s.
        if not (isinstance(value, list) and _are_plain(value, rule)):
            yield from one_by_one(validator, rule, value, parent)

    return jsonschema.validators.extend(draft, {"items": items}, type_checker=kinds)(
        schema()
    )


def _are_plain(values: list[Any], rule: Mapping[str, Any]) -> bool:
    """Whether all fit a rule that speaks of nothing but types, or lists of such."""
    if rule.keys() == {"type"}:
        kinds = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
        return set(map(type, values)) <= {
            t for kind in kinds for t in _TYPES.get(kind, ())
        }
    lists = rule.keys() == {"type", "items"} and rule["type"] == "array"
    return lists and all(
        isinstance(v, list) and _are_plain(v, rule["items"]) for v in values
    )


_TYPES: dict[str, tuple[type, ...]] = {
    "number": (int, float),
    "integer": (int,),
    "string": (str,),
    "null": (type(None),),
}


def _texts(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """All strings, keys among them, with their places."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield place, key
            yield from _texts(part, (*place, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            if isinstance(part, str | dict | list):
                yield from _texts(part, (*place, index))


def _place(keys: Iterable[Any]) -> str:
    """Of a part, as record.settings[0].lr."""
    return "record" + "".join(
        f".{key}"
        if isinstance(key, str) and _NAME.fullmatch(key)
        else f"[{_short(key)}]"
        for key in keys
    )


def _cut(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:80]} … {text[-77:]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _shapes(record: Mapping[str, Any]) -> Iterator[str]:
    """What a schema cannot say: lists that belong together have one length, indices are
    in range.

    `record` is of the schema's form.
    """
    settings, seeds = record["settings"], record["seeds"]
    curves, selection = record["curves"], record["selection"]
    if not settings or not seeds:
        yield "record needs a setting and a seed"
    if len(set(seeds)) < len(seeds):
        yield "record.seeds has one twice"
    for metric, table in record["final"].items():
        if [len(row) for row in table] != [len(seeds)] * len(settings):
            yield f"record.final.{metric} is not {len(settings)} settings × {len(seeds)} seeds"
    for metric, table in curves["metrics"].items():
        if [len(row) for row in table] != [len(curves["epochs"])] * len(seeds):
            yield (
                f"record.curves.metrics.{metric} is not {len(seeds)} seeds × "
                f"{len(curves['epochs'])} epochs"
            )
    choices = {
        "curves.setting": curves["setting"],
        "selection.chosen": selection["chosen"],
    }
    if "otherwise" in selection:
        choices["selection.otherwise.chosen"] = selection["otherwise"]["chosen"]
    for where, indices in choices.items():
        if len(indices) != len(seeds) or any(
            index >= len(settings) for index in indices
        ):
            yield f"record.{where} is not one index into settings for each seed"
    if selection["per"] == "task" and len(set(selection["chosen"])) > 1:
        yield "record.selection.chosen differs between seeds, and the choice is per task"
    for failure in record["failures"]:
        if failure["setting"] >= len(settings) or failure["seed"] not in seeds:
            yield f"record.failures names setting {failure['setting']}, seed {failure['seed']}"
    columns = {"seed", *record["final"]}
    for name in {name for setting in settings for name in setting if name in columns}:
        yield f"record.settings has a hyperparameter named like the column {name}"
    if set(record["sample"]["metrics"]) != set(record["sample"]["tolerance"]):
        yield "record.sample does not have one tolerance for each metric"


# --- writing ------------------------------------------------------------------------


def save(record: Mapping[str, Any], *, replace: bool = False) -> Path:
    """Write a record to its file, which is returned.

    Results (final, curves, the sample's metrics, provenance) are kept to 6 significant
    digits, nan and infinity as null; what was put in (task, settings, the sample's
    settings) exactly. Arrays
    and tensors become lists. The file is written aside, then renamed: it is whole or
        not there.
    The same result with another provenance leaves the file as it is.

    Raises:
        RecordError: the record is not of the form, or another result of that name is
            there and `replace` is not set.
        OSError: the file cannot be written; what was there before is untouched.
    """
    instance("record", record, Mapping, "a dict of the form of records.schema.json")
    flag("replace", replace)
    try:
        text = _text(_content(record))
    except RecursionError:
        raise RecordError(
            "this is not a valid record: it is nested too deeply"
        ) from None
    content = _checked(text)  # what is written can be read
    path = path_of(content["name"])
    if path.exists() and not replace:
        if _result(load(content["name"])) == _result(content):
            return path
        raise RecordError(
            f"{path} holds another result: keep it, or say that this one is to replace it "
            "(replace=True, or --replace on the command line)"
        )
    _write(path, text)
    return path


def _result(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in record.items() if key != "provenance"}


def _content(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as JSON has it, the results rounded, its parts in the schema's order."""
    content = _plain(record, "record")
    order = list(schema()["properties"])
    return dict(
        sorted(content.items(), key=lambda item: (*order, item[0]).index(item[0]))
    )


_RESULTS = (
    "record.final",
    "record.curves",
    "record.sample.metrics",
    "record.provenance",
)


def _plain(value: Any, where: str) -> Any:
    """A value as JSON has it; a float that is a result rounded, or None if it is not finite."""
    if hasattr(value, "tolist"):  # arrays, tensors, NumPy's numbers
        value = value.tolist()
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise RecordError(f"{where} has the key {odd[0]!r}; keys must be text")
        return {key: _plain(one, f"{where}.{key}") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, f"{where}[{index}]") for index, one in enumerate(value)]
    if isinstance(value, float):
        if where.startswith(_RESULTS):
            return float(f"{value:.6g}") if math.isfinite(value) else None
        if not math.isfinite(value):
            raise RecordError(
                f"{where} is {value}; only a result may be without a number"
            )
        return value
    if value is None or isinstance(value, str | int):
        return value
    raise RecordError(f"{where} is of type {type(value).__name__}, which JSON has not")


def _text(value: Any, depth: int = 0, listed: bool = False) -> str:
    """JSON for readers and small diffs: innermost lists, and innermost objects of
    lists, on a line.

    Keys below the top are sorted.
    """
    inside = list(value.values()) if isinstance(value, dict) else value
    nested = isinstance(value, dict | list) and any(
        isinstance(v, dict | list) for v in inside
    )
    if not value or (not nested and (listed or not isinstance(value, dict))):
        return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)
    if isinstance(value, dict):
        items = sorted(value.items()) if depth else value.items()
        parts = [f"{_text(key)}: {_text(one, depth + 1)}" for key, one in items]
    else:
        parts = [_text(one, depth + 1, listed=True) for one in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    gap = "\n" + " " * (depth + 1)
    end = "" if depth else "\n"
    return f"{first}{gap}{f',{gap}'.join(parts)}\n{' ' * depth}{last}{end}"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            file.write(text)
    except OSError as error:
        why = f"{error.strerror}; the record is not saved, nothing else is lost"
        raise OSError(error.errno, why, str(path)) from None


# --- where a result comes from ------------------------------------------------------


def provenance() -> dict[str, Any]:
    """How and where this process computes; `seconds`, of all runs, is the caller's to
    add.

    Keys: command (without folders); commit, and dirty: whether the package's files
        differ from it,
    both None outside its repository; code (sha256 of the package's sources, which tells
    versions apart there too); python; packages; device; threads; cpu; platform; date
    (UTC); deterministic.
    """
    import torch

    cuda = torch.cuda.is_available()
    commit, dirty = _commit()
    return {
        "command": _command(sys.orig_argv),
        "commit": commit,
        "dirty": dirty,
        "code": _code(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "cpu": _cpu(),
        "platform": platform.platform(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "deterministic": _deterministic(cuda),
    }


def _deterministic(cuda: bool) -> dict[str, Any]:
    """What decides whether the same run gives the same bits again."""
    import torch

    always = torch.are_deterministic_algorithms_enabled()
    if not cuda or always:
        repeats = "bit for bit, on the same machine with the same packages and threads"
    else:
        repeats = (
            "to rounding: on CUDA the order of atomic additions (scatter, index and pooling "
            "gradients) and the algorithms that cuDNN and cuBLAS choose may differ between runs"
        )
    return {
        "algorithms": always,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul": torch.get_float32_matmul_precision(),
        "repeats": repeats,
    }


def _command(words: Sequence[str]) -> str:
    """A command line as one types it: folders of this machine say nothing elsewhere."""
    return " ".join(re.sub(r"(?<![\w.~:/-])/(?:[^/\s]+/)*", "", word) for word in words)


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _commit() -> tuple[str | None, bool | None]:
    top = _git("rev-parse", "--show-toplevel")
    # Installed below another project's folder, the package is not of that project's
    # commit.
    if top is None or Path(top.rstrip("\n")).resolve() != PACKAGE.parent:
        return None, None
    commit, changes = (
        _git("rev-parse", "HEAD"),
        _git("status", "--porcelain", "--", "."),
    )
    return (commit.strip(), bool(changes)) if commit else (None, None)


def _code() -> str:
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(
            f"{file.relative_to(PACKAGE).as_posix()}\0".encode() + file.read_bytes()
        )
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    if package == "flatnb":  # the one that runs, installed or not
        from flatnb import __version__

        return __version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith("model name")
    )
    return next(named, platform.processor() or platform.machine())


# --- repeating a sample -------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One metric of a sample, recorded and computed again; `inside` its tolerance or not."""

    metric: str
    recorded: float | None
    repeated: float | None
    tolerance: float

    @property
    def inside(self) -> bool:
        """|repeated − recorded| ≤ tolerance, or neither is a number."""
        if self.recorded is None or self.repeated is None:
            return self.recorded is self.repeated
        return abs(
            Decimal(repr(self.repeated)) - Decimal(repr(self.recorded))
        ) <= Decimal(repr(self.tolerance))


def check_sample(record: Mapping[str, Any], sample: Job) -> None:
    """Raise RecordError unless a record's sample is that of its experiment.

    What the record does not name may have been added since, with a default.
    """
    stated = {
        "call": record["sample"]["call"],
        "settings": record["sample"]["settings"],
    }
    computed = {"call": sample.call, "settings": _plain(sample.settings, "settings")}
    if differences := list(_differences(stated, computed, "record.sample")):
        raise RecordError(
            f"{record['name']} is not verified, because its sample is not that of the experiment "
            f"of this name: {'; '.join(differences[:3])}"
        )


def _differences(stated: Any, computed: Any, where: str) -> Iterator[str]:
    """Where `stated` says something else than `computed`, which may say more."""
    if isinstance(stated, dict) and isinstance(computed, dict):
        for key, part in stated.items():
            if key in computed:
                yield from _differences(part, computed[key], f"{where}.{key}")
            else:
                yield f"{where} has {_short(key)}, which the experiment has not"
    elif (
        isinstance(stated, list)
        and isinstance(computed, list)
        and len(stated) == len(computed)
    ):
        for index, (part, other) in enumerate(zip(stated, computed, strict=True)):
            yield from _differences(part, other, f"{where}[{index}]")
    elif stated != computed:
        yield f"{where} is {_short(stated)}, of the experiment {_short(computed)}"


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
    result = _plain(sample.run(), "record.sample.metrics")
    checks = []
    for metric, recorded in record["sample"]["metrics"].items():
        repeated = at(result, metric)
        if repeated is not None and not _is_number(repeated):
            raise RecordError(
                f"{sample.call} returns {_short(repeated)} as {metric}: no number"
            )
        checks.append(
            Check(metric, recorded, repeated, record["sample"]["tolerance"][metric])
        )
    return checks


# --- numbers in prose ---------------------------------------------------------------

# Whatever means to be a marker, right or wrong.
_COMMENT = re.compile(r"<!--\s*record\b.*?-->", re.S | re.I)
_MARKER = re.compile(r"<!-- record: (?P<name>[^\s:]+):(?P<path>\S+) -->")
_NUMBER = re.compile(
    r"(?<![\w.,])(?P<number>[-−+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-−+]?[0-9]+)?)(?P<percent>\s?%)?\Z"
)


def faults(text: str) -> list[str]:
    """The markers in prose that are ill-formed, lead nowhere, or follow another number."""
    found = []
    for comment in _COMMENT.finditer(instance("text", text, str, "text")):
        before = text[max(0, comment.start() - 60) : comment.start()]
        if why := _fault(comment.group(), before):
            line = text.count("\n", 0, comment.start()) + 1
            found.append(f"line {line}: {comment.group()}: {why}")
    return found


def _fault(comment: str, before: str) -> str | None:
    marker, typed = _MARKER.fullmatch(comment), _NUMBER.search(before)
    if marker is None:
        return "not of the form <!-- record: name:key.path -->"
    if typed is None:
        return f"no number stands directly before it, but {before[-10:]!r}"
    try:
        held = value(marker["name"], marker["path"])
    except RecordError as error:
        return str(error)
    if not _is_number(held) or not math.isfinite(held):
        return f"leads to {_short(held)}, not to a number"
    number = Decimal(typed["number"].replace("−", "-"))
    exact = Decimal(repr(held)) * (100 if typed["percent"] else 1)
    half = Decimal(1).scaleb(int(number.as_tuple().exponent)) / 2
    return (
        None
        if abs(number - exact) <= half
        else f"{number} is typed, and the record has {exact}"
    )
