"""One net for two: the guidance weight as an input, and the training that teaches it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from nets import tiny
from tape import Tape

from autoguide_fast import Engine, checkpoints, load, sample
from autoguide_fast.cli import main
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.textbook import TextbookPrecond
from autoguide_fast.trainer import loop
from autoguide_fast.trainer.distill import student_options
from autoguide_fast.trainer.distillation import Distillation
from autoguide_fast.trainer.options import TrainOptions, options_of_net
from autoguide_fast.trainer.trainer import Trainer

WEIGHTS = torch.tensor([1.0, 1.5, 2.0, 3.0])
DRAWN = {"seeds": range(4), "num_steps": 3, "raw": True}


@pytest.fixture(scope="module")
def net():
    return tiny(guidance_range=(1, 3)).requires_grad_(False)


def inputs(net):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, net.img_channels, 8, 8, generator=generator)
    return x, torch.tensor([0.1, 0.5, 1.0, 2.0]), torch.eye(net.label_dim)[:4]


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_the_weight_is_an_input_of_each_image(net):
    found = net(*inputs(net), guidance=WEIGHTS)
    for i, w in enumerate(WEIGHTS.tolist()):
        one = (t[i : i + 1] for t in inputs(net))
        assert error(found[i : i + 1], net(*one, guidance=w)) < 1e-5
    assert error(found, net(*inputs(net))) > 0.01  # which is at w = 1
    assert torch.equal(net(*inputs(net)), net(*inputs(net), guidance=1))
    assert error(TextbookPrecond(net)(*inputs(net), guidance=WEIGHTS), found) < 1e-5
    assert error(Engine(net).model(*inputs(net), WEIGHTS), found) < 1e-5
    assert error(GpuEngine(net, recorder=Tape()).model(*inputs(net), WEIGHTS), found) < 1e-5


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "adaptive_heun"])
def test_samples_without_a_guide(net, sampler):
    options = {**DRAWN, "sampler": sampler}
    expected = torch.cat(
        [
            sample(
                lambda x, sigma, labels, w=w: net(x, sigma, labels, guidance=w),
                **{**options, "seeds": [i]},
                shape=(2, 8, 8),
                class_labels=torch.eye(5)[i : i + 1],
            )
            for i, w in enumerate(WEIGHTS.tolist())
        ]
    )
    for model in (net, Engine(net), GpuEngine(net, recorder=Tape())):
        found = sample(model, guidance=WEIGHTS, class_labels=range(4), batch_size=3, **options)
        assert error(found, expected) < 1e-5
    alone = sample(net, guidance=1.5, class_labels=1, **{**options, "seeds": [1]})
    assert error(alone, expected[1:2]) < 1e-5
    assert torch.equal(sample(net, **options), sample(net, guidance=1.0, **options))
    # With a guide, the net at w = 1 is guided.
    guide = tiny(seed=1)
    guided = sample(net, guide, 2.0, **options)
    plain = sample(lambda x, s, c: net(x, s, c), guide, 2.0, shape=(2, 8, 8), **options)
    assert error(guided, plain) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 4.0}, r"guidance must lie in \[1, 3\], which the net has learnt, got 4;"),
        ({"guidance": [1.0, 2.0]}, "one weight for each of 4 images, got 2"),
        ({"guidance": lambda sigma: 2.0}, "a number or one for each image .* got function"),
        ({"guidance": 2.0, "interval": (0.1, 1.0)}, "interval must be left out for a net that has"),
    ],
)
def test_refuses_other_weights(net, options, message):
    with pytest.raises(ValueError, match=message):
        sample(net, **DRAWN, **options)


def test_refuses_weights_elsewhere(net):
    with pytest.raises(ValueError, match=r"guidance must lie in \[1, 3\].*got 0.5"):
        net(*inputs(net), guidance=0.5)
    with pytest.raises(ValueError, match="one weight or one per image, got 3 for 4"):
        net(*inputs(net), guidance=WEIGHTS[:3])
    with pytest.raises(ValueError, match="left out for a net without a guidance_range"):
        tiny()(*inputs(net), guidance=2.0)
    for wrong in ([1], [1.5, 2], [1, 1], [1, float("inf")], 2.0):
        with pytest.raises(ValueError, match="guidance_range must be empty, or"):
            tiny(guidance_range=wrong)


def test_files_keep_the_range(net, tmp_path):
    path = tmp_path / "student.safetensors"
    checkpoints.save(net, path)
    assert load(path).config["guidance_range"] == [1, 3]
    found = sample(path, guidance=1.7, **DRAWN)
    assert torch.equal(found, sample(net, guidance=1.7, **DRAWN))
    assert "guidance_range" not in tiny().config  # as in files of earlier versions


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Files of a small net of digits and of a guide, with gains that make them differ."""
    folder = tmp_path_factory.mktemp("pair")
    for name, width in (("main", 8), ("guide", 4)):
        options = {"channels": width, "channels_per_head": width}
        net = Trainer(TrainOptions(**options, seed=width)).net.eval()
        for key, parameter in net.named_parameters():
            if key.endswith("gain"):
                torch.nn.init.constant_(parameter, 0.3)
        checkpoints.save(net, folder / f"{name}.safetensors")
    return str(folder / "main.safetensors"), str(folder / "guide.safetensors")


BRIEF = {"batch": 32, "rampup": 32.0, "lr": 0.01, "snapshots": 2, "P_std": 0.5}


def test_the_student_begins_as_the_main_net_and_learns_the_pair(pair, tmp_path):
    options = student_options(*pair, "digits", (1.0, 3.0), duration=32 * 40, **BRIEF)
    trainer = Trainer(options)
    teacher = Distillation(options, trainer.device)
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    told = x, torch.full([64, 1, 1, 1], 0.7), torch.eye(10)[torch.arange(64) % 10]
    wanted = teacher(*told, torch.full([64], 3.0))
    main_net, guide = load(pair[0]), load(pair[1])
    plain = main_net(*told)
    assert error(wanted, guide(*told) + 3 * (plain - guide(*told))) < 1e-5
    with torch.no_grad():  # the gain is 0
        assert error(trainer.net.eval()(*told, guidance=3.0), plain) < 1e-5
    trainer.close()

    trained = loop.train(options, tmp_path / "run", progress=False)
    student = trained.net.eval()
    with torch.no_grad():
        before, after = error(plain, wanted), error(student(*told, guidance=3.0), wanted)
        apart = student(*told, guidance=3.0) - student(*told, guidance=1.0)
        share = (apart * (wanted - plain)).sum() / (wanted - plain).square().sum()
    assert after < 0.7 * before
    assert share > 0.01  # of what the weight does to the pair; of a net that is not told it, 1e-4
    stored = checkpoints.Snapshots(tmp_path / "run").net(options.duration, 0.05)
    assert stored.config["guidance_range"] == [1.0, 3.0]


def test_resumes_bit_for_bit_with_the_same_teacher(pair, tmp_path):
    options = student_options(*pair, "digits", (1.0, 2.0), duration=128, **BRIEF)
    whole = loop.train(options, tmp_path / "whole", progress=False)
    loop.train(options, tmp_path / "run", progress=False, stop=lambda nimg: nimg >= 64)
    again = loop.train(options, tmp_path / "run", resume=True, progress=False)
    for name, weight in whole.net.state_dict().items():
        assert torch.equal(weight, again.net.state_dict()[name]), name
    other = dataclasses.replace(options, teacher=(pair[0], "unlabelled"), duration=192)
    with pytest.raises(ValueError, match="the nets of the teacher must stay as in the run"):
        loop.train(other, tmp_path / "run", resume=True, progress=False)


def test_options_of_a_net_build_it_again(net):
    options = TrainOptions(**options_of_net({**load("photos").config, "clip_act": None}))
    assert options.net_options()["clip_act"] is None and options.clip_act == 0
    assert {**options.net_options()}.items() <= {
        **load("photos").config,
        "clip_act": None,
        "guidance_range": [],
        "head_after": "",
    }.items()
    with pytest.raises(ValueError, match="left_out must be"):
        options_of_net({**net.config, "left_out": ["dec.8x8_block0"]})


def test_command_line(pair, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["distill", "--model", pair[0], "--guide", "unlabelled", "--data", "digits"]
    command += ["--guidance", "1", "2", "--out", str(out), "--duration", "64", "--batch", "32"]
    assert main([*command, "--snapshots", "1", "--quiet"]) == 0
    file = out / "snapshots" / "000000064-0.050.safetensors"
    assert f"--model {file} --guidance 2" in capsys.readouterr().out
    evaluated = ["sample", "--model", str(file), "--guidance", "2", "--seeds", "0-1"]
    assert main([*evaluated, "--steps", "2", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    reference = tmp_path / "digits.npz"
    assert (
        main(
            ["evaluate", "ref", "--data", "digits", "--features", "pixels", "--out", str(reference)]
        )
        == 0
    )
    measured = ["evaluate", "--model", str(file), "--guidance", "2", "--seeds", "0-7"]
    measured += ["--steps", "2", "--ref", str(reference), "--metrics", "fd_pixels"]
    assert main(measured) == 0
    command[command.index("1", 8)] = "1.5"
    assert main([*command, "--quiet"]) == 2
    assert "guidance must be LO HI with LO <= 1 < HI, got 1.5 2" in capsys.readouterr().err
