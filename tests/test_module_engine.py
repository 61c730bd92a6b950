"""Engines for modules that are no `Precond`: compiled, and one batch where both nets are one."""

import copy
import pickle
import warnings

import pytest
import torch
from nets import tiny
from tape import Tape

from autoguide_fast import Engine, sample, unlabelled
from autoguide_fast.adapters import EpsilonDenoiser
from autoguide_fast.engine.module_engine import ModuleEngine

ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 100, dtype=torch.float64), 0)


class Net(torch.nn.Module):
    """Predicts noise, from labels as indices (3 stands for none) and a text."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = torch.nn.Conv2d(2, 2, 3, padding=1)
        self.classes = torch.nn.Embedding(4, 2)
        self.batches = []

    def forward(self, x, time, class_labels=None, text=None):
        self.note(len(x))
        y = self.conv(x) * (1 + time.reshape(-1, 1, 1, 1) / 100)
        if class_labels is not None:
            y = y + self.classes(class_labels)[:, :, None, None]
        return y if text is None else y + text.mean(1)[:, None, None, None]

    @torch.compiler.disable
    def note(self, count):
        self.batches.append(count)


def denoiser(net=None, **options):
    options = {"label_dim": 3, "label_format": "index", "null_label": 3, **options}
    sizes = {"img_resolution": 4, "img_channels": 2, "check": False}
    return EpsilonDenoiser(net or Net(), ALPHAS, **sizes, **options)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Compiled without generated code: what is tested here is what is around it."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: compile(net, backend="eager"))


OPTIONS = {"seeds": range(3), "class_labels": [2, 0, 1], "num_steps": 3}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("interval", [None, (0.1, 1.0)])
def test_pairs_are_sampled_as_without_an_engine(interval):
    model, guide = denoiser(), denoiser(Net(1))
    engine = Engine(model, guide)
    expected = sample(model, guide, 1.7, interval=interval, **OPTIONS)
    close(engine.sample(guidance=1.7, interval=interval, **OPTIONS), expected)
    close(sample(engine, guidance=1.7, interval=interval, **OPTIONS), expected)
    close(engine.sample(**OPTIONS), sample(model, **OPTIONS))
    assert engine.device == torch.device("cpu") and engine.dtype == torch.float32


def test_levels_are_the_models_own():
    engine = Engine(denoiser(sigma_min=0.3, sigma_max=0.9))
    levels = []
    engine.sample(callback=lambda info: levels.append(info.sigma), **OPTIONS)
    assert levels[0] < 0.9 and levels[1] == pytest.approx(0.3)


def test_a_net_that_guides_itself_runs_as_one_batch():
    net = Net()
    model = denoiser(net)
    engine = Engine(model, unlabelled(model))
    close(engine.sample(guidance=1.7, **OPTIONS), sample(model, unlabelled(model), 1.7, **OPTIONS))
    assert net.batches[:5] == [6] * 5  # three steps, the last of one half
    net.batches.clear()
    engine.sample(guidance=1.7, interval=(0, 1e-6), **OPTIONS)
    assert set(net.batches) == {3}  # where the guide does not run, nothing is doubled


def test_prompts_guide_as_one_batch():
    net = Net()
    model = denoiser(net, label_dim=0, label_format=None, null_label=None)
    engine = Engine(model, model)
    text = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    told = {"cond": {"text": text}, "guide_cond": {"text": torch.zeros(1, 2)}}
    options = {"seeds": range(3), "num_steps": 3, "guidance": 1.7, **told}
    found = engine.sample(**options)
    assert set(net.batches) == {6}
    close(found, sample(model, model, **options))
    # In batches, too, and where the names of the two differ, each by itself.
    close(engine.sample(batch_size=2, **options), found)
    for other in ({}, {"text": torch.zeros(1, 5)}):  # told less, or a prompt of another length
        net.batches.clear()
        options["guide_cond"] = other
        close(engine.sample(**options), sample(model, model, **options))
        assert set(net.batches) == {3}


def test_an_adapters_own_rows_are_not_doubled():
    text = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    model = denoiser(cond={"text": text})
    options = {**OPTIONS, "guidance": 1.7}
    found = Engine(model, unlabelled(model)).sample(**options)
    close(found, sample(model, unlabelled(model), **options))
    assert set(model.net.batches) == {3}


def test_without_a_class_for_none_nothing_is_doubled():
    """Rows of zeros mean nothing to a net that does not say so."""

    class Rows(torch.nn.Module):
        img_resolution, img_channels, label_dim = 4, 2, 3

        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)
            self.given = []

        def forward(self, x, sigma, class_labels):
            self.note(class_labels)
            rows = torch.ones(1, 3) if class_labels is None else class_labels
            return x * 0.5 + self.linear(rows)[:, :, None, None]

        @torch.compiler.disable
        def note(self, labels):
            self.given.append(None if labels is None else len(labels))

    net = Rows()
    engine = Engine(net, unlabelled(net))
    close(engine.sample(guidance=1.7, **OPTIONS), sample(net, unlabelled(net), 1.7, **OPTIONS))
    assert set(net.given) == {3, None}


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch):
    def fails(graph, inputs):
        raise RuntimeError("no compiler here")

    compile = torch._dynamo.optimize
    monkeypatch.setattr(torch, "compile", lambda net: compile(backend=fails)(net))
    model = denoiser()
    engine = Engine(model)
    with pytest.warns(UserWarning, match=r"EpsilonDenoiser runs as it is, .*no compiler here"):
        found = engine.sample(**OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        close(engine.sample(**OPTIONS), found)
    close(found, sample(model, **OPTIONS))


def test_errors_of_the_net_are_its_own():
    class Bad(torch.nn.Module):
        img_resolution, img_channels, label_dim = 4, 2, 0

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x, sigma, class_labels):
            return x * self.weight.reshape(3, 1, 1)

    with pytest.raises(RuntimeError, match="size"):
        Engine(Bad()).sample(seeds=[0, 1], num_steps=1)


def test_changes_of_a_module_reach_its_engine():
    model = denoiser()
    engine = Engine(model)
    before = engine.sample(**OPTIONS)
    with torch.no_grad():
        model.net.conv.weight.neg_()
    assert not torch.allclose(engine.sample(**OPTIONS), before)
    close(engine.sample(**OPTIONS), sample(model, **OPTIONS))


def test_engines_are_closed_copied_and_pickled():
    model = denoiser()
    with Engine(model, unlabelled(model)) as engine:
        expected = engine.sample(guidance=1.5, **OPTIONS)
    for again in (engine, copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        close(again.sample(guidance=1.5, **OPTIONS), expected)


def test_a_precond_may_take_part():
    class Half(torch.nn.Module):
        label_dim = 0

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x, sigma, class_labels):
            return self.scale * x

    model, guide = tiny(), Half()
    options = {"seeds": range(2), "num_steps": 2, "guidance": 1.5, "class_labels": 1}
    close(Engine(model, guide).sample(**options), sample(model, guide, **options))


# --- recorded, as on a CUDA device ---------------------------------------------------------------


def taped(model, guide=None):
    """An engine that records on a tape of operators, in the place of CUDA graphs."""
    return ModuleEngine(model, guide, recorder=Tape())


class Plain(Net):
    """What no graph breaks."""

    def note(self, count):
        self.batches.append(count)


@pytest.mark.parametrize("churn", [0, 2.0])
@pytest.mark.parametrize("interval", [None, (0.1, 1.0)])
def test_recorded_samplings_are_the_samplings(interval, churn):
    model, guide = denoiser(Plain()), denoiser(Plain(1))
    engine = taped(model, guide)
    options = {"guidance": 1.7, "interval": interval, "S_churn": churn}
    for given in (OPTIONS, {**OPTIONS, "class_labels": [1, 1, 2], "seeds": [7, 8, 9]}):
        expected = sample(model, guide, **options, **given)
        close(sample(engine, **options, **given), expected)
    close(
        sample(engine, **{**options, "guidance": 2.5}, **OPTIONS),
        sample(model, guide, **{**options, "guidance": 2.5}, **OPTIONS),
    )
    assert engine.recorder.recorded == 1 and engine.recorder.parallel > 0
    calls = len(model.net.batches)
    sample(engine, **options, **OPTIONS)
    assert len(model.net.batches) == calls  # none of the library's code runs


def test_other_shapes_and_schedules_are_recorded_anew():
    model = denoiser(Plain())
    engine = taped(model, unlabelled(model))
    for number, changed in enumerate(({}, {"batch_size": 2}, {"num_steps": 4}), 1):
        options = {**OPTIONS, "guidance": 1.5, **changed}
        close(sample(engine, **options), sample(model, unlabelled(model), **options))
        assert engine.recorder.recorded >= number
    before = engine.recorder.recorded
    sample(engine, guidance=1.5, sigma_max=0.5, **OPTIONS)  # levels are loaded
    assert engine.recorder.recorded == before
    engine.close()
    assert engine.recorder.released == 1
    close(sample(engine, **options), sample(model, unlabelled(model), **options))


def test_recorded_prompts_are_loaded():
    model = denoiser(Plain(), label_dim=0, label_format=None, null_label=None)
    engine = taped(model, model)
    for scale in (1.0, -2.0):
        told = {"cond": {"text": scale * torch.ones(3, 2)}, "guide_cond": {"text": [[0.0]]}}
        options = {"seeds": range(3), "num_steps": 2, "guidance": 1.7, **told}
        close(sample(engine, **options), sample(model, model, **options))
    assert engine.recorder.recorded == 1


def test_weights_that_move_are_recorded_anew():
    model = denoiser(Plain())
    engine = taped(model)
    sample(engine, **OPTIONS)
    with torch.no_grad():
        model.net.conv.weight.neg_()  # in place: the recording reads it
    close(sample(engine, **OPTIONS), sample(model, **OPTIONS))
    assert engine.recorder.recorded == 1
    model.net.conv.weight = torch.nn.Parameter(model.net.conv.weight.detach() * 2)
    close(sample(engine, **OPTIONS), sample(model, **OPTIONS))
    assert engine.recorder.recorded == 2


def test_a_type_that_autocast_chooses_is_recorded_by_itself():
    model = denoiser(Plain())
    engine = taped(model)
    expected = sample(engine, **OPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        found = sample(engine, **OPTIONS)
        close(found, sample(model, **OPTIONS))
    assert not torch.equal(found, expected) and engine.recorder.recorded == 2
    close(sample(engine, **OPTIONS), expected)


def test_an_adapters_own_conditioning_may_be_replaced():
    model = denoiser(Plain(), cond={"text": torch.ones(1, 2)})
    engine = taped(model)
    sample(engine, **OPTIONS)
    model.cond["text"] = torch.full((1, 2), -3.0)
    close(sample(engine, **OPTIONS), sample(model, **OPTIONS))


def test_labels_are_looked_at_before_a_replay():
    model = denoiser(Plain())
    engine = taped(model)
    sample(engine, **OPTIONS)
    with pytest.raises(ValueError, match="must each name one class"):
        sample(engine, **{**OPTIONS, "class_labels": torch.full((3, 3), 1 / 3)})


def test_a_wrong_prediction_type_is_noticed_while_warming_up():
    model = denoiser(Plain(), sigma_max=80.0)
    model.check = True
    with torch.no_grad():
        model.net.conv.weight.mul_(30)
    with pytest.raises(ValueError, match="must predict the noise"):
        sample(taped(model), **OPTIONS)


def test_what_no_graph_holds_runs_as_it_is():
    class Reads(Plain):
        def forward(self, x, time, class_labels=None):
            return super().forward(x, time, class_labels) * (1 if float(x.mean()) < 1e6 else 2)

    model = denoiser(Reads())
    engine = taped(model)
    with pytest.warns(UserWarning, match="run as they are, which is slower, since no CUDA graph"):
        found = sample(engine, **OPTIONS)
    close(found, sample(model, **OPTIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(sample(engine, **OPTIONS), found)


def test_memory_that_does_not_last_is_said():
    engine = ModuleEngine(denoiser(Plain()), recorder=Tape(memory=2))
    with pytest.raises(torch.OutOfMemoryError):
        sample(engine, **OPTIONS)
    assert sample(engine, batch_size=2, **OPTIONS).shape == (3, 2, 4, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Engine(denoiser(), dtype=torch.bfloat16), "dtype must be left out for modules"),
        (
            lambda: Engine(denoiser(), lambda x, s, c: x),
            "guide must be a plain float32 Precond|mod",
        ),
        (lambda: Engine(denoiser()).profile(), "nets must be Preconds, got modules"),
        (lambda: Engine(denoiser()).peak_memory(1), "nets must be Preconds, got modules"),
        (
            lambda: Engine(denoiser(), denoiser().to("meta")),
            "guide must be on the model's device cpu, got one on meta",
        ),
    ],
)
def test_what_it_does_not_do_is_said(make, message):
    with pytest.raises(ValueError, match=rf"^Engine.*{message}"):
        make()


def test_runs_tells_beforehand():
    assert Engine.runs(denoiser()) and Engine.runs(denoiser(), tiny())
    assert not Engine.runs(lambda x, sigma, labels: x)
