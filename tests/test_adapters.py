"""Nets of other libraries as denoisers: on Gaussians, whose denoiser is known, and on real ones."""

import math
import warnings

import pytest
import torch

from autoguide_fast import sample, unlabelled
from autoguide_fast.adapters import (
    EpsilonDenoiser,
    FlowDenoiser,
    KDiffusionDenoiser,
    SampleDenoiser,
    VDenoiser,
    from_diffusers,
)

MEAN, STD, SHAPE = 0.4, 0.7, (1, 4, 4)
ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SIGMAS = ((1 - ALPHAS) / ALPHAS).sqrt()


def exact(x, sigma):
    """The denoiser of data that are normal, `MEAN` and `STD`, number by number."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def sigma_at(time):
    """The noise level of a timestep, between those that have a number, too."""
    table, low = SIGMAS.log(), time.double().floor().long().clamp(0, 998)
    return torch.lerp(table[low], table[low + 1], time.double() - low).exp()


class Discrete(torch.nn.Module):
    """The exact net of a variance-preserving process, for each kind of prediction."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction, self.times = prediction, []

    def forward(self, x_t, time):
        self.times.append(time)
        sigma = sigma_at(time).reshape(-1, 1, 1, 1).to(x_t.dtype)
        alpha = 1 / (1 + sigma**2).sqrt()
        x = x_t / alpha
        data = exact(x, sigma)
        noise = (x - data) / sigma
        return {
            "epsilon": noise,
            "v": alpha * noise - alpha * sigma * data,
            "sample": data,
        }[self.prediction]


def flow(velocity, data_at, scale):
    def net(x_t, time):
        share = (time / scale if data_at == 0 else 1 - time / scale).reshape(-1, 1, 1, 1)
        data = exact(x_t / (1 - share), share / (1 - share))
        noise = (x_t - (1 - share) * data) / share
        return noise - data if velocity == "noise - data" else data - noise

    return net


class KDiffusion:
    """A denoiser as k-diffusion has them: `sigma` is a vector."""

    sigma_min, sigma_max = torch.tensor(0.01), torch.tensor(90.0)

    def __call__(self, x, sigma):
        assert sigma.shape == (len(x),)
        return exact(x, sigma.reshape(-1, 1, 1, 1))


SIZE = {"img_resolution": 4, "img_channels": 1}
ADAPTED = {
    "epsilon": lambda: EpsilonDenoiser(Discrete("epsilon"), ALPHAS, **SIZE),
    "v": lambda: VDenoiser(Discrete("v"), ALPHAS, **SIZE),
    "sample": lambda: SampleDenoiser(Discrete("sample"), ALPHAS, **SIZE),
    "whole timesteps": lambda: EpsilonDenoiser(
        Discrete("epsilon"), ALPHAS, fractional=False, **SIZE
    ),
    "k-diffusion": lambda: KDiffusionDenoiser(KDiffusion(), **SIZE),
    **{
        f"{velocity}, {at}, {scale}": lambda velocity=velocity, at=at, scale=scale: FlowDenoiser(
            flow(velocity, at, scale), velocity=velocity, data_at=at, time_scale=scale, **SIZE
        )
        for velocity in ("noise - data", "data - noise")
        for at in (0, 1)
        for scale in (1.0, 1000.0)
    },
}


@pytest.mark.parametrize("name", ADAPTED)
def test_gaussians_are_denoised_exactly(name):
    denoiser = ADAPTED[name]()
    torch.manual_seed(0)
    x = torch.randn(5, *SHAPE)
    sigma = torch.tensor([0.02, 0.3, 1.0, 4.0, 30.0])
    x = x * sigma.reshape(-1, 1, 1, 1) + MEAN
    expected = exact(x.double(), sigma.double().reshape(-1, 1, 1, 1))
    if name == "whole timesteps":  # the net is told another level than there is
        assert (denoiser(x, sigma) - expected).abs().max() < 0.1
        assert denoiser.net.times[-1].dtype == torch.int64
    else:
        assert (denoiser(x, sigma) - expected).abs().max() < 2e-4
        one = denoiser(x, sigma[2])
        assert torch.allclose(one.double(), exact(x.double(), sigma[2].double()), atol=1e-4)


@pytest.mark.parametrize("name", ADAPTED)
def test_samples_of_gaussians_have_their_mean_and_variance(name):
    x = sample(ADAPTED[name](), seeds=range(1000), batch_size=1000, num_steps=40)
    deviation = STD / math.sqrt(x.numel())
    loose = 0.01 if name == "whole timesteps" else 0.003
    assert abs(x.mean() - MEAN) < 4 * deviation + loose
    assert abs(x.std() - STD) < 4 * deviation + loose


@pytest.mark.parametrize("std", [0.1, 0.5, 1.0, 2.0])
def test_centred_data_are_taken(std):
    """Their denoiser says of pure noise nothing but a small share of it."""
    net = EpsilonDenoiser(
        lambda x_t, time: (
            (s := sigma_at(time).reshape(-1, 1, 1, 1).to(x_t.dtype))
            * x_t
            * (1 + s**2).sqrt()
            / (std**2 + s**2)
        ),
        ALPHAS,
        img_resolution=8,
        img_channels=1,
    )
    x = sample(net, seeds=range(64), num_steps=40)
    assert abs(float(x.std()) / std - 1) < 0.1
    assert not net.check  # it was looked at


def test_the_range_of_noise_levels_is_the_nets():
    denoiser = ADAPTED["epsilon"]()
    assert denoiser.sigma_min == pytest.approx(float(SIGMAS[0]))
    assert denoiser.sigma_max == pytest.approx(float(SIGMAS[-1]))
    seen = []
    sample(denoiser, seeds=[0], num_steps=4, callback=lambda info: seen.append(info.sigma))
    assert float(denoiser.net.times[0][0]) == pytest.approx(999, abs=1e-3)
    assert seen[-2] == pytest.approx(denoiser.sigma_min, rel=1e-5) and seen[-1] == 0
    with pytest.warns(UserWarning, match="sample: sigma_max 500 lies beyond what the model was t"):
        sample(denoiser, seeds=[0], num_steps=2, sigma_max=500)
    with pytest.warns(UserWarning, match="sample: sigma_min 0.001 lies beyond what the model was"):
        sample(denoiser, seeds=[0], num_steps=2, sigma_min=0.001)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(denoiser, seeds=[0], num_steps=2, sigma_min=0.1, sigma_max=20)
        sample(denoiser, guide=ADAPTED["v"](), guidance=2, seeds=[0], num_steps=2)


def test_levels_that_a_net_does_not_say_are_the_usual_ones():
    seen = []

    def net(x, sigma, class_labels=None):
        seen.append(float(sigma))
        return exact(x, sigma)

    net.sigma_min, net.sigma_max = 0, math.inf  # as other libraries' nets have them
    sample(net, noise=torch.randn(1, *SHAPE), num_steps=2)
    assert seen[0] == 80 and seen[1] == pytest.approx(0.002)


WRONG = [
    (lambda: EpsilonDenoiser(Discrete("sample"), ALPHAS), "must predict the noise, got"),
    (lambda: EpsilonDenoiser(Discrete("v"), ALPHAS), "must predict the noise, got"),
    (lambda: SampleDenoiser(Discrete("epsilon"), ALPHAS), "must predict the data, got"),
    (lambda: VDenoiser(Discrete("epsilon"), ALPHAS), "must predict v, got"),
    (
        lambda: FlowDenoiser(flow("noise - data", 0, 1), velocity="data - noise"),
        "must predict a velocity, got",
    ),
    (lambda: FlowDenoiser(flow("noise - data", 1, 1)), "must predict a velocity, got"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_a_wrong_prediction_type_is_noticed(make, message):
    denoiser = make()
    denoiser.img_resolution, denoiser.img_channels = 4, 1
    with pytest.raises(ValueError, match=message + ".*see its prediction type"):
        sample(denoiser, seeds=range(64), num_steps=3)
    denoiser.check = False
    sample(denoiser, seeds=range(64), num_steps=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EpsilonDenoiser(3, ALPHAS), "EpsilonDenoiser: net must be callable, got int"),
        (lambda: VDenoiser(abs, ALPHAS.flip(0)), "VDenoiser: alphas_cumprod must fall from"),
        (lambda: VDenoiser(abs, [0.5]), "VDenoiser: alphas_cumprod must fall from"),
        (lambda: FlowDenoiser(abs, velocity="x"), "FlowDenoiser: velocity must be one of"),
        (lambda: FlowDenoiser(abs, data_at=0.5), "FlowDenoiser: data_at must be 0 or 1, got 0.5"),
        (lambda: FlowDenoiser(abs, sigma_min=3, sigma_max=2), "sigma_min must be below sigma_max"),
        (lambda: FlowDenoiser(abs, sigma_min=0), "FlowDenoiser: sigma_min must be above 0"),
        (lambda: KDiffusionDenoiser(abs), "KDiffusionDenoiser: sigma_min must be given"),
        (lambda: FlowDenoiser(abs, label_format="indices"), "label_format must be one of"),
        (lambda: FlowDenoiser(abs, label_dim=3), "label_dim and label_format must be given tog"),
        (lambda: from_diffusers(abs, abs), "from_diffusers: net and scheduler must have a config"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


# --- labels and conditioning ----------------------------------------------------------------------


class Labelled(torch.nn.Module):
    """Notes what it is given."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=dtype))
        self.given = []

    def forward(self, x_t, time, **given):
        assert x_t.dtype == self.weight.dtype
        self.given.append(given)
        return x_t * self.weight


def labelled(label_format, **options):
    return EpsilonDenoiser(
        Labelled(), ALPHAS, label_dim=3, label_format=label_format, check=False, **SIZE, **options
    )


def test_labels_come_as_the_net_wants_them():
    indices, rows = labelled("index", null_label=3, label_name="y"), labelled("one_hot")
    options = {"seeds": range(3), "num_steps": 1, "class_labels": [2, 0, 1]}
    sample(indices, unlabelled(indices), 1.5, **options)
    asked, unasked = (given["y"] for given in indices.net.given)
    assert asked.tolist() == [2, 0, 1] and asked.dtype == torch.int64
    assert unasked.tolist() == [3, 3, 3]
    sample(rows, unlabelled(rows), 1.5, **options)
    asked, unasked = (given["class_labels"] for given in rows.net.given)
    assert torch.equal(asked, torch.eye(3)[[2, 0, 1]]) and not unasked.any()
    x = torch.zeros(2, *SHAPE)
    indices(x, 1.0, torch.tensor([1, 2]))
    assert indices.net.given[-1]["y"].tolist() == [1, 2]
    # A row of zeros is what no label is, where there is a class for that.
    indices(x, 1.0, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert indices.net.given[-1]["y"].tolist() == [1, 3]
    with pytest.raises(ValueError, match="must each name one class"):
        labelled("index", label_name="y")(x, 1.0, torch.zeros(2, 3))
    for labels, message in (
        (torch.full([2, 3], 1 / 3), "must each name one class"),
        (torch.eye(4)[:2], r"must be \[N\] classes or \[N, 3\] rows, got \[2, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            indices(x, 1.0, labels)
    with pytest.raises(ValueError, match="class_labels must be given to a net without a class"):
        labelled("index")(x, 1.0, None)


def test_conditioning_goes_through_in_the_nets_type():
    text = torch.randn(1, 5, 6)
    net = Labelled(torch.float16)
    cond = {"text": text, "ids": torch.tensor([7]), "flag": True}
    denoiser = EpsilonDenoiser(net, ALPHAS, cond=cond, check=False, **SIZE)
    out = sample(denoiser, seeds=range(2), num_steps=1)
    given = net.given[0]
    assert torch.equal(given["text"], text.half().expand(2, 5, 6)) and given["flag"] is True
    assert given["ids"].tolist() == [7, 7] and out.dtype == torch.float32
    denoiser.cond["text"] = torch.randn(3, 5, 6)
    with pytest.raises(ValueError, match=r"cond\['text'\] must have a first dimension of 1 or of"):
        sample(denoiser, seeds=range(2), num_steps=1)


def test_a_half_net_is_fed_noise_levels_in_float32():
    """In float16, neighbouring levels would become one and high ones infinite."""
    denoiser = EpsilonDenoiser(Labelled(torch.float16), ALPHAS, check=False, **SIZE)
    assert denoiser.input_dtype == torch.float32
    denoiser.half()
    assert denoiser.log_sigmas.dtype == torch.float64
    assert torch.isfinite(sample(denoiser, seeds=[0], num_steps=3)).all()
    assert EpsilonDenoiser(Labelled(torch.float64), ALPHAS).input_dtype == torch.float64


# --- the real library -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def unet(diffusers, **options):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        **options,
    ).eval()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_unet_denoises_as_its_scheduler_says(diffusers, prediction):
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=False)
    net = unet(diffusers)
    denoiser = from_diffusers(net, scheduler, check=False)
    assert (denoiser.img_resolution, denoiser.img_channels, denoiser.label_dim) == (8, 2, 0)
    x_t = torch.randn(3, 2, 8, 8)
    with torch.no_grad():
        for time in (5, 400, 990):
            alpha = scheduler.alphas_cumprod[time].sqrt()
            sigma = (1 - alpha**2).sqrt() / alpha
            output = net(x_t, time).sample
            theirs = scheduler.step(output, time, x_t).pred_original_sample
            ours = denoiser(x_t / alpha, sigma)
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


class Exact:
    """The exact net in the shape of one of diffusers."""

    def __init__(self, net, **config):
        self.net, self.config = net, type("Config", (), config)

    def __call__(self, x, timestep, return_dict=True):
        return (self.net(x, timestep),)


def assert_near(ours, theirs, x, sigma):
    """Both lie at the end of the path from `x`, which is known; ours, in fewer steps, nearer."""
    end = MEAN + (x.double() - MEAN) * STD / math.sqrt(STD**2 + sigma**2)
    assert (ours - end).abs().max() < 0.005
    assert (ours - end).abs().mean() < (theirs - end).abs().mean() < 0.02


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_many_steps_of_the_librarys_sampler_end_where_ours_do(diffusers, kind):
    scheduler = diffusers.DDIMScheduler(
        prediction_type=kind, clip_sample=False, trained_betas=None, set_alpha_to_one=True
    )
    net = Exact(Discrete(kind.partition("_")[0]), sample_size=4, in_channels=1)
    denoiser = from_diffusers(net, scheduler)
    noise = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    ours = sample(denoiser, noise=noise, num_steps=300)
    x_t = noise * denoiser.sigma_max / math.sqrt(1 + denoiser.sigma_max**2)
    scheduler.set_timesteps(1000)
    for time in scheduler.timesteps:
        output = net(x_t, time.reshape(1))[0].to(x_t.dtype)
        x_t = scheduler.step(output, time, x_t).prev_sample
    assert_near(ours, x_t, noise * denoiser.sigma_max, denoiser.sigma_max)


def test_many_steps_of_flow_matching_end_where_ours_do(diffusers):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    net = Exact(flow("noise - data", 0, 1000.0), sample_size=4, in_channels=1)
    denoiser = from_diffusers(net, scheduler, sigma_max=1000.0)
    assert denoiser.time_scale == 1000
    noise = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    ours = sample(denoiser, noise=noise, num_steps=300)
    scheduler.set_timesteps(1000)
    x_t = noise * 1000 / 1001
    for time in scheduler.timesteps:
        output = net(x_t, (time / 1000).clamp(max=1000 / 1001).reshape(1) * 1000)[0]
        x_t = scheduler.step(output, time, x_t).prev_sample
    assert_near(ours, x_t, noise * 1000, 1000)


def test_classes_and_their_absence_reach_a_transformer(diffusers):
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=4,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_num_groups=2,
    ).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    denoiser = from_diffusers(net, diffusers.DDPMScheduler(clip_sample=False), check=False)
    assert (denoiser.label_dim, denoiser.null_label) == (5, 5)
    x, sigma = torch.randn(2, 2, 8, 8), torch.tensor(3.0)
    with torch.no_grad():
        ours = denoiser(x, sigma, torch.eye(5)[[1, 4]])
        time = denoiser.timesteps(sigma.reshape(1)).expand(2)
        raw = net(x / math.sqrt(10), timestep=time, class_labels=torch.tensor([1, 4])).sample
        assert torch.allclose(ours, x - 3 * raw[:, :2], atol=1e-4)
        assert not torch.allclose(denoiser(x, sigma, None), ours, atol=1e-3)
    images = sample(denoiser, unlabelled(denoiser), 1.5, seeds=range(2), num_steps=2)
    assert images.shape == (2, 2, 8, 8)


def test_prompts_reach_a_conditional_unet(diffusers):
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        cross_attention_dim=6,
    ).eval()
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="v_prediction")
    with pytest.raises(ValueError, match="cond must hold encoder_hidden_states for a UNet2DCond"):
        from_diffusers(net, scheduler)
    text, none = torch.randn(1, 5, 6), torch.zeros(1, 5, 6)
    model, guide = (
        from_diffusers(net, scheduler, cond={"encoder_hidden_states": t}, check=False)
        for t in (text, none)
    )
    assert isinstance(model, VDenoiser)
    images = sample(model, guide, 2.0, seeds=range(2), num_steps=2)
    assert images.shape == (2, 2, 8, 8) and torch.isfinite(images).all()
    x = torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        assert not torch.allclose(model(x, 3.0), guide(x, 3.0))


def test_a_flow_transformer_denoises(diffusers):
    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        caption_projection_dim=16,
        pooled_projection_dim=5,
        out_channels=4,
        pos_embed_max_size=8,
    ).eval()
    cond = {"encoder_hidden_states": torch.randn(1, 3, 6), "pooled_projections": torch.randn(1, 5)}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    denoiser = from_diffusers(net, scheduler, cond=cond, check=False)
    x, sigma = torch.randn(2, 4, 8, 8), torch.tensor(3.0)
    share = torch.tensor(0.75)
    given = {k: v.expand(2, *v.shape[1:]) for k, v in cond.items()}
    with torch.no_grad():
        velocity = net(x / 4, timestep=share.expand(2) * 1000, **given).sample
        assert torch.allclose(denoiser(x, sigma), x / 4 - share * velocity, atol=1e-5)
    assert sample(denoiser, seeds=[1], num_steps=2).shape == (1, 4, 8, 8)


def test_what_from_diffusers_does_not_take(diffusers):
    net = unet(diffusers)
    flow = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="scheduler must predict one of epsilon, v_prediction, sa"):
        from_diffusers(net, flow)
    with pytest.raises(ValueError, match="scheduler must have alphas_cumprod or be one of flow"):
        from_diffusers(net, diffusers.ScoreSdeVeScheduler())


@pytest.mark.parametrize("distilled", [False, True])
def test_flux_is_given_tokens(diffusers, distilled):
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=6,
        pooled_projection_dim=5,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=distilled,
    ).eval()
    cond = {"encoder_hidden_states": torch.randn(1, 3, 6), "pooled_projections": torch.randn(1, 5)}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    if distilled:
        with pytest.raises(ValueError, match="cond must hold guidance for a FluxTransformer2DM"):
            from_diffusers(net, scheduler, cond=cond)
        cond["guidance"] = torch.full([1], 3.5)
    denoiser = from_diffusers(net, scheduler, cond=cond, img_resolution=8, check=False)
    assert (denoiser.img_channels, denoiser.img_resolution) == (4, 8)

    # Square by square, for images that are not square themselves.
    x, share = torch.randn(2, 4, 6, 8), torch.tensor(0.75)
    given = {k: v.expand(2, *v.shape[1:]) for k, v in cond.items()}
    places = [(row, column) for row in range(3) for column in range(4)]
    squares = [(..., slice(2 * r, 2 * r + 2), slice(2 * c, 2 * c + 2)) for r, c in places]
    with torch.no_grad():
        tokens = net(
            torch.stack([(x / 4)[square].flatten(1) for square in squares], dim=1),
            timestep=share.expand(2),
            img_ids=torch.tensor([(0.0, r, c) for r, c in places]),
            txt_ids=torch.zeros(3, 3),
            **given,
        ).sample
        velocity = torch.empty_like(x)
        for i, square in enumerate(squares):
            velocity[square] = tokens[:, i].unflatten(1, (4, 2, 2))
        expected = x / 4 - share * velocity
        torch.testing.assert_close(denoiser(x, torch.tensor(3.0)), expected, rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="must have an even height and width for Flux"):
            denoiser(x[:, :, :5], torch.tensor(3.0))
    assert sample(denoiser, seeds=[1], num_steps=2).shape == (1, 4, 8, 8)
