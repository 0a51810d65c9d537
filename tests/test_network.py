"""The network: missing channels, adapters, the frozen encoder, cost."""

from __future__ import annotations

import itertools
import math

import pytest
import tiny
import torch
from benchmarks.cost_counts import count_network
from networks import images, stock_unet, train_adapters, unet
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_unimrseg.config import Stage3Config
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.networks.build import build_network
from nnunetv2_unimrseg.method.networks.unet import MissingModalityUNet, zero_missing

SHAPES = [("plain", 3, False), ("plain", 3, True), ("residual", 3, False), ("plain", 2, False), ("residual", 2, True)]
shapes = pytest.mark.parametrize(("kind", "dims", "anisotropic"), SHAPES)
INCOMPLETE = torch.tensor([[True, False, True, False], [False, True, True, True]])
OPTIONS = ("adapters_know_modalities", "reverse_attention")
FORMS = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product((True, False), repeat=2)]
forms = pytest.mark.parametrize("form", FORMS)


def adapted_unet(kind: str = "plain", norm: type[nn.Module] | None = None, **form: object) -> MissingModalityUNet:
    """Return a U-Net with an adapter after every stage, unless `form` says where they begin."""
    torch.manual_seed(0)
    settings = Stage3Config(**{"adapter_first_stage": 0, **form})
    return MissingModalityUNet(stock_unet(kind, norm=norm), 4, adapters=True, settings=settings)


@shapes
def test_keys_and_shapes_without_adapters_are_stock(kind, dims, anisotropic):
    stock = stock_unet(kind, dims, anisotropic=anisotropic).state_dict()
    ours = unet(kind, dims, adapters=False, anisotropic=anisotropic).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in stock.items()}


@shapes
def test_nan_channels_are_zeros_known_to_be_missing(kind, dims, anisotropic):
    network = unet(kind, dims, anisotropic=anisotropic).eval()
    train_adapters(network)
    x = images(dims)
    marked = x.masked_fill(~INCOMPLETE.view(2, 4, *[1] * dims), math.nan)
    with torch.no_grad():
        expected = network(x, INCOMPLETE)
        assert torch.equal(network(marked), expected)
        assert torch.isfinite(expected).all()
        assert not torch.equal(network(x), expected)


def test_one_nan_voxel_is_enough_and_a_blank_patch_is_available():
    x = torch.zeros(1, 3, 4, 4)
    x[0, 1, 0, 0] = math.nan
    zeroed, available = zero_missing(x, 3)
    assert available.tolist() == [[True, False, True]]
    assert torch.equal(zeroed, torch.zeros_like(x))


def test_label_channels_of_a_cascade_are_never_missing():
    x = images(3, channels=6)
    zeroed, available = zero_missing(x, 4, INCOMPLETE)
    assert available.shape == (2, 4)
    assert torch.equal(zeroed[:, 4:], x[:, 4:])
    assert unet(channels=6, modalities=4)(x, INCOMPLETE).shape == (2, 3, 16, 16, 16)


@shapes
def test_with_every_modality_adapters_change_nothing(kind, dims, anisotropic):
    network = unet(kind, dims, anisotropic=anisotropic).eval()
    train_adapters(network)
    plain = MissingModalityUNet(network, 4, adapters=False)
    x = images(dims)
    assert torch.equal(network(x), plain(x))
    mixed = torch.cat((x[:1], x[1:].masked_fill(torch.tensor([1.0, 0, 0, 0]).view(1, 4, *[1] * dims) > 0, math.nan)))
    together = network(mixed)
    assert torch.equal(together[0], plain(x)[0])
    assert not torch.equal(together[1], plain(mixed)[1])


@forms
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_adapters_begin_as_the_identity_and_learn_in_the_first_step(kind, form):
    network = build_network(
        configuration(unimrseg={"stage3": {"adapter_first_stage": 0, **form}}), 4, 3, False, adapters=True
    )
    network.freeze_encoder()
    adapted = network(images(), INCOMPLETE)
    assert torch.equal(adapted, network(images(), INCOMPLETE, skip_adapters=True))
    adapted.square().mean().backward()
    assert all(adapter.project.weight.grad.any() for adapter in network.adapters)


@pytest.mark.parametrize("nonlin", [nn.LeakyReLU, nn.ReLU])
def test_adapters_learn_from_the_first_step(nonlin):
    network = unet(nonlin=nonlin)
    network.freeze_encoder()
    optimizer = torch.optim.SGD([parameter for parameter in network.parameters() if parameter.requires_grad], lr=0.1)
    network(images(), INCOMPLETE).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    network(images(), INCOMPLETE).square().mean().backward()
    for name, parameter in network.adapters.named_parameters():
        # a bias before a normalisation has no effect, nor has a key's bias inside a softmax
        if not name.endswith("bias"):
            assert parameter.grad.abs().sum() > 0, name


def test_frozen_encoder_stays_as_it_is_and_lets_gradients_through():
    network = adapted_unet(norm=nn.BatchNorm3d, gradients_through_encoder=True)
    network.freeze_encoder()
    network.train()
    assert not any(module.training for module in network.encoder.modules())
    assert network.adapters.training
    before = {key: value.clone() for key, value in network.encoder.state_dict().items()}
    _, features = network(images(), INCOMPLETE, return_features=True)
    features[-1].square().mean().backward()
    assert network.adapters[0].project.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.encoder.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.encoder.state_dict().items())


def test_adapters_are_not_computed_when_nothing_is_missing():
    network = unet().eval()
    calls = []
    for adapter in network.adapters:
        adapter.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        network(images())
        assert not calls
        network(images(), INCOMPLETE)
    assert len(calls) == len(network.adapters)


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("missing", ["nothing", "of every sample", "of one sample"])
def test_compiles_into_one_graph(missing, deep_supervision):
    network = unet(deep_supervision=deep_supervision)
    train_adapters(network)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    x = images()
    if missing != "nothing":
        x[0, 2] = math.nan
    if missing == "of every sample":
        x[1, :2] = math.nan
    for inputs in ((x,), (x, INCOMPLETE)):
        expected, found = network(*inputs), compiled(*inputs)
        torch.testing.assert_close(found, expected)
        assert isinstance(found, torch.Tensor) != deep_supervision
        sum(scale.sum() for scale in (found if deep_supervision else [found])).backward()


def test_deep_supervision_and_features():
    network = unet(deep_supervision=True)
    logits, features = network(images(), INCOMPLETE, return_features=True)
    assert [tuple(scale.shape[2:]) for scale in logits] == [(16, 16, 16), (8, 8, 8)]
    assert [feature.shape[1] for feature in features] == [8, 16, 24]


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_cost_for_a_128_cubed_plan_of_four_modalities(kind, capsys):
    with torch.device("meta"):
        network = unet(kind, features=(32, 64, 128, 256, 320, 320), classes=4)
        x = torch.empty(1, 4, 128, 128, 128)
        counts = count_network(network, x)
    adapters = counts.adapter_parameters
    rest = counts.parameters - adapters
    with capsys.disabled():
        print(
            f"\n{kind}: {rest / 1e6:.2f} M parameters + {adapters / 1e6:.2f} M ({adapters / rest:.1%}); multiply-adds "
            f"{counts.complete / 1e12:.4f} T complete, {counts.incomplete / 1e12:.4f} T incomplete "
            f"(+{counts.incomplete / counts.complete - 1:.1%})"
        )
    assert adapters <= 0.10 * rest
    assert counts.complete < counts.incomplete <= 1.35 * counts.complete


def test_memory_measure_counts_adapters():
    networks = (stock_unet(), unet(adapters=False), unet())
    stock, without, adapted = (network.compute_conv_feature_map_size((16, 16, 16)) for network in networks)
    assert stock == without < adapted


def test_a_sample_of_which_nothing_would_be_left_keeps_what_it_has():
    x = torch.ones(2, 3, 4, 4)
    x[0, 1] = math.nan
    wanted = torch.tensor([[False, True, False], [False, True, False]])
    zeroed, available = zero_missing(x, 3, wanted)
    assert available.tolist() == [[True, False, True], [False, True, False]]
    assert zeroed[..., 0, 0].tolist() == [[1, 0, 1], [0, 1, 0]]


@forms
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_adapted_features_are_the_equation(kind, form):
    network = adapted_unet(kind, **form).eval()
    train_adapters(network)
    with torch.no_grad():
        x, _ = zero_missing(images(), 4, INCOMPLETE)
        _, features = network(x, INCOMPLETE, return_features=True)
        previous = network.encoder.stem(x) if kind == "residual" else x
        for stage, adapter, feature in zip(network.encoder.stages, network.adapters, features, strict=True):
            current = stage(previous)
            hidden = adapter.fuse(current + adapter.inject(previous))
            weight = 1 - torch.sigmoid(adapter.attention(hidden)) if form["reverse_attention"] else torch.ones(1)
            rows = ~INCOMPLETE if form["adapters_know_modalities"] else torch.ones(2, 1, dtype=torch.bool)
            factors = [adapter.scale[row].sum(0) for row in rows]
            added = weight * adapter.project(hidden)
            expected = current + torch.stack(factors).view(2, -1, 1, 1, 1) * added
            torch.testing.assert_close(feature, expected)
            previous = feature


def first_adapter(**settings: object) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    network = adapted_unet(**settings)
    train_adapters(network)
    return network.adapters[0], images(), torch.randn(2, 8, 16, 16, 16)


def lacking(*modalities: int) -> torch.Tensor:
    return torch.tensor([[modality in modalities for modality in range(4)]] * 2)


def test_what_the_missing_modalities_add_is_summed():
    adapter, previous, current = first_adapter(adapters_know_modalities=True)
    assert adapter.scale.shape == (4, 8)

    def added(*modalities: int) -> torch.Tensor:
        return adapter(previous, current, lacking(*modalities)) - current

    torch.testing.assert_close(added(0, 2, 3), added(0) + added(2) + added(3), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(added(0), added(2), atol=0.1)
    assert not added().any()


def test_factors_of_modalities_that_are_there_are_not_used():
    adapter, previous, current = first_adapter(adapters_know_modalities=True)
    missing = torch.cat((lacking(2)[:1], lacking(0, 2)[:1]))
    before = adapter(previous, current, missing)
    (gradient,) = torch.autograd.grad(before[:1].sum(), adapter.scale, retain_graph=True)
    assert gradient.any(1).tolist() == [False, False, True, False]
    (gradient,) = torch.autograd.grad(before.sum(), adapter.scale)
    assert gradient.any(1).tolist() == [True, False, True, False]
    with torch.no_grad():
        adapter.scale[[1, 3]] += 5
        assert torch.equal(adapter(previous, current, missing), before)


def test_factors_are_summed_in_single_precision_under_autocast():
    adapter, previous, current = first_adapter(adapters_know_modalities=True, reverse_attention=False)
    with torch.no_grad():
        adapter.scale.copy_(torch.tensor([1.0, 2.0**-10, 0.0, 0.0])[:, None])
    with torch.autocast("cpu", torch.bfloat16):
        hidden = adapter.project(adapter.fuse(current + adapter.inject(previous))).float()
        adapted = adapter(previous, current, lacking(0, 1))
        (gradient,) = torch.autograd.grad(1e3 * adapted.sum(), adapter.scale)
    torch.testing.assert_close(adapted, current + (1 + 2.0**-10) * hidden, atol=1e-6, rtol=1e-6)
    expected = 1e3 * hidden.sum((0, 2, 3, 4))
    torch.testing.assert_close(gradient[:2], expected.expand(2, -1), rtol=1e-4, atol=0.1)


def test_gradients_that_do_not_flow_through_the_encoder_take_the_adapters_path():
    gradients = {}
    for through in (True, False):
        network = adapted_unet(gradients_through_encoder=through).eval()
        network.freeze_encoder()
        train_adapters(network)
        _, features = network(images(), INCOMPLETE, return_features=True)
        wanted = [adapter.scale for adapter in network.adapters]
        gradients[through] = torch.autograd.grad(features[-1].square().sum(), wanted)
    x, available = zero_missing(images(), 4, INCOMPLETE)
    by_adapters = entering = x
    for stage, adapter in zip(network.encoder.stages, network.adapters, strict=True):
        with torch.no_grad():
            constant = stage(entering)
            entering = adapter(entering, constant, ~available)
        by_adapters = adapter(by_adapters, constant, ~available)
    reference = torch.autograd.grad(by_adapters.square().sum(), wanted)
    torch.testing.assert_close(gradients[False], reference)
    alike = [torch.allclose(*pair, rtol=0.1) for pair in zip(gradients[True], reference, strict=True)]
    assert alike == [False, False, True]


@pytest.mark.parametrize(("frozen", "through"), [(True, True), (True, False), (False, False)])
def test_lower_adapters_get_nothing_past_an_untrained_one_unless_through_the_encoder(frozen, through):
    network = adapted_unet(gradients_through_encoder=through)
    if frozen:
        network.freeze_encoder()
    _, features = network(images(), INCOMPLETE, return_features=True)
    features[-1].square().mean().backward()
    learn = [bool(adapter.project.weight.grad.any()) for adapter in network.adapters]
    assert learn == [through or not frozen] * 2 + [True]


def test_the_teacher_skips_adapters():
    network = unet().eval()
    train_adapters(network)
    plain = MissingModalityUNet(network, 4, adapters=False)
    assert torch.equal(network(images(), INCOMPLETE, skip_adapters=True), plain(images(), INCOMPLETE))


def configuration(**changes: object) -> ConfigurationManager:
    made = PlansManager(tiny.plans()).get_configuration("3d_fullres")
    made.configuration.update(changes)
    return made


@pytest.mark.parametrize(("edge", "expected"), [(0, 4), (2, 2)])
@forms
def test_plans_shape_the_network(edge, expected, form):
    settings = {"adapters": True, "adapter_window": edge, "gradients_through_encoder": edge == 2, **form}
    settings["adapter_first_stage"] = 0
    network = build_network(configuration(unimrseg={"stage3": settings}), 6, 3, True, adapters=True)
    for adapter, channels in zip(network.adapters, (4, 8), strict=True):
        factors = 4 if form["adapters_know_modalities"] else 1
        assert adapter.scale.shape == (factors, channels)
        assert (adapter.attention and adapter.attention.window) == (expected if form["reverse_attention"] else None)
    assert network.num_modalities == 4
    assert network.gradients_through_encoder is (edge == 2)
    assert network(images(channels=6), INCOMPLETE)[0].shape == (2, 3, 16, 16, 16)
    assert build_network(configuration(), 4, 3, False, adapters=False).adapters is None


def test_adapters_may_begin_below_full_resolution():
    every, deeper = adapted_unet(), adapted_unet(adapter_first_stage=1)
    train_adapters(deeper)
    assert len(deeper.adapters) == len(every.adapters) - 1
    _, adapted = deeper(images(), INCOMPLETE, return_features=True)
    _, plain = deeper(images(), INCOMPLETE, skip_adapters=True, return_features=True)
    assert [torch.equal(one, other) for one, other in zip(adapted, plain, strict=True)] == [True, False, False]
    shares = [network.compute_conv_feature_map_size((16, 16, 16)) for network in (unet(adapters=False), deeper, every)]
    assert shares == sorted(set(shares))


def test_a_first_adapter_that_the_encoder_has_no_stage_for_is_refused():
    with pytest.raises(UserError, match=r"adapter_first_stage = 3.*stages 0 to 2.*unimrseg configure"):
        adapted_unet(adapter_first_stage=3)


class NoUNet(nn.Module):
    """A network that plans can name and that has neither encoder nor decoder."""

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False) -> None:
        super().__init__()
        self.layer = nn.Conv3d(input_channels, num_classes, 1)


def test_a_planned_network_without_encoder_stages_is_refused():
    other = {"network_class_name": f"{__name__}.NoUNet", "arch_kwargs": {}, "_kw_requires_import": []}
    with pytest.raises(UserError, match=r"encoder\.stages.*NoUNet.*PlainConvUNet or ResidualEncoderUNet"):
        build_network(configuration(architecture=other), 4, 3, False, adapters=False)
