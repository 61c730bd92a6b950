"""Pairs as one job: presets, guides, the cost of a run, sample grids, curves, EMA lengths."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import numbered, write
from references import assert_step
from test_trainer_commands import TINY, run
from tolerances import LOSS

from autoguide_fast import checkpoints, load, sample, unlabelled
from autoguide_fast.checkpoints.run_folder import read_log
from autoguide_fast.trainer import estimate, loop, pair, presets
from autoguide_fast.trainer import trainer as trainer_module
from autoguide_fast.trainer.data import dropped_labels, order
from autoguide_fast.trainer.options import TrainOptions
from autoguide_fast.trainer.processes import Processes
from autoguide_fast.trainer.trainer import Trainer

NARROW = {"channels": 4, "channels_per_head": 4}
SMALL = [*TINY, "--duration", 64, "--snapshots", 4]

# Parameters in M and MAC in G of the published sizes, as the papers state them.
PUBLISHED = {
    "xxs": (31.3, 11),
    "xs": (125, 46),
    "s": (280, 102),
    "m": (498, 181),
    "l": (777, 282),
    "xl": (1119, 406),
    "xxl": (1523, 552),
}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_have_the_published_size(name):
    options = TrainOptions(**presets.preset(name))
    millions, giga_macs = PUBLISHED[name.rpartition("-")[2]]
    counted = estimate.estimate(options, 64, options.img_channels, 1000)
    assert counted.parameters / 1e6 == pytest.approx(millions, rel=4e-3)
    # The papers count element by element operations too.
    assert counted.macs / 1e9 == pytest.approx(giga_macs, rel=4e-2)
    assert (options.batch, options.rampup, options.betas) == (2048, 10e6, (0.9, 0.99))
    assert options.snapshots * 8 * 2**20 == options.duration


def test_a_preset_stands_for_options_that_can_be_changed():
    options = presets.preset("edm2-img512-l")
    assert (options["lr"], options["decay"], options["dropout"]) == (0.008, 70_000, 0.1)
    assert (options["P_mean"], options["P_std"]) == (-0.4, 1.0)
    assert options["duration"] == 1879048192
    with pytest.raises(ValueError, match="preset must be one of edm2-img512-xxs"):
        presets.preset("edm2-img64-xxs")


@pytest.mark.parametrize("head", ["", "dec.8x8_block0"])
def test_the_plan_counts_what_a_run_keeps(head):
    """Bytes counted without storage are those that autograd holds for a real net."""
    options = TrainOptions(channels=16, batch=8, microbatch=4, head_after=head)
    counted = estimate.estimate(options, 8, 1, 10)
    trainer = Trainer(options)
    assert counted.parameters == sum(p.numel() for p in trainer.net.parameters())
    weights = {p.untyped_storage().data_ptr() for p in trainer.net.parameters()}

    def kept_bytes(images):
        kept = {}

        def pack(t):
            if t.untyped_storage().data_ptr() not in weights:
                kept[t.untyped_storage().data_ptr()] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            x, labels = torch.zeros(images, 1, 8, 8), torch.zeros(images, 10)
            out = trainer.net(x, torch.ones(images), labels, True, return_head=bool(head))
            del out
        return sum(t.untyped_storage().nbytes() for t in kept.values())

    total = kept_bytes(8) - kept_bytes(4)
    assert counted.activation_bytes == pytest.approx(total, rel=0.1)
    without = estimate.estimate(dataclasses.replace(options, head_after=""), 8, 1, 10)
    assert counted.macs - without.macs == (9 * 16 * 64 if head else 0)


def test_the_plan_splits_what_is_sharded():
    whole, split = (estimate.estimate(TrainOptions(shard=s), 8, 1, 10, 4) for s in (False, True))
    assert whole.state_bytes == 4 * split.state_bytes
    assert whole.activation_bytes == split.activation_bytes


def test_guides():
    main = TrainOptions(**presets.preset("edm2-img64-s"))
    guide = pair.parse_guide("xs:T/8", main, "edm2-img64-s", {"dropout": 0.1})
    assert guide.nimg == guide.options.duration == main.duration // 8
    assert (guide.options.channels, guide.options.lr) == (128, 0.012)
    assert (guide.options.dropout, guide.options.snapshots) == (0.1, main.snapshots // 8)
    assert guide.options.seed != main.seed and guide.options.batch == main.batch
    small = TrainOptions()
    assert pair.parse_guide("8:T/3.5", small).options.channels == 8
    past = pair.parse_guide("T/4", small)
    assert past.options is None and past.nimg == small.duration // 4


@pytest.mark.parametrize(
    ("spec", "preset", "changes", "message"),
    [
        ("xs", "edm2-img64-s", {}, "guide must be SIZE:T/K or T/K"),
        ("T", None, {}, "guide must be SIZE:T/K or T/K"),
        ("xs:T/0.5", "edm2-img64-s", {}, "with K >= 1"),
        ("xxs:T/8", "edm2-img64-s", {}, "one of the sizes xs, s, m, l, xl"),
        ("xs:T/8", None, {}, "a number of channels where there is no --preset"),
        ("T/8", None, {"lr": 1.0}, "guide_set must be left out"),
    ],
)
def test_bad_guides(spec, preset, changes, message):
    main = TrainOptions(**(presets.preset(preset) if preset else {}))
    with pytest.raises(ValueError, match=message):
        pair.parse_guide(spec, main, preset, changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pair of a few steps, by the command line."""
    out = tmp_path_factory.mktemp("pair") / "run"
    from autoguide_fast.cli import main

    arguments = [
        "train",
        "--out",
        out,
        *SMALL,
        "--guide",
        "2:T/2",
        "--guide-set",
        "channels_per_head=2",
        "--grid",
        4,
    ]
    assert main([str(a) for a in arguments]) == 0
    return out


def test_a_pair_is_one_job_with_one_log(trained):
    rows = read_log(trained)
    assert [(row["net"], row["nimg"]) for row in rows] == [
        *(("guide", n) for n in (16, 32)),
        *(("main", n) for n in (16, 32, 48, 64)),
    ]
    assert all(np.isfinite(row["loss"]) and row["gradient_norm"] > 0 for row in rows)
    guide = checkpoints.load(trained / "guide" / "snapshots" / "000000032-0.100.safetensors")
    assert guide.config["model_channels"] == 2
    names = sorted(f.name for f in (trained / "samples").iterdir())
    assert names == [f"guide-{n:09d}.png" for n in (16, 32)] + [
        f"main-{n:09d}.png" for n in (16, 32, 48, 64)
    ]


def test_the_grid_shows_samples_with_and_without_guidance(trained):
    from PIL import Image

    alone = Image.open(trained / "samples" / "guide-000000032.png")
    both = Image.open(trained / "samples" / "main-000000064.png")
    assert both.width == 2 * alone.width + 8
    left, right = (np.asarray(both)[:, s] for s in (slice(alone.width), slice(-alone.width, None)))
    assert not np.array_equal(left, right)


def test_what_is_printed_can_be_run(capsys, tmp_path):
    code, out, err = run(
        capsys, "train", "--out", tmp_path / "run", *SMALL, "--guide", "T/2", "--grid", 2
    )
    assert code == 0, err
    command = next(line for line in out.splitlines() if line.startswith("sample with: "))
    words = command.removeprefix("sample with: autoguide-fast ").split()
    words[-1], words[words.index("0-63")] = str(tmp_path / "samples"), "0-3"
    code, _, err = run(capsys, *words, "--steps", "4")
    assert code == 0, err
    assert len(list((tmp_path / "samples").glob("*/*.png"))) >= 4


def test_a_folder_with_a_pair_is_named_as_it_was_given(capsys, trained):
    code, _, err = run(capsys, "train", "--out", trained, *SMALL, "--guide", "2:T/2")
    assert code == 2 and f"must be a folder without a run, got {trained}; add --resume" in err


def test_an_interrupted_pair_goes_on(tmp_path):
    main = TrainOptions(channels=4, channels_per_head=4, batch=16, duration=64, snapshots=2)
    guide = pair.parse_guide("2:T/2", main, changes={"channels_per_head": 2})

    def train(out, **options):
        return pair.train_pair(main, guide, tmp_path / out, progress=False, **options)

    whole = train("whole")
    assert whole.finished and 0 < whole.guide_share < 10
    first = train("part", stop=lambda nimg: True)
    assert first.main is None and first.guide.nimg == 16
    asked = pair.stored_job(tmp_path / "part", pytest.fail)
    assert asked["guide"] == "2:T/2" and asked["main"] == main.as_dict()
    second = train("part", resume=True, stop=lambda nimg: nimg == 32)
    assert second.guide.nimg == second.main.nimg == 32 or second.main is None
    last = train("part", resume=True)
    assert last.finished
    for a, b in ((whole.main, last.main), (whole.guide, last.guide)):
        assert all(map(torch.equal, a.net.state_dict().values(), b.net.state_dict().values()))
    other = pair.parse_guide("2:T/4", main, changes={"channels_per_head": 2})
    changed = dataclasses.replace(main, lr=0.1)
    with pytest.raises(ValueError, match=r"lr was 0.01, is 0.1, guide was 2:T/2, is 2:T/4; repeat"):
        pair.train_pair(changed, other, tmp_path / "part", resume=True, progress=False)


def test_a_pair_knows_its_data_and_not_their_place(tmp_path):
    for place, count in (("data", 4), ("copy", 4), ("other", 5)):
        write(tmp_path / place, numbered(count, [0, 1, 0, 1, 0][:count]))

    def train(place, **options):
        main = TrainOptions(
            channels=4,
            channels_per_head=4,
            batch=16,
            duration=64,
            snapshots=1,
            data=str(tmp_path / place),
        )
        guide = pair.parse_guide("2:T/2", main, changes={"channels_per_head": 2})
        return pair.train_pair(main, guide, tmp_path / "run", progress=False, **options)

    for resume in (False, True):  # stops in the guide, then in the main net
        assert not train("data", resume=resume, stop=lambda nimg: True).finished
        with pytest.raises(ValueError, match="got changes: images was 4, is 5, contents was"):
            train("other", resume=True)
        # What was refused is not what the next command goes on with.
        stored = pair.stored_job(tmp_path / "run", pytest.fail)
        assert stored["main"]["data"] == str(tmp_path / "data")
    assert train("copy", resume=True).finished


def test_resume_auto_starts_and_goes_on(capsys, tmp_path):
    arguments = ["train", "--out", tmp_path / "run", *SMALL, "--grid", 0, "--resume", "auto"]
    for _ in range(2):
        code, out, err = run(capsys, *arguments)
        assert code == 0, err
        assert "on 64 images" in out


def test_dry_run_prints_the_plan_and_trains_nothing(capsys, tmp_path):
    code, out, err = run(
        capsys,
        "train",
        "--preset",
        "edm2-img64-s",
        "--guide",
        "xs:T/8",
        "--dry-run",
        "--out",
        tmp_path / "run",
        "--microbatch",
        64,
    )
    assert code == 0, err
    assert not (tmp_path / "run").exists()
    assert "280.21 M" in out and "124.71 M" in out
    assert "100.8 GMAC on one image = 201.6 GFLOP" in out
    assert "the guide adds 5.6 % to the main net's training, counted in MAC" in out
    assert "for the activations of a pass of 64 images (--microbatch N: of N)" in out


def test_plot_draws_both_nets(capsys, trained, tmp_path):
    code, out, err = run(capsys, "plot", trained, "--out", tmp_path / "curves.png")
    assert code == 0, err
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert "main: loss" in out and "guide: loss" in out
    code, _, err = run(capsys, "plot", tmp_path)
    assert code == 2 and "without log.jsonl" in err


def test_plot_of_a_run_whose_loss_left_the_numbers(capsys, trained, tmp_path):
    lines = (trained / "log.jsonl").read_text().splitlines()
    last = {**json.loads(lines[-1]), "loss": None}
    (tmp_path / "log.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    code, out, err = run(capsys, "plot", tmp_path)
    assert code == 0, err
    assert f"{last['net']}: loss not finite at {last['nimg']} images" in out


def test_tensorboard_gets_the_same_figures(trained, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    values = {e.step: e.value for e in events.Scalars("main/loss")}
    rows = {r["nimg"]: r["loss"] for r in read_log(trained) if r["net"] == "main"}
    assert values == pytest.approx(rows)
    assert len(events.Images("main/samples")) == 4


def test_ema_reconstruct_makes_several_nets_in_one_pass(capsys, trained, tmp_path):
    left = tmp_path / "nets" / ".000000048-0.050.77.safetensors"  # of one that was killed
    left.parent.mkdir()
    left.touch()
    code, _, err = run(
        capsys,
        "ema",
        "reconstruct",
        "--run",
        trained,
        "--ema",
        0.05,
        0.12,
        "--nimg",
        50,
        "--out",
        tmp_path / "nets",
    )
    assert code == 0, err
    assert not left.exists()
    tracked = checkpoints.load(trained / "snapshots" / "000000048-0.050.safetensors")
    made = checkpoints.load(tmp_path / "nets" / "000000048-0.050.safetensors")
    for name, value in tracked.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert checkpoints.load(tmp_path / "nets" / "000000048-0.120.safetensors").info == {
        "nimg": 48,
        "sigma_rel": 0.12,
    }
    damaged = tmp_path / "run" / "snapshots" / "000000016-0.050.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes((trained / "snapshots" / damaged.name).read_bytes()[:500])
    code, _, err = run(
        capsys,
        "ema",
        "reconstruct",
        "--run",
        tmp_path / "run",
        "--ema",
        0.05,
        "--out",
        tmp_path / "nets",
    )
    assert code == 2 and damaged.name in err and "remove it" in err
    snapshots = trained / "snapshots"
    before = sorted(snapshots.iterdir())
    arguments = ["--run", trained, "--ema", 0.07, "--out", snapshots]
    code, _, err = run(capsys, "ema", "reconstruct", *arguments)
    assert code == 2 and "out must be another folder" in err
    assert sorted(snapshots.iterdir()) == before


# --- the recipe ---------------------------------------------------------------------------------


def losses(count=4, **options):
    trainer = Trainer(
        TrainOptions(
            **{"channels": 8, "channels_per_head": 8, "batch": 32, "rampup": 0.0, **options}
        )
    )
    return [trainer.step() for _ in range(count)], trainer


def test_accumulated_gradients_are_those_of_the_whole_batch():
    _, whole = losses()  # gains begin at 0, and with them most gradients
    _, passes = losses(0, microbatch=8)
    passes.load_state_dict(whole.state_dict())
    assert assert_step(whole) == pytest.approx(assert_step(passes), rel=LOSS)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 3e-2), ("fp16", 1e-2)])
def test_mixed_precision_follows_full_precision(precision, tolerance):
    whole, _ = losses(8)
    mixed, trainer = losses(8, precision=precision)
    assert mixed == pytest.approx(whole, rel=tolerance)
    assert mixed != whole
    assert all(p.dtype == torch.float32 for p in trainer.net.parameters())
    assert trainer.skipped_steps == 0


def test_a_loss_scale_that_overflows_leaves_steps_out_and_halves():
    values, trainer = losses(6, precision="fp16", loss_scale=2.0**40)
    assert trainer.skipped_steps > 0
    assert trainer.scale.value == 2.0 ** (40 - trainer.skipped_steps)
    assert trainer.nimg == 6 * 32 and np.isfinite(values).all()
    assert all(torch.isfinite(p).all() for p in trainer.net.parameters())


def test_a_bad_batch_does_not_end_a_run(monkeypatch):
    trainer = Trainer(TrainOptions(channels=4, channels_per_head=4, batch=16))
    draw = trainer_module.draw

    def bad_once(seed, nimg, *rest):
        drawn = draw(seed, nimg, *rest)
        if nimg == 16:
            drawn.noise[0] = float("nan")
        return drawn

    monkeypatch.setattr(trainer_module, "draw", bad_once)
    values = [trainer.step() for _ in range(3)]
    assert np.isnan(values[1]) and np.isfinite(values[2])
    assert trainer.repaired_steps == 1


def test_flips_mirror_half_of_the_images():
    seen = {}
    for flip in (False, True):
        trainer = Trainer(TrainOptions(channels=4, channels_per_head=4, batch=64, flip=flip))
        monkey, images = trainer.loss, []
        trainer.loss = lambda model, y, *a, monkey=monkey, images=images, **k: (
            images.append(y.clone()) or monkey(model, y, *a, **k)
        )
        trainer.step()
        seen[flip] = images[0]
    mirrored = (seen[True] == seen[False].flip(3)).flatten(1).all(1)
    kept = (seen[True] == seen[False]).flatten(1).all(1)
    assert (mirrored | kept).all() and 16 < mirrored.sum() < 48


def test_labels_are_dropped_and_counted(tmp_path):
    """An image without its label is shown as one to a net that is told None."""
    options = TrainOptions(
        **NARROW, batch=64, microbatch=16, label_dropout=0.25, duration=128, snapshots=2
    )
    trainer = Trainer(options)
    seen, compute = [], trainer.loss
    trainer.loss = lambda model, y, labels, **k: (
        seen.append(labels.clone()) or compute(model, y, labels, **k)
    )
    for _ in range(2):
        trainer.step()
    labels = torch.cat(seen)
    dropped = torch.from_numpy(dropped_labels(options.seed, 0, 128, 0.25))
    assert 10 < dropped.sum() < 60 and torch.equal(labels.sum(1) == 0, dropped)
    _, classes = trainer.dataset.batch(order(options.seed, len(trainer.dataset), 0, 128))
    assert torch.equal(labels[~dropped].argmax(1), torch.from_numpy(classes)[~dropped])
    loop.train(options, tmp_path / "run", progress=False)
    rows = read_log(tmp_path / "run")
    assert sum(row["labels_dropped"] for row in rows) == dropped.sum()
    net = load(tmp_path / "run", ema=0.05)
    images = sample(net, unlabelled(net), 1.5, class_labels=3, seeds=range(4), num_steps=2)
    assert images.shape == (4, 1, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, ""),
        ({"attn_resolutions": ()}, ""),
        ({"attn_resolutions": (8, 3)}, ""),
        ({"attn_resolutions": (3,)}, "attn_resolutions 3 has no effect: the levels of the net are"),
        ({"channels_per_head": 16}, "narrower there than channels_per_head=16"),
    ],
)
def test_attention_that_no_level_has_is_said(capsys, tmp_path, options, message):
    options = TrainOptions(**NARROW | {"batch": 16, "duration": 16, "snapshots": 0} | options)
    loop.train(options, tmp_path / "run", progress=False)
    err = capsys.readouterr().err
    assert message in err and bool(err) == bool(message)
    assert err.count("\n") == bool(message)


def test_photos_train_in_colour():
    values, trainer = losses(
        2, data="photos", batch=4, channel_mult=(1, 2, 2), attn_resolutions=(8,)
    )
    assert trainer.net.img_channels == 3 and trainer.net.img_resolution == 32
    assert trainer.label_dim == 2 and np.isfinite(values).all()


def latents(folder, labelled=True):
    random = np.random.default_rng(0)
    (folder / "00000").mkdir(parents=True)
    names = [f"00000/img{i:08d}.npy" for i in range(6)]
    for name in names:
        np.save(folder / name, np.abs(random.normal(size=(8, 8, 8))).astype(np.float32))
    rows = [[name, i % 3] for i, name in enumerate(names)] if labelled else None
    (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    return folder


def test_latents_are_drawn_from_their_moments(tmp_path):
    data = str(latents(tmp_path / "latents"))
    values, trainer = losses(2, data=data, batch=4)
    assert trainer.net.img_channels == 4 and trainer.label_dim == 3
    assert trainer.net.encoder.name == "latents" and np.isfinite(values).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labelled": True}, "must have class labels for a net with labels.*add --no-labels"),
        ({"labelled": False, "resolution": 64}, "must have resolution 64, got .* with 8"),
        ({"labelled": False, "img_channels": 3}, "must have 3 channels, got .* with 4"),
        ({"labelled": False, "flip": True}, "flip must be off for latents"),
        ({"labelled": False, "data": "/no/such/folder"}, "/no/such/folder"),
        ({"labelled": False, "batch": 16, "microbatch": 5}, "microbatch must divide the 16 images"),
    ],
)
def test_data_that_do_not_fit(tmp_path, options, message):
    data = str(latents(tmp_path / "latents", labelled=False))
    with pytest.raises(ValueError, match=message):
        Trainer(TrainOptions(**{"data": data, "channels": 4, **options}))


def test_a_batch_must_suit_the_processes():
    with pytest.raises(ValueError, match="batch must be a multiple of the 3 processes"):
        Trainer(TrainOptions(batch=16), processes=Processes(3, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "edm2-img64-xxs"], "preset must be one of"),
        (["--guide", "small"], "guide must be SIZE:T/K"),
        (["--guide-set", "lr=1"], "guide_set must come with --guide"),
        (["--guide", "8:T/4", "--guide-set", "speed=1"], "with an option's name, got 'speed=1'"),
        (["--guide", "8:T/4", "--guide-set", "lr=fast"], "lr a value like 0.01, got 'fast'"),
        (["--duration", "1.3"], "must be a whole number"),
        (["--precision", "int8"], "precision must be one of fp32, bf16, fp16"),
        (["--grid", "-1"], "grid must be >= 0"),
        (["--preset", "edm2-img64-xs"], "data must have resolution 64, got digits with 8"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, arguments, message):
    code, _, err = run(capsys, "train", "--out", tmp_path / "run", *arguments)
    assert code == 2
    assert message in err and len(err.strip().splitlines()) == 1


def test_an_unwritable_folder_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "train", "--out", tmp_path / "file" / "run", *SMALL)
    assert code == 2
    assert str(Path(tmp_path / "file" / "run")) in err and len(err.strip().splitlines()) == 1


def test_numbers_may_have_units(capsys, tmp_path):
    code, out, err = run(capsys, "train", "--dry-run", "--duration", "2Ki", "--batch", "1k")
    assert code == 2 and "duration must be a multiple of batch=1000" in err
    code, out, err = run(capsys, "train", "--dry-run", "--duration", "8Mi")
    assert code == 0 and "8,388,608 images" in out
