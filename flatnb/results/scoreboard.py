"""The scoreboard: what each method gains over a baseline, in many views of the records.

A view is a rule (how settings were chosen), a place (on which sets), a metric and a
baseline. Its tests, one per method, are a family, as in `verdicts.gains`; those of small
images are one family over all their views, as the plan has it.
"""

import fnmatch
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas

from flatnb.results import compare, records, verdicts
from flatnb.results.statistics import LEVEL, holm

METRICS = ("test_accuracy", "test_loss", "test_ece")
COLUMNS = ["rule", "place", "metric", "baseline", "method", "passes", "gain"]
COLUMNS += ["interval", "n", "p_holm", "verdict", "agree"]


class Place(NamedTuple):
    """Where a reader may look."""

    words: str
    tasks: tuple[str, ...]
    worth: float = verdicts.WORTH  # the smallest gain in accuracy worth having
    family: str = ""  # places of one are corrected together; without, a place by itself


SHAPES, SHARES = ("gaussian", "sinusoid", "spiral"), ("0", "0.05", "0.1")


def _plane(words: str, shapes: Sequence[str], shares: Sequence[str]) -> Place:
    pairs = itertools.product(shapes, shares)
    return Place(words, tuple(f"plane/{shape}-{share}" for shape, share in pairs))


PLACES = (
    _plane("all nine sets", SHAPES, SHARES),
    _plane("noisy labels, six sets", SHAPES, SHARES[1:]),
    _plane("clean labels, three sets", SHAPES, SHARES[:1]),
    *(_plane(f"{shape}, three sets", [shape], SHARES) for shape in SHAPES),
    *(
        _plane(f"{shape}, {100 * float(share):g} % wrong labels", [shape], [share])
        for shape, share in itertools.product(SHAPES, SHARES)
    ),
    Place("images: digits", ("images/digits-mlp",), family="F"),
    Place("images: 5,000 of MNIST", ("images/MNIST-n5000-mlp",), family="F"),
    Place(
        "images: 4,000 of CIFAR-10",
        ("images/cifar10-jpeg-n4000-small_cnn",),
        0.01,
        family="F",
    ),
    Place(
        "images: 4,000 of CIFAR-10, larger rates",
        ("images-larger-rates/cifar10-jpeg-n4000-small_cnn",),
        0.01,
    ),
    Place(
        "images: digits, larger rates",
        ("images-larger-rates/digits-mlp",),
        family="Q",
    ),
    Place(
        "images: 5,000 of MNIST, larger rates",
        ("images-larger-rates/MNIST-n5000-mlp",),
        family="Q",
    ),
)

DEFAULTS = "published defaults"  # the rule by which nothing is tuned
ONE_RATE = "the same for all"  # that by which plain training is not


def rules(
    plane: str = "plane/*/narrow-tuned",
    images: str = "images*/*",
    one_rate: str = "plane/*/narrow-grid",
) -> dict[str, pandas.DataFrame]:
    """The runs that `views` compares, by how the learning rates were chosen.

    - "tuned, falling": fresh runs with rates that fall along a cosine, all of images;
    - "tuned, constant": fresh runs of the plane at a constant rate;
    - "equal passes, falling", "equal passes, constant": both again in the plane, those of
      p passes per step trained for 1/p of the epochs, and tuned at that length;
    - "the same for all": fresh runs of the plane, Adam at a constant 0.001;
    - "published defaults": fresh runs of these, in the plane at a constant rate.

    Rules without records are left out.

    >>> list(rules("plane/gaussian-0/*/narrow-tuned", "none/*", "none/*"))[:3]
    ['tuned, falling', 'tuned, constant', 'equal passes, falling']
    """
    falling = f"{plane}-cosine"
    defaults = _runs([plane, images], "default")
    if len(defaults):  # a search with larger rates has the same once more
        again = defaults["task"].str.startswith("images-larger-rates/")
        defaults = defaults[~again]
    found = {
        "tuned, falling": _runs([falling, images]),
        "tuned, constant": _runs([plane]),
        "equal passes, falling": _equal_passes(falling, f"{plane}-equal-passes-cosine"),
        "equal passes, constant": _equal_passes(plane, f"{plane}-equal-passes"),
        ONE_RATE: _runs([one_rate]),
        DEFAULTS: defaults,
    }
    found = {rule: runs for rule, runs in found.items() if len(runs)}
    return found


def _equal_passes(whole: str, shorter: str) -> pandas.DataFrame:
    """The shorter runs, and of the whole ones those of methods of one pass."""
    runs = _runs([shorter])
    if len(runs):
        tuned = _runs([whole])
        runs = pandas.concat([runs, tuned[tuned["passes"] == 1]])
    return runs


def _runs(patterns: Sequence[str], kind: str = "fresh") -> pandas.DataFrame:
    known = [p for p in patterns if fnmatch.filter(records.names(), p)]
    return compare.select(known, kind) if known else pandas.DataFrame()


def views(
    runs: Mapping[str, pandas.DataFrame],
    baselines: Sequence[str],
    level: float = LEVEL,
) -> pandas.DataFrame:
    """Every view that the runs allow; for each rule its runs, as in `compare.select`.

    A view has the methods with runs on all tasks of the place. There is none without
    the baseline, or without another method. Columns rule, place, metric, baseline,
    method, passes, gain (the difference, with the other sign where less is better),
    interval, n, p_holm, verdict, agree: as in `verdicts.gains`.

    >>> runs = compare.select(["plane/gaussian-0/*/narrow-tuned"])
    >>> views({"everyone tunes": runs}, ["ERM"])["place"].unique().tolist()
    ['gaussian, 0 % wrong labels']
    """
    parts = [pandas.DataFrame(columns=COLUMNS)]
    for rule, table in runs.items():
        table = table.assign(task=table["task"].str.removesuffix(", tuned lr"))
        passes = table.groupby(["task", "method"])["passes"].first()
        chosen = table.get("at_edge", pandas.Series(data=False, index=table.index))
        at_edge = set(
            table.loc[chosen, ["task", "method"]].itertuples(index=False, name=None)
        )
        for metric in filter(set(table).__contains__, METRICS):
            values = compare.wide(table[table[metric].notna()], metric)
            inside = {place: _inside(values, place) for place in PLACES}
            for baseline in baselines:
                tests = _tests(inside, baseline, at_edge)
                for place, view in _judged(tests, metric, level):
                    keys = {"rule": rule, "place": place.words, "metric": metric}
                    keys |= {"baseline": baseline}
                    costs = passes[place.tasks[0]].reindex(view["method"]).to_numpy()
                    parts.append(view.assign(**keys, passes=costs)[COLUMNS])
    return pandas.concat(parts[1:] or parts, ignore_index=True)


def _inside(values: pandas.DataFrame, place: Place) -> pandas.DataFrame:
    """The values of the methods that have some on all tasks of a place."""
    there = values[values.index.get_level_values("task").isin(place.tasks)]
    tasks = there.notna().groupby("task").any()
    there = there.loc[:, (len(tasks) == len(place.tasks)) & tasks.all()]
    return there if there.shape[1] > 1 else there.iloc[:, :0]


def _tests(
    inside: Mapping[Place, pandas.DataFrame],
    baseline: str,
    at_edge: Collection[tuple[str, str]],
) -> pandas.DataFrame:
    """Each method against the baseline in each place that has both, as in
    `compare.paired`; at an edge, (task, method), is lost where one of the two is on a task
    of the place."""
    gaps, lost = {}, set()
    for place, values in inside.items():
        if baseline in values:
            others = values.drop(columns=baseline)
            means = compare.over_tasks(others.sub(values[baseline], axis=0))
            edges = {method for task, method in at_edge if task in place.tasks}
            for method in means:
                gaps[place, method] = means[method]
                if {method, baseline} & edges:
                    lost.add((place, method))
    return compare.tests_of(gaps, "place", lost)


def _judged(
    tests: pandas.DataFrame, metric: str, level: float
) -> Iterator[tuple[Place, pandas.DataFrame]]:
    """The tests of each place with their verdicts, those of a family corrected as one."""
    gain = tests["difference"] * compare.sign(metric)
    families = tests["place"].map(lambda place: place.family or place.words)
    for place, view in tests.assign(gain=gain).groupby("place", sort=False):
        family = tests[families == (place.family or place.words)]
        family = family.assign(p_holm=holm(family["p"]))
        worth = place.worth if metric == "test_accuracy" else None
        judged = verdicts.verdicts(family, metric, worth, level)
        yield (
            place,
            view.drop(columns="p_holm").join(judged[["p_holm", "verdict", "agree"]]),
        )
