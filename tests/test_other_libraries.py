"""Autoguidance brought into the samplers and pipelines of other libraries."""

from types import SimpleNamespace

import pytest
import torch
from nets import conditional_unet, tiny

from autoguide_fast import sample
from autoguide_fast.adapters import diffusers_guider
from autoguide_fast.guidance import guided_denoiser
from autoguide_fast.schedules import rho_schedule

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("diffusers.guiders")


@pytest.fixture(scope="module")
def nets():
    return conditional_unet(8), conditional_unet(4, seed=1)


def denoised(net, guider, state, step=0, steps=10):
    """What one turn of a modular denoising loop predicts, which asks its guider in this order."""
    guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(500))
    prompts = {"prompt_embeds": (state.prompt_embeds, state.negative_prompt_embeds)}
    batches = guider.prepare_inputs(prompts)
    for batch in batches:
        guider.prepare_models(net)
        with torch.no_grad():
            batch.noise_pred = net(
                state.scaled_latents,
                500,
                encoder_hidden_states=batch.prompt_embeds,
                return_dict=False,
            )[0]
        guider.cleanup_models(net)
    return guider(batches)[0]


def test_the_order_is_that_of_the_library(nets, state):
    module = "diffusers.modular_pipelines.stable_diffusion_xl.denoise"
    block = pytest.importorskip(module, exc_type=ImportError)  # which wants transformers
    guider = diffusers_guider(nets[1], 2.5)
    expected = denoised(nets[0], guider, state)
    state.num_inference_steps = 10
    parts = SimpleNamespace(guider=guider, unet=nets[0])
    found = block.StableDiffusionXLLoopDenoiser()(parts, state, 0, torch.tensor(500))[1].noise_pred
    torch.testing.assert_close(found, expected)


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        scaled_latents=torch.randn(2, 4, 8, 8, generator=generator),
        prompt_embeds=torch.randn(2, 3, 6, generator=generator),
        negative_prompt_embeds=torch.randn(2, 3, 6, generator=generator),
        timestep_cond=None,
        cross_attention_kwargs=None,
    )


def outputs(nets, state):
    with torch.no_grad():
        return [
            net(state.scaled_latents, 500, encoder_hidden_states=state.prompt_embeds).sample
            for net in nets
        ]


def test_a_second_net_guides_a_pipeline(nets, state):
    first, second = outputs(nets, state)
    found = denoised(nets[0], diffusers_guider(nets[1], 2.5), state)
    torch.testing.assert_close(found, second + 2.5 * (first - second))
    # Nothing is left behind in the net.
    assert "forward" not in vars(nets[0])
    assert torch.equal(outputs(nets, state)[0], first)


def test_a_forward_that_was_replaced_comes_back(nets, state):
    net, calls = nets[0], []
    original = net.forward

    def replaced(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options)

    net.forward = replaced
    try:
        denoised(net, diffusers_guider(nets[1], 2.0), state)
        assert net.forward is replaced and len(calls) == 1
    finally:
        del net.forward


@pytest.mark.parametrize(
    ("step", "guides"), [(0, False), (1, False), (2, True), (7, True), (8, False), (9, False)]
)
def test_a_share_of_the_steps_is_guided(nets, state, step, guides):
    first, second = outputs(nets, state)
    guider = diffusers_guider(nets[1], 2.0, start=0.2, stop=0.8)
    expected = second + 2 * (first - second) if guides else first
    torch.testing.assert_close(denoised(nets[0], guider, state, step), expected)


def test_weight_1_and_a_disabled_guider_leave_the_guide_out(nets, state):
    first, _ = outputs(nets, state)
    guider = diffusers_guider(nets[1], 2.0)
    guider.disable()
    for each in (guider, diffusers_guider(None.__class__, 1.0)):  # a guide that would fail
        assert torch.equal(denoised(nets[0], each, state), first)


def test_a_guider_is_copied_with_changes(nets, state):
    first, second = outputs(nets, state)
    guider = diffusers_guider(nets[1], 2.0, stop=0.5).new(guidance=3.0)
    assert guider.guide is nets[1] and guider.stop == 0.5
    torch.testing.assert_close(denoised(nets[0], guider, state), second + 3 * (first - second))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"guide": 3}, TypeError, "guide must be a net, got int"),
        ({"guidance": float("nan")}, ValueError, "guidance must be"),
        ({"start": 0.5, "stop": 0.2}, ValueError, r"stop must be in \[start, 1\], got 0.2"),
        ({"start": -1}, ValueError, r"start must be in \[0, 1\], got -1"),
    ],
)
def test_bad_guiders_are_refused(nets, options, error, message):
    with pytest.raises(error, match=f"^diffusers_guider: {message}"):
        diffusers_guider(**{"guide": nets[1], "guidance": 2.0, **options})


def test_samplers_of_k_diffusion_end_where_ours_does():
    sampling = pytest.importorskip("k_diffusion.sampling")
    model, guide = tiny(), tiny(seed=1)
    seeds, labels = range(3), torch.tensor([0, 3, 1])
    expected = sample(
        model, guide, 1.5, labels, seeds, num_steps=8, dtype=torch.float64, interval=(0.1, 5)
    )
    from autoguide_fast.seeds import StackedRandom

    sigmas = rho_schedule(8, 0.002, 80, 7, torch.float64)
    noise = StackedRandom("cpu", seeds).randn([2, 8, 8]).double()
    rows = torch.nn.functional.one_hot(labels, 5).float()
    denoiser = guided_denoiser(model, guide, 1.5, interval=(0.1, 5))
    with torch.no_grad():
        found = sampling.sample_heun(
            denoiser, noise * sigmas[0], sigmas, {"class_labels": rows}, disable=True
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
