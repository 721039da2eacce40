"""An audit of papers: a formula against public code, and claims against the records.

`Checks` collects what cells found out about code, a `Source` links to the line that was
read, and `gain` and `ending` are rows of what the records have on a claim; `untested`
says what they lack. `evidence` shows a claim's rows as tables of HTML, for pages.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas
import torch
from torch import nn

from flatnb import report
from flatnb._checks import choice
from flatnb.experiments import EXPERIMENTS
from flatnb.experiments.pretrained import EQUAL_PASSES
from flatnb.results import compare, records, verdicts
from flatnb.results.statistics import LEVEL

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

# What a difference between formula and code touches.
SEVERITIES = ("changes results", "changes a baseline", "cosmetic", "in a port only")
NBSP = "\N{NO-BREAK SPACE}"

# --- formula against code -----------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A file of a public repository on GitHub, at the commit at which it was read.

    >>> losses = Source("owner/name", "0a1b2c3d4e", "setup/losses.py")
    >>> losses.at(56)
    '<a href="https://github.com/owner/name/blob/0a1b2c3d4e/setup/losses.py#L56">losses.py:56</a>'
    >>> losses.at()
    '<a href="https://github.com/owner/name/blob/0a1b2c3d4e/setup/losses.py">losses.py</a>'
    """

    repository: str
    commit: str
    path: str

    def at(self, line: int | None = None, last: int | None = None) -> str:
        """A link to a line, to the lines up to `last`, or to the file."""
        address = f"https://github.com/{self.repository}/blob/{self.commit}"
        address += f"/{quote(self.path)}"
        name = self.path.rpartition("/")[2]
        if line is not None:
            address += f"#L{line}" + (f"-L{last}" if last else "")
            name += f":{line}" + (f"–{last}" if last else "")
        return f'<a href="{address}">{escape(name)}</a>'


@dataclass(frozen=True)
class Claim:
    """What to expect of a method, what code does, with a `Source.at`, and which of
    SEVERITIES a difference between the two would be. Expected is the paper's formula, or
    where the paper is silent, what its method needs.

    >>> Claim("SAM", "a norm over all weights", "sam.py").severity
    'changes results'
    """

    paper: str
    says: str
    code: str
    severity: str = SEVERITIES[0]

    def __post_init__(self) -> None:
        choice("severity", self.severity, SEVERITIES)


@dataclass
class Checks:
    """Claims by name, and what came out for those that were checked, in that order.

    >>> checks = Checks({"norm": Claim("SAM", "a norm over all weights", "sam.py")})
    >>> checks.add("norm", True, "apart by 0")
    SAM: a norm over all weights. The code agrees: apart by 0
    >>> print(checks.summary())
    Checks, chosen by hand: 1. Agree: 1. Differ: 0.
    """

    claims: Mapping[str, Claim]
    rows: list[dict[str, str]] = field(default_factory=list)

    def add(self, name: str, agrees: bool, measured: str) -> None:
        """Print what came out, in numbers, and keep it for the table.

        Raises:
            ValueError: no claim has that name.
        """
        claim = self.claims[choice("name", name, self.claims)]
        verdict = "agrees" if agrees else f"differs, {claim.severity}"
        row = {"paper": claim.paper, "verdict": verdict, "expected": claim.says}
        self.rows.append({**row, "the code": claim.code, "measured": measured})
        print(f"{claim.paper}: {claim.says}. The code {verdict}: {measured}")

    def count(self, verdict: str) -> int:
        """How many have a verdict that begins so: "agrees", "differs, cosmetic", …"""
        return sum(row["verdict"].startswith(verdict) for row in self.rows)

    def summary(self) -> str:
        """How many agree, and what the others touch, in a line. The checks are chosen,
        so the share that agrees says nothing about the rest of the code.
        """
        parts = {word: self.count(f"differs, {word}") for word in SEVERITIES}
        named = [f"{word} {count}" for word, count in parts.items() if count]
        touched = f", by severity: {', '.join(named)}" if named else ""
        return (
            f"Checks, chosen by hand: {len(self.rows)}. Agree: {self.count('agrees')}. "
            f"Differ: {self.count('differs')}{touched}."
        )

    def table(self) -> Styler:
        """A row per check: what is expected of a method, code, numbers, verdict."""
        table = pandas.DataFrame(self.rows)
        table["expected"] = "<b>" + table.pop("paper") + "</b>: " + table["expected"]
        table["verdict"] = table.pop("verdict")  # last
        return words_table(table.replace(r"`(.*?)`", r"<code>\1</code>", regex=True))


def words_table(table: pandas.DataFrame) -> Styler:
    """A table of HTML texts, for show: aligned left, without an index.

    >>> "text-align: left" in words_table(pandas.DataFrame({"a": ["b"]})).to_html()
    True
    """
    left = {"selector": "th, td", "props": "text-align: left; vertical-align: top"}
    shown = table.style.set_table_attributes('class="dataframe"')
    return shown.set_table_styles([left]).hide(axis="index")


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(number: float) -> str:
    """A number as a digit times a power of ten, in one piece.

    >>> power(6.2e-17).split()
    ['6', '·', '10⁻¹⁷']
    """
    digit, exponent = f"{number:.0e}".split("e")
    return f"{digit}{NBSP}·{NBSP}10{str(int(exponent)).translate(_RAISED)}"


def apart(distance: float | torch.Tensor) -> str:
    """How far two results are apart, in words.

    >>> apart(0.0)
    'identical'
    """
    return f"apart by {power(float(distance))}" if distance else "identical"


# The net on which the pages compare gradients.


def small_net(seed: int) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """A net of 5 inputs, 7 tanh units and 3 classes, with 40 random examples: small
    enough for exact derivatives. All in the default data type of torch.

    >>> net, x, y = small_net(0)
    >>> net(x).shape, y.shape
    (torch.Size([40, 3]), torch.Size([40]))
    """
    torch.manual_seed(seed)
    x, y = torch.randn(40, 5), torch.randint(3, (40,))
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), x, y


def gradient(loss: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Of a scalar by all parameters, as one vector; those without a part count as 0.

    >>> layer = nn.Linear(2, 1)
    >>> gradient(layer.bias.sum(), layer)
    tensor([0., 0., 1.])
    """
    parts = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([part.detach().flatten() for part in parts])


def weights(model: nn.Module) -> torch.Tensor:
    """All parameters as one vector, without a graph.

    >>> weights(nn.Linear(2, 1)).shape
    torch.Size([3])
    """
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """Between two vectors, in degrees.

    >>> round(angle(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])))
    45
    """
    cosine = a @ b / a.norm() / b.norm()
    return float(torch.arccos(cosine.clamp(-1, 1)).rad2deg())


# --- claims against the records -----------------------------------------------------

PLANE, FALLING = "plane, constant rate", "plane, falling rate"
EQUAL, EQUAL_FALLING = f"{PLANE}, equal compute", f"{FALLING}, equal compute"
PLANES = (PLANE, FALLING, EQUAL, EQUAL_FALLING)
WIDE = "plane, nets of the SoftAD paper"
SENSING = "matrix sensing, published width"
IMAGES = ("digits", "MNIST", "CIFAR-10")
PERCEPTRONS_AGAIN = ("digits, larger rates", "MNIST, larger rates")
PHOTOGRAPHS_AGAIN = "CIFAR-10, larger rates"
LARGER_RATES = (*PERCEPTRONS_AGAIN, PHOTOGRAPHS_AGAIN)
FINE_TUNING = (
    "hand signs, 10 per class",
    "photos",
    "hand signs, 5 per class",
    "TREC",
    "SST-2",
)
TASKS = {  # the names of their records, {} for the method
    PLANE: "plane/*/{}/narrow-tuned",
    FALLING: "plane/*/{}/narrow-tuned-cosine",
    EQUAL: "plane/*/{}/narrow-tuned-equal-passes",
    EQUAL_FALLING: "plane/*/{}/narrow-tuned-equal-passes-cosine",
    WIDE: "plane/*/{}/coarse-grid",
    "digits": "images/digits-mlp/{}",
    "MNIST": "images/MNIST-n5000-mlp/{}",
    "CIFAR-10": "images/cifar10-jpeg-n4000-small_cnn/{}",
    "digits, larger rates": "images-larger-rates/digits-mlp/{}",
    "MNIST, larger rates": "images-larger-rates/MNIST-n5000-mlp/{}",
    PHOTOGRAPHS_AGAIN: "images-larger-rates/cifar10-jpeg-n4000-small_cnn/{}",
    "hand signs, 10 per class": "finetune/sign-language-digits-10-shots/{}",
    "photos": "finetune/cifar10-jpeg-10-shots/{}",
    "hand signs, 5 per class": "finetune/sign-language-digits-5-shots/{}",
    "TREC": "finetune/trec-10-shots/{}",
    "SST-2": "finetune/sst2-20-shots/{}",
    SENSING: "sensing/d100-r5/{}",
}
# At equal compute these methods of one pass per step train for all the epochs.
ONE_PASS = ("ERM", "SoftAD")
FULL = {EQUAL: PLANE, EQUAL_FALLING: FALLING}  # the task that has their records
# The smallest gain in accuracy worth having, by the plan: a point where nets are large.
_LARGE = {"CIFAR-10", PHOTOGRAPHS_AGAIN, *FINE_TUNING}
WORTH = {task: 0.01 if task in _LARGE else 0.005 for task in TASKS}

Comparison = tuple[str, str, tuple[str, ...]]  # task, reference, methods
ALL: tuple[str, ...] = ()  # methods that have records


def _direct(tasks: Sequence[str]) -> list[Comparison]:
    """What the abstracts compare with other methods than plain training."""
    floods: list[Comparison] = [(task, "Flooding", ("SoftAD",)) for task in tasks]
    return floods + [(task, "SAM", ("SoftAD", "GNP", "NSO")) for task in tasks]


# Each is corrected by Holm's method as one, for each metric: those of the plan, and
# those that it lists as decided later.
FAMILIES: list[list[Comparison]] = [
    *([(task, "ERM", ALL)] for task in PLANES),
    *([(task, "WeightNoise", ALL)] for task in (PLANE, FALLING)),
    [(task, "ERM", ALL) for task in IMAGES],
    [(PHOTOGRAPHS_AGAIN, "ERM", ALL)],
    [(task, "ERM", ALL) for task in PERCEPTRONS_AGAIN],
    [(task, "ERM", ALL) for task in FINE_TUNING],
    [
        *_direct([PLANE, FALLING]),
        *((task, "SAM", ("SoftAD", "GNP", "NSO")) for task in FULL),
        (EQUAL, "WeightNoise", ("NSO",)),
    ],
    [(WIDE, "ERM", ALL), (WIDE, "Flooding", ("SoftAD",)), (WIDE, "SAM", ("SoftAD",))],
    _direct(IMAGES),
    _direct([PHOTOGRAPHS_AGAIN]),
    _direct(PERCEPTRONS_AGAIN),
    _direct(FINE_TUNING),
    [(SENSING, "WeightNoise", ("NSO",)), (SENSING, "GD", ("NSO",))],
]
FORMS = {  # of a metric: its name, with the unit, scale and format
    "test_accuracy": ("accuracy, points", 100, "+.2f"),
    "test_loss": ("test loss, nats", 1, "+.3f"),
    "loss_gap": ("loss gap, nats", 1, "+.3f"),
    "norm": ("norm of the weights", 1, "+.2f"),
    "distance": ("distance", 1, "+.4f"),
}
# Of these a smaller one is not a merit by itself, or no setting was chosen.
SIZES = ("loss_gap", "norm", "distance")
AT_EDGE = "at an edge"
MEASURES = {
    "trace": "trace",
    "top_eigenvalue": "top eigenvalue",
    "relative_flatness": "relative flatness",
    "grad_norm": "gradient norm",
}
FITS = 0.01  # the training loss below which a net counts as fitting its data

Row = dict[str, str]  # of a table of results: its cells by column


def _planned(pattern: str) -> list[Any]:
    """The declared experiments of that name."""
    return [e for e in EXPERIMENTS if fnmatch(e.name, pattern)]


@cache
def _fresh(task: str) -> tuple[pandas.DataFrame, pandas.Series[int], int]:
    """The fresh runs of methods with a record on every set of a task; of each method,
    on how many sets it has one; and the number of sets.
    """
    pattern = TASKS[task].format("*")
    names = [name for name in records.names() if fnmatch(name, pattern)]
    if names and task in FULL:
        names += [TASKS[FULL[task]].format(method) for method in ONE_PASS]
    runs = compare.select(names) if names else pandas.DataFrame()
    if runs.empty:
        runs = pandas.DataFrame(columns=["record", "task", "method"])
    sets = len({e.task["name"] for e in _planned(pattern)})
    counts = runs.groupby("method")["task"].nunique()
    return runs[runs["method"].map(counts) == sets], counts, sets


@cache
def _tests(family: int, metric: str) -> dict[tuple[str, str, str], Any]:
    """(task, reference, method) -> its test, with the verdict of its family."""
    tables = {}
    for task, reference, methods in FAMILIES[family]:
        runs = _fresh(task)[0]
        if methods:
            runs = runs[runs["method"].isin([reference, *methods])]
        elif task in FULL:
            others = [method for method in ONE_PASS if method != reference]
            runs = runs[~runs["method"].isin(others)]
        if metric in runs and reference in set(runs["method"]):
            table = compare.overall(runs, reference, metric)
            tables[f"{task}, {reference}"] = table.assign(task=task, against=reference)
    if not tables:
        return {}
    tests = verdicts.family(tables)
    found = {}
    for worth in sorted(set(WORTH.values())):
        gain = worth if metric == "test_accuracy" else None
        for row in verdicts.verdicts(tests, metric, gain).itertuples():
            if WORTH[row.task] == worth:
                found[row.task, row.against, row.method] = row
    return found


def test_of(task: str, method: str, reference: str, metric: str) -> Any:
    """The test of a method against a reference on a task, in its family; None where the
    records lack one of the two.

    >>> test_of("plane, constant rate", "SoftAD", "SAM", "loss_gap").verdict
    'better'
    """
    for index, family in enumerate(FAMILIES):
        for group, against, methods in family:
            if (group, against) == (task, reference) and (
                not methods or method in methods
            ):
                return _tests(index, metric).get((task, reference, method))
    raise ValueError(f"no family has {method} against {reference} on {task}")


def row_of(test: Any, task: str, against: str, metric: str, worth: float) -> Row:
    """A test of `verdicts.verdicts` as a row of a table: task, what is measured, the
    reference, the difference, the half-width of its interval, seeds, the verdict.
    """
    name, scale, spec = FORMS[metric]
    return {
        "task": task,
        "measure": name,
        "against": against,
        "difference": f"{scale * test.difference:{spec}}",
        "interval": f"±{NBSP}{scale * test.interval:{spec.lstrip('+')}}",
        "n": str(test.n),
        "verdict": _words(test, metric, worth),
    }


def _words(test: Any, metric: str, worth: float) -> str:
    """A verdict in plain words."""
    _, scale, spec = FORMS[metric]
    words = str(test.verdict)
    if words in ("better", "worse"):
        sizes = {"better": "smaller", "worse": "larger"}
        word = sizes[words] if metric in SIZES else words
        words = f"significantly {word}"
        if metric == "test_accuracy" and abs(test.difference) + test.interval < worth:
            words += f", under {'half a point' if worth == 0.005 else 'a point'}"
    elif words == "at an edge":
        words = f"no verdict{', though significant' * (test.p_holm < LEVEL)}: {AT_EDGE}"
    elif words == "no gain worth having":
        end = scale * (test.difference + test.interval)
        words += f" ({'at most' if end > 0 else 'the interval ends at'} {end:{spec}})"
    elif words == "inconclusive":
        words += f" (detectable: {scale * test.detectable:{spec.lstrip('+')}})"
    return words if test.agree else f"{words}; Wilcoxon's test disagrees"


def gain(
    task: str, method: str, reference: str = "ERM", metric: str = "test_accuracy"
) -> Row:
    """A row on a method minus its reference, as by `row_of`; empty where the records
    lack one of the two.

    >>> gain("plane, constant rate", "SoftAD", "SAM", "loss_gap")["verdict"]
    'significantly smaller'
    """
    test = test_of(task, method, reference, metric)
    if test is None:
        return {}
    against = report.NAMES.get(reference, reference)
    return row_of(test, task, against, metric, WORTH[task])


# The two tasks that were fine-tuned again under fifteen new seeds, by their records.
AGAIN = {"sign-language-digits-5-shots": "hand signs", "sst2-20-shots": "SST-2"}


def fine_tuned_again() -> pandas.DataFrame:
    """The runs of the plan's families J and K, `finetune-again/`: task, method (with the
    setting, and the epochs if not 30), seed, test_accuracy, and lr, the learning rate.

    >>> fine_tuned_again()["method"].iloc[0]
    'ERM, as chosen'
    """
    longer = f"-{EQUAL_PASSES}-epochs"
    names = [name for name in records.names() if name.startswith("finetune-again/")]
    tables = []
    for name in sorted(names, key=lambda name: (longer in name, name)):
        record, folder = records.load(name), name.split("/")[1]
        method = record["method"]
        labels = [f"{method}, as chosen", f"{method}, NSO's setting"]
        if method == "ERM":
            labels[1] = "ERM at NSO's rate"
        for label, setting, values in zip(
            labels, record["settings"], record["final"]["test_accuracy"], strict=False
        ):
            columns = {
                "task": AGAIN[folder.removesuffix(longer)],
                "method": label + f", {EQUAL_PASSES} epochs" * folder.endswith(longer),
                "seed": record["seeds"],
                "test_accuracy": values,
                "lr": setting["lr"],
            }
            tables.append(pandas.DataFrame(columns))
    runs = pandas.concat(tables, ignore_index=True)
    order = list(AGAIN.values()).index
    return runs.sort_values("task", kind="stable", key=lambda tasks: tasks.map(order))


@cache
def again_tests() -> pandas.DataFrame:
    """NSO as chosen minus each of the others of `fine_tuned_again`, by task and method:
    families J and K, corrected as one.

    >>> len(again_tests())
    15
    """
    runs = fine_tuned_again()
    tests = compare.paired(runs, "NSO, as chosen", "test_accuracy")
    tests[["difference", "trimmed"]] *= -1
    tests = verdicts.verdicts(tests, "test_accuracy", 0.01)
    return tests.set_index(["task", "method"])


def again(task: str, reference: str) -> Row:
    """A row on NSO minus a reference under the fifteen new seeds, as by `row_of`.

    >>> again("SST-2", "ERM, as chosen")["verdict"]
    'significantly better'
    """
    test = again_tests().loc[task, reference]
    row = row_of(test, task, reference, "test_accuracy", 0.01)
    return row | {"measure": "accuracy under new seeds, points"}


@cache
def _endings(task: str, below: float) -> dict[tuple[str, str], Any]:
    """(measure, method) -> its ratio at the end of training to plain training's."""
    runs = _fresh(task)[0]
    if "ERM" not in set(runs["method"]):
        return {}
    rows = verdicts.endings(runs["record"].unique(), below=below).itertuples()
    return {(row.measure, row.method): row for row in rows}


def ending(task: str, method: str, measure: str, *, fitting: bool = False) -> Row:
    """A row on a measure of flatness at the end, as a ratio to plain training's; with
    `fitting`, of the pairs of nets that both fit, which selects by an outcome. Empty
    where the records lack one of the two.

    >>> ending("plane, constant rate", "NSO", "trace")["verdict"]
    'significantly smaller'
    """
    row = _endings(task, FITS if fitting else math.inf).get((measure, method))
    if row is None:
        return {}
    if row.n < compare.LEAST_SEEDS:
        words = "too few seeds"
    elif row.at_edge:
        words = f"no verdict: {AT_EDGE}"
    elif fitting:
        words = "descriptive"
    elif math.isnan(row.p_holm):
        words = "no test planned"
    elif row.p_holm < LEVEL:
        words = f"significantly {'smaller' if row.ratio < 1 else 'larger'}"
    else:
        words = f"inconclusive (detectable: ×{NBSP}{row.detectable:.2f})"
    ratio = f"×{NBSP}{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}]"
    return {
        "task": f"{task}{', pairs that both fit' * fitting}",
        "measure": MEASURES[measure],
        "over ERM's": ratio.replace(" ", NBSP),
        "n": str(row.n),
        "training loss; ERM's": f"{row.train_loss:#.2g};{NBSP}{row.baseline_loss:#.2g}",
        "verdict": words,
    }


def untested(what: str, patterns: Iterable[str], methods: Sequence[str]) -> str:
    """A line on what no record is of, and what its records would cost, of all methods
    together; empty if nothing lacks. {} in a pattern is for the method.

    >>> untested("matrix sensing", ["sensing/*/{}"], ["NSO", "GD"])
    ''
    """
    recorded = set(records.names())
    names = [pattern.format(method) for pattern in patterns for method in methods]
    planned = [experiment for name in names for experiment in _planned(name)]
    costs = [e.cost for e in planned if e.name not in recorded]
    if not costs:
        return ""
    gpu = sum(cost.gpu_minutes for cost in costs)
    cpu = sum(cost.cpu_minutes for cost in costs) / 60
    minutes = f"{gpu:,.0f} GPU minutes" if gpu >= 2 else "a GPU minute or two"
    return f"{what} ({minutes} or {cpu:,.{int(cpu < 10)}f} CPU hours)"


def unrecorded(tasks: Iterable[str], methods: Sequence[str]) -> str:
    """As `untested`, of the tasks on which the records lack one of the methods.

    >>> unrecorded(["plane, constant rate"], ["NSO", "SAM"])
    ''
    """
    lacking = [task for task in tasks if untested("", [TASKS[task]], methods)]
    return untested("; ".join(lacking), [TASKS[task] for task in lacking], methods)


def tally(rows: Sequence[Row]) -> str:
    """How often each verdict is in a table, by what is measured; with the reference and
    the number of seeds, if all rows share them.

    >>> row = {"measure": "accuracy, points", "against": "ERM", "n": "5"}
    >>> tally([{**row, "verdict": "significantly better"}, {}])
    'Accuracy against ERM (n = 5): 1 better.'
    """
    rows = [row for row in rows if row]
    kinds: dict[str, Counter[str]] = {}
    for row in rows:
        word = row["verdict"].removeprefix("significantly ")
        kind = re.split("[,:;(]", word)[0].strip()
        kinds.setdefault(row["measure"].partition(",")[0], Counter())[kind] += 1
    references = {row.get("against", "") for row in rows}
    seeds = {row["n"] for row in rows}
    shared = f" against {min(references)}" if len(references - {""}) == 1 else ""
    shared += f" (n = {min(seeds)})" if len(seeds) == 1 else ""
    counts = [
        f"{measure[0].upper()}{measure[1:]}{shared}: "
        + ", ".join(f"{count} {kind}" for kind, count in each.items())
        for measure, each in kinds.items()
    ]
    return f"{'. '.join(counts)}." if counts else ""


def rows_table(rows: Sequence[Row]) -> pandas.DataFrame:
    """The rows that are not empty. What all share stands in the heads: what is measured,
    the reference, and the number of seeds.

    >>> row = gain("plane, constant rate", "SoftAD", "SAM", "loss_gap")
    >>> list(rows_table([row | {"n": "60"}, row | {"n": "5"}]))
    ['task', 'loss gap, nats <br>minus SAM', 'interval', 'n', 'verdict']
    """
    table = pandas.DataFrame([row for row in rows if row])
    shared = {
        name: values.iloc[0] for name, values in table.items() if len(set(values)) == 1
    }
    measure, heads = shared.get("measure", ""), {}
    if "difference" in table:
        head = "points" if measure.endswith("points") else measure
        if "against" in shared:
            head += f" <br>minus {shared['against']}"
        heads["difference"] = head
    elif measure:
        heads["over ERM's"] = f"{measure} over ERM's"
    if "n" in shared:
        last = "interval" if "interval" in table else "over ERM's"
        heads[last] = f"{heads.get(last, last)}, n{NBSP}={NBSP}{shared['n']}"
    table = table.rename(columns=heads)
    return table.drop(columns={"measure", "against", "n"} & set(shared))


def evidence(*tables: Sequence[Row], missing: Iterable[str] = ()) -> None:
    """Show what the records have on a claim: of each table that has rows print the `tally`,
    and in a notebook display it; then print what is not tested. The rows of a table are of
    `gain`, of one metric, or of `ending`.

    >>> evidence([], missing=["MNIST (3 GPU minutes)", ""])
    Not tested: MNIST (3 GPU minutes).
    """
    notebook: Any = sys.modules.get("IPython.display")
    for table in filter(any, tables):
        print(tally(table))
        if notebook:
            notebook.display(words_table(rows_table(table)))
    if lacking := "; ".join(filter(None, missing)):
        print(f"Not tested: {lacking}.")
