"""Training the settings of a method, at once or one after another, and the record of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from flatnb.curvature import FLATNESS, ensemble_flatness
from flatnb.data import Data
from flatnb.ensemble import Ensemble, groups
from flatnb.experiments.tuning import SGD, Optimizer, Setting, Tuned
from flatnb.methods import ERM, Method, held_out_losses
from flatnb.metrics import cross_entropy
from flatnb.results import records
from flatnb.results.sweep import Job, Result
from flatnb.train import Run, fit

METRICS = (
    *("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    *("test_loss", "test_accuracy", "test_ece", "norm", "grad_norm"),
)
TUNING_SEED = 1000  # used for nothing but the choice of a setting
_FLATNESS_EXAMPLES = 2048  # as many as the gradient's norm is taken of

Curve = list[float | None]
Value = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """How a net trains, and where the training resumes from.

    Attributes:
        epochs, every, seed: of `flatnb.fit`.
        cosine: anneal the learning rate to 0 over the epochs.
        checkpoint: the file that a sweep gives a job; each training of the job has one
            next to it.
        name: tells the trainings of a job apart.
    """

    epochs: int
    every: int
    seed: int
    cosine: bool = True
    checkpoint: Path | None = None
    name: str = "net"

    def fit(
        self,
        model: nn.Module,
        data: Data,
        method: Method,
        optimizer: torch.optim.Optimizer,
        **options: Any,
    ) -> Run:
        """`flatnb.fit`, which goes on where an interrupted job ended."""
        schedule = CosineAnnealingLR(optimizer, self.epochs) if self.cosine else None
        if self.checkpoint is not None:
            options["checkpoint"] = self.checkpoint.with_suffix(f".{self.name}.pt")
        return fit(
            model,
            data,
            method,
            optimizer,
            epochs=self.epochs,
            every=self.every,
            seed=self.seed,
            scheduler=schedule,
            **options,
        )

    def clear(self) -> None:
        """Remove the checkpoints of all trainings of the job."""
        if self.checkpoint is not None:
            for file in self.checkpoint.parent.glob(f"{self.checkpoint.stem}.*.pt"):
                file.unlink(missing_ok=True)


def device() -> torch.device:
    """The device that the experiments train on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def result(epochs: Sequence[int], metrics: Mapping[str, Any], **tables: Any) -> Value:
    """What a job returns: tables, and the threads and the device that it used."""
    cuda = torch.cuda.is_available()
    return {
        "epochs": list(epochs),
        "metrics": metrics,
        **tables,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def numbers(values: Sequence[float]) -> Curve:
    """To 6 significant digits; None where there is no number.

    >>> numbers([0.12345678, float("nan")])
    [0.123457, None]
    """
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values]


def _history(run: Run, metric: str) -> list[Any]:
    """A metric by epoch: of the average of the weights, where there is one."""
    return [entry.get(f"average_{metric}", entry[metric]) for entry in run.history]


# --- all members at once ------------------------------------------------------------


def train_members(
    make_model: Callable[[], nn.Module],
    data: Callable[[Sequence[int]], Data],
    method: Tuned,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    optimizer: Optimizer,
    training: Training,
) -> Value:
    """Train a member per setting and seed, in ensembles that fit the memory.

    Args:
        make_model: the plain net, made under each member's seed.
        data: called with seeds; the data of such members, stacked or shared by all.
        settings, seeds: one per member.
        optimizer: of methods that have none of their own.

    Returns:
        "epochs"; "metrics", {name of METRICS: [member][epoch]}; and "flatness", {name
        of FLATNESS: [member]}, at the end on the first 2048 of its training examples.
        None where there is no number, or the eigenvalue did not converge. With an
        average of the weights, all are those of the average.
    """
    epochs: list[int] = []
    metrics: dict[str, list[Curve]] = {metric: [] for metric in METRICS}
    flatness: dict[str, Curve] = {measure: [] for measure in FLATNESS}
    losses = None
    if method.auxiliary:
        losses = _held_out(make_model, data, method, seeds, optimizer, training)
    for k, part in enumerate(_parts(make_model(), len(settings))):
        places = [seeds[i] for i in part]
        model = Ensemble(make_model, len(part), places).to(device())
        tried, examples = [settings[i] for i in part], data(places).to(device())
        average = method.averaged(model, tried, training.epochs * examples.steps)
        run = replace(training, name=f"{training.name}-{k}").fit(
            model,
            examples,
            method.build(tried, None if losses is None else losses[part]),
            (method.optimizer or optimizer).together(model, tried),
            average=average,
        )
        epochs = [entry["epoch"] for entry in run.history]
        for metric, curves in metrics.items():
            curves.extend(map(numbers, zip(*_history(run, metric), strict=True)))
        net = model if average is None else cast(Ensemble, average.module)
        for measure, values in _flatness(net, examples).items():
            flatness[measure].extend(numbers(values.tolist()))
    return result(epochs, metrics, flatness=flatness)


def _flatness(model: Ensemble, data: Data) -> dict[str, Tensor]:
    examples = data.train[:_FLATNESS_EXAMPLES]
    measured = ensemble_flatness(model, examples.x, examples.y)
    values = {measure: getattr(measured, measure) for measure in FLATNESS}
    top = values["top_eigenvalue"]
    converged = measured.residual <= measured.settings["tol"] * top.abs()
    return values | {"top_eigenvalue": top.where(converged, torch.nan)}


def _parts(net: nn.Module, members: int) -> list[range]:
    """Places of each ensemble's members; on a GPU as few as its free memory allows."""
    if device().type == "cpu":
        return groups(net, members)
    # A member takes most while its flatness is measured: 14 times its parameters,
    # gradients and Adam's averages among them, and its activations.
    size = max(p.element_size() for p in net.parameters())
    return groups(net, members, _free_bytes() // (20 * size))


def _free_bytes() -> int:
    """Free memory of the GPU, with what PyTorch holds of tensors that are freed."""
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def _held_out(
    make_model: Callable[[], nn.Module],
    data: Callable[[Sequence[int]], Data],
    method: Tuned,
    seeds: Sequence[int],
    optimizer: Optimizer,
    training: Training,
) -> Tensor:
    """Losses of the training examples under auxiliary nets, (members, examples).

    Each seed's nets train plainly at the published learning rate. The parts left out are
    drawn, one draw for all seeds, because examples may lie in order.
    """
    distinct = sorted(set(seeds))
    examples = data(distinct).to(device())
    generator = torch.Generator().manual_seed(training.seed)
    order = torch.randperm(len(examples.train), generator=generator)
    nets = itertools.count()

    def train(others: Tensor) -> Callable[[Tensor], Tensor]:
        model = Ensemble(make_model, len(distinct), distinct).to(device())
        name = f"{training.name}-auxiliary-{next(nets)}"
        replace(training, every=training.epochs, name=name).fit(
            model,
            replace(examples, train=examples.train[others]),
            ERM(),
            optimizer.together(
                model, [{"lr": optimizer.rates.default}] * len(distinct)
            ),
        )

        def score(fold: Tensor) -> Tensor:
            split = examples.train[fold]
            return cross_entropy(model.eval()(split.x), split.y)

        return score

    losses = held_out_losses(order, method.auxiliary, train)
    return losses[[distinct.index(seed) for seed in seeds]]


# --- one net after another ----------------------------------------------------------


def train_net(
    model: nn.Module,
    data: Data,
    method: Tuned,
    setting: Setting,
    training: Training,
    weight_decay: float = 0.0,
) -> Value:
    """Train a net, on a GPU in bfloat16; with an average it ends as the average.

    Args:
        weight_decay: of SGD, by which methods train that have no optimizer of their own.

    Returns:
        "epochs" and "metrics", {name: [[[of each epoch]]]}: a table of one setting and
        seed; None for a run that stopped before its last epoch.
    """
    # Channels-last, which GPUs want, saves a quarter of a narrow net's time on a CPU.
    model.to(device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = method.averaged(model, [setting], training.epochs * data.steps)
    run = training.fit(
        model,
        data,
        method.build([setting]),
        (method.optimizer or SGD).alone(model, setting, weight_decay),
        average=average,
        dtype=torch.bfloat16 if device().type == "cuda" else None,
    )
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    last = training.epochs
    epochs = [e for e in range(last + 1) if e % training.every == 0 or e == last]
    curves = {metric: numbers(_history(run, metric)) for metric in METRICS}
    if run.stopped is not None:
        curves = dict.fromkeys(METRICS, [None] * len(epochs))
    return result(epochs, {metric: [[curve]] for metric, curve in curves.items()})


def tune(
    train: Callable[[Setting, Training], Value],
    settings: Sequence[Setting],
    seeds: Sequence[int],
    training: Training,
) -> Value:
    """Train every setting under TUNING_SEED, then the best of them under each seed.

    Args:
        train: called with a setting, and the training with another seed and name;
            returns a table of one setting and seed.

    Returns:
        "epochs"; "metrics", {name: [setting][seed][epoch]}, None where nothing was run;
        and "tuning", {tuning_name: [setting][seed]}, which has what each setting ended
        with under the tuning seed in its first column.
    """

    tried = [
        train(setting, replace(training, seed=TUNING_SEED, name=f"tuning-{i}"))
        for i, setting in enumerate(settings)
    ]
    ends = {m: [run["metrics"][m][0][0][-1] for run in tried] for m in METRICS}
    chosen = choose(ends["val_accuracy"], ends["val_loss"])
    runs = [
        train(settings[chosen], replace(training, seed=seed, name=f"seed-{seed}"))
        for seed in seeds
    ]
    epochs = runs[0]["epochs"]
    unused: list[Curve] = [[None] * len(epochs)] * len(seeds)
    metrics: dict[str, list[list[Curve]]] = {}
    for metric in METRICS:
        metrics[metric] = [unused] * len(settings)
        metrics[metric][chosen] = [run["metrics"][metric][0][0] for run in runs]
    others = [None] * (len(seeds) - 1)
    tuning = {f"tuning_{m}": [[end, *others] for end in ends[m]] for m in METRICS}
    training.clear()
    return result(epochs, metrics, tuning=tuning)


def choose(accuracies: Curve, losses: Curve) -> int:
    """The setting of best validation accuracy; ties by lower loss.

    A run without a finite loss is not eligible; 0 if none is.

    >>> choose([0.8, 0.9, 0.9, 1.0], [0.1, 0.3, 0.2, None])
    2
    """

    def rank(i: int) -> tuple[float, float]:
        accuracy, loss = accuracies[i], losses[i]
        if accuracy is None or loss is None:
            return -math.inf, -math.inf
        return accuracy, -loss

    return max(range(len(accuracies)), key=rank)


def choose_largest(accuracies: Curve, settings: Sequence[Setting]) -> int:
    """As `choose`, but of equal accuracies the largest hyperparameter.

    Of several, the first that is not the learning rate.

    >>> choose_largest([0.9, 0.9, 0.8], [{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}])
    1
    """
    name = [*settings[0], "lr"][1]

    def rank(i: int) -> tuple[float, float]:
        accuracy = accuracies[i]
        return (-math.inf if accuracy is None else accuracy), settings[i][name]

    return max(range(len(accuracies)), key=rank)


# --- experiments and their records --------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One task and one method: two jobs, and the record that their results make.

    Attributes:
        title: what it is, in a line.
        value, gpu_minutes, cpu_minutes: of `tasks.Cost`, for all runs.
        job: all runs; it returns a `result` of tables [setting][seed].
        sample: a cheap job, which verifying the record repeats.
        name, task, method, passes, settings, seeds: as the record states them.
        space: what was searched, in words.
        budget: the settings that can be chosen, the first so many.
        per: a setting is chosen for each "seed", or for the "task" by the tuning seed;
            None: nothing is tuned, the first is taken.
        sampled: the metrics of the sample that the record keeps.
    """

    name: str
    title: str
    value: int
    gpu_minutes: float
    cpu_minutes: float
    job: Job
    sample: Job
    task: Mapping[str, Any]
    method: str
    passes: float
    settings: Sequence[Setting]
    seeds: Sequence[int]
    space: str
    budget: int
    per: str | None = "seed"
    sampled: Sequence[str] = (
        *("train_loss", "train_accuracy"),
        *("test_loss", "test_accuracy"),
    )

    def jobs(self) -> list[Job]:
        """The jobs of a sweep."""
        return [self.job, self.sample]

    def record(self, results: Sequence[Result]) -> dict[str, Any]:
        """The record of the jobs' results, in their order.

        Raises:
            RuntimeError: a job failed; a record needs both.
        """
        failed = [each for each in results if each.value is None]
        if failed:
            raise RuntimeError(
                f"{len(failed)} of {len(results)} jobs failed, the first with "
                f"{failed[0].error}; fix the cause and make the record again with retry"
            )
        runs, sample = (cast(Value, each.value) for each in results)
        final = {
            metric: [[curve[-1] for curve in row] for row in table]
            for metric, table in runs["metrics"].items()
        }
        final |= runs.get("flatness", {}) | runs.get("tuning", {})
        selection = self._selection(final)
        curves = {
            metric: [table[i][j] for j, i in enumerate(selection["chosen"])]
            for metric, table in runs["metrics"].items()
        }
        seconds = sum(each.seconds for each in results)
        return {
            "schema": 1,
            "name": self.name,
            "task": self.task,
            "method": self.method,
            "passes": self.passes,
            "settings": self.settings,
            "seeds": self.seeds,
            "final": final,
            "curves": {
                "epochs": runs["epochs"],
                "setting": selection["chosen"],
                "metrics": curves,
            },
            "selection": selection,
            "failures": self._failures(final, selection["chosen"]),
            "sample": self._sample(sample),
            "provenance": {
                **records.provenance(),
                "threads": runs["threads"],
                "device": runs["device"],
                "seconds": seconds,
            },
        }

    def _selection(self, final: Mapping[str, Any]) -> dict[str, Any]:
        stated = {"space": self.space, "budget": self.budget, "per": self.per or "task"}
        places = range(len(self.seeds))
        if self.per is None:
            unused = {"split": None, "metric": None, "ties": None}
            return {**stated, **unused, "chosen": [0 for _ in places]}

        def column(metric: str, place: int) -> Curve:
            if self.per == "task":
                metric, place = f"tuning_{metric}", 0
            return [row[place] for row in final[metric][: self.budget]]

        accuracies = [column("val_accuracy", place) for place in places]
        losses = [column("val_loss", place) for place in places]
        return {
            **stated,
            "split": "val",
            "metric": "accuracy",
            "ties": "loss",
            "chosen": list(map(choose, accuracies, losses)),
            "otherwise": {
                "rule": "val accuracy, ties to the largest hyperparameter",
                "chosen": [choose_largest(each, self.settings) for each in accuracies],
            },
        }

    def _failures(
        self, final: Mapping[str, Any], chosen: Sequence[int]
    ) -> list[dict[str, Any]]:
        """The runs that ended without a number, of those that were made."""
        metric = self.sampled[0]
        error = "diverged" if self.per is None else "the loss was not finite"
        failures = [
            {"setting": i, "seed": self.seeds[j], "error": error}
            for i, row in enumerate(final[metric])
            for j, end in enumerate(row)
            if end is None and (self.per != "task" or i == chosen[j])
        ]
        return failures + [
            {"setting": i, "seed": self.seeds[0], "error": f"tuning: {error}"}
            for i, row in enumerate(final.get(f"tuning_{metric}", ()))
            if row[0] is None
        ]

    def _sample(self, sample: Value) -> dict[str, Any]:
        """Where the sample's first run ended, and how far a repetition may lie: other
        processors round otherwise, and training amplifies it."""
        ends = {
            f"metrics.{metric}.0.0.-1": sample["metrics"][metric][0][0][-1]
            for metric in self.sampled
        }
        tolerance = {
            path: 0.02 if self.per else 0.02 * abs(end or 0.0)
            for path, end in ends.items()
        }
        return {
            "call": self.sample.call,
            "settings": self.sample.settings,
            "metrics": ends,
            "tolerance": tolerance,
        }
