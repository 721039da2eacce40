"""Records: results with their settings and provenance, one small JSON file a task and method.

A record lies at `root()/<name>.json` and has the form of records.schema.json, which says what each
part is. It is data alone: reading one runs no code, and `null` stands where there is no number.

A number typed in prose is held against its record by a marker that stands immediately after it:

    SAM reaches 93.1 %<!-- record: plane/circle-0.05/SAM:selected.test_accuracy.mean --> of …

    marker = "<!-- record: " name ":" path " -->", directly behind the number or its percent sign
    number = [sign] digits ["." digits] ["e" [sign] digits] [[space] "%"]   ("%": 100 × the value)

The number must be what the path leads to (see `value`), to within half a unit of its last digit;
`faults` finds those that are not. Nothing but the standard library is imported at the top.
"""

from __future__ import annotations

import datetime
import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
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

from ._files import whole

if TYPE_CHECKING:
    import pandas

PACKAGE = Path(__file__).resolve().parent
PACKAGES = ("torch", "torchvision", "numpy", "flatnb")
# Final metrics of ensembles: attributes of `flatnb.curvature.EnsembleFlatness`, on training data.
FLATNESS = ("trace", "top_eigenvalue", "relative_flatness", "sharpness", "adaptive_sharpness")


class RecordError(ValueError):
    """A record, its name or a path into it that does not hold; the message says what to do."""


# --- the folder -----------------------------------------------------------------------------------


def root() -> Path:
    """The folder of records: $FLATNB_RECORDS, else book/records of the checkout of this package.

    It need not be there yet. Raises RecordError where flatnb is installed without its repository.
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
    return sorted(name.removesuffix(".json") for name in found if "/." not in f"/{name}")


def match(patterns: Iterable[str], known: Sequence[str]) -> list[str]:
    """Those of the `known` names that fit one of the shell-like patterns, such as "plane/*".

    Raises RecordError for a pattern that none fits.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        fitting = [name for name in known if fnmatchcase(name, pattern)]
        if not fitting:
            near = difflib.get_close_matches(pattern, known, n=5, cutoff=0.0)
            closest = f"the closest are {', '.join(near)}" if near else "there is nothing yet"
            raise RecordError(f"nothing is named {pattern}; {closest}")
        found |= dict.fromkeys(fitting)
    return list(found)


def path_of(name: str) -> Path:
    """The file of a record, there or not. Raises RecordError for a name that no record can have."""
    pattern = schema()["properties"]["name"]["pattern"]
    # fullmatch: unlike JSON's, Python's $ also holds before a line's end.
    if not re.fullmatch(pattern, name):
        raise RecordError(f"{name!r} is no name of a record: words of A-Z a-z 0-9 . _ + -, with /")
    return root() / f"{name}.json"


# --- reading --------------------------------------------------------------------------------------


def load(name: str) -> dict[str, Any]:
    """The record of that name, checked.

    Raises RecordError when there is none, or when the file is not of the form.
    """
    path = path_of(name)
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except FileNotFoundError:
        raise RecordError(
            f"no record {name} in {root()}: `flatnb records list` shows those there are, "
            "`flatnb records todo` what makes the others"
        ) from None
    except (ValueError, RecursionError) as error:  # neither JSON nor UTF-8
        raise RecordError(f"{path} is not JSON: {error}") from None
    check(record)
    if record["name"] != name:
        raise RecordError(f"{path} holds the record {record['name']}: the two must agree")
    return record


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number; write null")
    return number


def value(name: str, path: str) -> Any:
    """What stands in a record at a dotted path: a number, a text, a list or a part.

    Integers index lists, from 0, or from the end with -1. Beside the record's own keys there is
    `selected.<metric>`, the final metric of each seed at the setting chosen for it; and behind any
    list of numbers `mean`, or `interval`, the half-width of the mean's 95 % interval.

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
    for key in path.split("."):
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
    if not values or not all(_is(one, "number") for one in values):
        raise RecordError("mean and interval are of lists of numbers; null is a run that failed")
    return mean_interval(values)


def selected(record: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Metric -> its final value for each seed, at the setting that the selection chose for it."""
    chosen = record["selection"]["chosen"]
    return {
        metric: [table[setting][seed] for seed, setting in enumerate(chosen)]
        for metric, table in record["final"].items()
    }


def mean_interval(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean, and half-width of its 95 % interval: t₀.₉₇₅(n−1) s / √n, Student's, of what is no None.

    The mean of nothing and the interval of less than two values are nan.
    """
    there = [one for one in values if one is not None]
    n = len(there)
    mean = math.fsum(there) / n if n else math.nan
    if n < 2:
        return mean, math.nan
    deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in there) / (n - 1))
    return mean, _t975(n - 1) * deviation / math.sqrt(n)


@functools.cache
def _t975(freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(0.975, freedom))


def frame(record: Mapping[str, Any]) -> pandas.DataFrame:
    """One row for each setting and seed: the hyperparameters, `seed`, and the final metrics.

    A metric of a failed run is nan; so is a hyperparameter that a setting does not have.
    """
    import pandas

    rows = [
        {**setting, "seed": seed, **{m: table[i][j] for m, table in record["final"].items()}}
        for i, setting in enumerate(record["settings"])
        for j, seed in enumerate(record["seeds"])
    ]
    return pandas.DataFrame(rows).astype(dict.fromkeys(record["final"], float))


# --- the form -------------------------------------------------------------------------------------


@functools.cache
def schema() -> dict[str, Any]:
    """The schema, as JSON."""
    return json.loads((PACKAGE / "records.schema.json").read_text(encoding="utf-8"))


def check(record: Any) -> None:
    """Raise RecordError, naming each fault, unless this is a record."""
    # The shapes can be looked at only where the form holds.
    found = list(_against(record, schema(), "record")) or list(_shapes(record))
    if found:
        name = record.get("name") if isinstance(record, dict) else None
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise RecordError(f"{name or 'this'} is no record: {'; '.join(found[:5])}{more}")


_TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool,
                          "null": type(None), "integer": int, "number": int | float}  # fmt: skip

_PLAIN: dict[str, tuple[type, ...]] = {"number": (int, float), "integer": (int,),
                                       "string": (str,), "null": (type(None),)}  # fmt: skip


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):  # a number in Python, and not in JSON
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind])


def _against(value: Any, rule: Mapping[str, Any], where: str) -> Iterator[str]:
    """What in `value` breaks a rule of these keywords, as JSON schema (2020-12) defines them."""
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{where} is {_short(value)}, not {' or '.join(kinds)}"
        return
    # 1 == True in Python, and not in JSON.
    if "enum" in rule and not any(
        value == one and isinstance(value, bool) == isinstance(one, bool) for one in rule["enum"]
    ):
        yield f"{where} is {_short(value)}, not one of {rule['enum']}"
    if isinstance(value, str) and not re.search(rule.get("pattern", ""), value):
        yield f"{where} is {_short(value)}, not of the pattern {rule['pattern']}"
    if _is(value, "number") and value < rule.get("minimum", -math.inf):
        yield f"{where} is {value}, below {rule['minimum']}"
    if isinstance(value, list) and not _all_plain(value, rule.get("items", {})):
        for index, one in enumerate(value):
            yield from _against(one, rule.get("items", {}), f"{where}[{index}]")
    if isinstance(value, dict):
        yield from _members(value, rule, where)


def _all_plain(value: list[Any], rule: Mapping[str, Any]) -> bool:
    """Whether all entries are of the types that the rule asks for, and it asks for no more.

    Nearly all of a record is numbers in lists; to look at them one by one took most of a load.
    """
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    allowed = {kind for one in kinds for kind in _PLAIN.get(one, ())}
    return rule.keys() == {"type"} and set(map(type, value)) <= allowed


def _members(value: Mapping[str, Any], rule: Mapping[str, Any], where: str) -> Iterator[str]:
    known = rule.get("properties", {})
    others = rule.get("additionalProperties", {})
    for name, one in value.items():
        if name not in known and others is False:
            yield f"{where} has {name}, which is not in the form"
        else:
            yield from _against(one, known.get(name, others), f"{where}.{name}")
    for name in rule.get("required", ()):
        if name not in value:
            yield f"{where} lacks {name}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _shapes(record: Mapping[str, Any]) -> Iterator[str]:
    """What a schema cannot say: lists that belong together have one length, indices are in range.

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
    choices = {"curves.setting": curves["setting"], "selection.chosen": selection["chosen"]}
    if "otherwise" in selection:
        choices["selection.otherwise.chosen"] = selection["otherwise"]["chosen"]
    for where, indices in choices.items():
        if len(indices) != len(seeds) or any(index >= len(settings) for index in indices):
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


# --- writing --------------------------------------------------------------------------------------


def save(record: Mapping[str, Any], *, replace: bool = False) -> Path:
    """Write a record to its file, which is returned.

    Results (final, curves, the sample's metrics, provenance) are kept to 6 significant digits, nan
    and infinity as null; what was put in (task, settings, the sample's settings) exactly. Arrays
    and tensors become lists. The file is written aside, then renamed: it is whole or not there.
    The same result with another provenance leaves the file as it is.

    Raises:
        RecordError: the record is not of the form, or another result of that name is there and
            `replace` is not set.
        OSError: the file cannot be written; what was there before is untouched.
    """
    content = _content(record)
    check(content)
    path = path_of(content["name"])
    if path.exists() and not replace:
        if _result(load(content["name"])) == _result(content):
            return path
        raise RecordError(
            f"{path} holds another result: keep it, or say that this one is to replace it "
            "(replace=True, or --replace on the command line)"
        )
    _write(path, _text(content))
    return path


def _result(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in record.items() if key != "provenance"}


def _content(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as JSON has it, the results rounded, its parts in the schema's order."""
    content = _plain(record, "record")
    order = list(schema()["properties"])
    return dict(sorted(content.items(), key=lambda item: (*order, item[0]).index(item[0])))


_RESULTS = ("record.final", "record.curves", "record.sample.metrics", "record.provenance")


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
            raise RecordError(f"{where} is {value}; only a result may be without a number")
        return value
    if value is None or isinstance(value, str | int):
        return value
    raise RecordError(f"{where} is of type {type(value).__name__}, which JSON has not")


def _text(value: Any, depth: int = 0, listed: bool = False) -> str:
    """JSON for readers and small diffs: innermost lists, and innermost objects of lists, on a line.

    Keys below the top are sorted.
    """
    inside = list(value.values()) if isinstance(value, dict) else value
    nested = isinstance(value, dict | list) and any(isinstance(v, dict | list) for v in inside)
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


# --- where a result comes from --------------------------------------------------------------------


def provenance() -> dict[str, Any]:
    """How and where this process computes; `seconds`, of all runs, is the caller's to add.

    Keys: command (without folders); commit, and dirty: whether the package's files differ from it,
    both None outside its repository; code (sha256 of the package's sources, which tells versions
    apart there too); python; packages; device; threads; cpu; platform; date (UTC); deterministic.
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
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _commit() -> tuple[str | None, bool | None]:
    top = _git("rev-parse", "--show-toplevel")
    # Installed below another project's folder, the package is not of that project's commit.
    if top is None or Path(top.rstrip("\n")).resolve() != PACKAGE.parent:
        return None, None
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ".")
    return (commit.strip(), bool(changes)) if commit else (None, None)


def _code() -> str:
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    if package == "flatnb":  # the one that runs, installed or not
        from . import __version__

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
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


# --- repeating a sample ---------------------------------------------------------------------------


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
        return abs(Decimal(repr(self.repeated)) - Decimal(repr(self.recorded))) <= Decimal(
            repr(self.tolerance)
        )


# Modules that run things, or write files at a path they are given.
_NEVER = {"__main__", "_files", "cli", "notebook", "records", "sweep"}


def function(call: str) -> Any:
    """The function that a sample's `call` names, "module:function".

    The text comes from a file, so not every function is called: only a public one that a module of
    flatnb defines itself, and none of the modules that run commands or write files. Raises
    RecordError for any other, before importing anything for it.
    """
    refused = f"a record's sample calls {call!r}; only functions of flatnb's own modules are called"
    pattern = schema()["properties"]["sample"]["properties"]["call"]["pattern"]
    if not re.fullmatch(pattern, call):
        raise RecordError(refused)
    module_name, _, name = call.partition(":")
    if module_name.split(".")[1] in _NEVER:
        raise RecordError(refused)
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ModuleNotFoundError as error:
        raise RecordError(f"{refused} ({error})") from None
    # An imported name is of another module, and a class or an instance is no function.
    if not inspect.isfunction(found) or found.__module__ != module_name:
        raise RecordError(f"{refused}, and it is none")
    return found


def verify(record: Mapping[str, Any]) -> list[Check]:
    """Repeat a record's sample, and hold each of its metrics against the record.

    Raises RecordError where the sample cannot be called, or returns no such metric.
    """
    sample = record["sample"]
    result = _plain(function(sample["call"])(**sample["settings"]), "record.sample.metrics")
    checks = []
    for metric, recorded in sample["metrics"].items():
        repeated = at(result, metric)
        if repeated is not None and not _is(repeated, "number"):
            raise RecordError(f"{sample['call']} returns {_short(repeated)} as {metric}: no number")
        checks.append(Check(metric, recorded, repeated, sample["tolerance"][metric]))
    return checks


# --- numbers in prose -----------------------------------------------------------------------------

# Whatever means to be a marker, right or wrong.
_COMMENT = re.compile(r"<!--\s*record\b.*?-->", re.S | re.I)
_MARKER = re.compile(r"<!-- record: (?P<name>[^\s:]+):(?P<path>\S+) -->")
_NUMBER = re.compile(
    r"(?<![\w.,])(?P<number>[-−+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-−+]?[0-9]+)?)(?P<percent>\s?%)?\Z"
)


def faults(text: str) -> list[str]:
    """The markers in prose that are ill-formed, lead nowhere, or follow another number."""
    found = []
    for comment in _COMMENT.finditer(text):
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
    if not _is(held, "number") or not math.isfinite(held):
        return f"leads to {_short(held)}, not to a number"
    number = Decimal(typed["number"].replace("−", "-"))
    exact = Decimal(repr(held)) * (100 if typed["percent"] else 1)
    half = Decimal(1).scaleb(int(number.as_tuple().exponent)) / 2
    return None if abs(number - exact) <= half else f"{number} is typed, and the record has {exact}"
