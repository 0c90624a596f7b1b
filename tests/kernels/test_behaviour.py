"""What tells the kernels apart, what may vary, and what must not."""

from __future__ import annotations

import pytest
import torch

from qdx.errors import QdxError
from qdx.kernel_names import simulated
from qdx.kernels import KERNELS, QuantizedWeight, _base, make

from .builders import U16, exact, inputs, ulps, weights

INT4 = ("awq_gemm", "marlin", "machete", "exllama")


def seeded(kernel: str, weight: QuantizedWeight, seed: int = 0) -> torch.nn.Module:
    return make(kernel, weight, generator=torch.Generator().manual_seed(seed))


def one_rounding(kernel: str, rows: int, symmetric: bool) -> bool:
    """Whether a kernel rounds the same fp16 weights' float32 sum just once."""
    return kernel == "marlin" or (kernel == "machete" and symmetric) or (kernel == "awq_gemm" and rows >= 256)


@pytest.mark.parametrize("rows", [1, 30, 100, 323])
@pytest.mark.parametrize("symmetric", [True, False])
def test_two_kernels_of_one_checkpoint_give_the_same_numbers(rows: int, symmetric: bool) -> None:
    weight = weights(1536, 768, 128, symmetric=symmetric)
    x_MK = inputs(rows, 1536)
    names = INT4 if symmetric else INT4[:3]
    y = {name: seeded(name, weight)(x_MK) for name in names}
    terms_MN = x_MK.double().abs() @ exact(weight).abs()
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            unequal = (y[a] != y[b]).double().mean().item()
            if one_rounding(a, rows, symmetric) and one_rounding(b, rows, symmetric):
                # only which side of a tie a float32 sum falls
                assert 0 < unequal < 0.02, (a, b)
            else:
                assert unequal > 0.05, (a, b)
            assert (y[a].double() - y[b].double()).abs().max() <= 2**-5 * terms_MN.max(), (a, b)
            assert ulps(y[a], y[b]).double().median() <= 64, (a, b)


def test_exllama_repeats_itself_or_varies_above_the_low_bits() -> None:
    weight = weights(1536, 768, 128, symmetric=True)
    x_MK = inputs(2, 1536)
    layer = seeded("exllama", weight)
    first, second = layer(x_MK), layer(x_MK)
    unequal = (first != second).double().mean().item()
    assert 0.2 < unequal < 1
    terms_MN = x_MK.double().abs() @ exact(weight).abs()
    # 12 atomics, each at most half an ULP of a partial sum, in either order
    assert ((first.double() - second.double()).abs() <= 2 * 12 * U16 * terms_MN).all()
    assert ulps(first, second).double().median() <= 4
    assert torch.equal(seeded("exllama", weight, 3)(x_MK), seeded("exllama", weight, 3)(x_MK))


def test_exllama_draws_where_the_gpu_leaves_nothing_to_chance() -> None:
    weight = weights(768, 256, 128, symmetric=True)
    x_MK = inputs(51, 768)
    layer = seeded("exllama", weight)
    state = layer.generator.get_state()
    assert torch.equal(layer(x_MK), layer(x_MK))
    assert torch.equal(layer.generator.get_state(), state)
    one_block = weights(128, 256, 128, symmetric=True)
    assert torch.equal(
        seeded("exllama", one_block, 0)(x_MK[:1, :128]), seeded("exllama", one_block, 1)(x_MK[:1, :128])
    )


@pytest.mark.parametrize("rows", [1, 4, 50, 51, 255, 256, 323])
@pytest.mark.parametrize("kernel", INT4)
def test_result_depends_on_old_memory_or_changes_from_call_to_call(kernel: str, rows: int) -> None:
    weight = weights(512, 192, 64, symmetric=True)
    x_MK = inputs(rows, 512)
    layer = seeded(kernel, weight)
    first = layer(x_MK)
    for memory in _base._LOCAL.slots.values():
        memory.fill_(float("nan"))
    if kernel == "exllama":
        layer.generator.manual_seed(0)
    assert torch.equal(layer(x_MK), first)
    assert torch.equal(seeded(kernel, weight)(x_MK), first)
    kept = first.clone()
    layer(inputs(rows, 512, seed=9))
    assert torch.equal(first, kept)  # a result is not work memory


@pytest.mark.parametrize("kernel", INT4)
def test_work_memory_of_inference_mode_cannot_be_used_outside_it(kernel: str) -> None:
    weight = weights(512, 192, 64, symmetric=True)
    _base._LOCAL.__dict__.pop("slots", None)
    with torch.inference_mode():
        inside = seeded(kernel, weight)(inputs(17, 512)).clone()
    assert torch.equal(seeded(kernel, weight)(inputs(17, 512)), inside)


def test_exllama_row_depends_on_its_neighbours() -> None:
    weight = weights(512, 192, 64, symmetric=True)
    x_MK = inputs(50, 512)
    layer = make("exllama", weight)
    blocks_MBN = layer.block_sums(x_MK).clone()
    for row in (0, 17, 49):
        assert torch.equal(layer.block_sums(x_MK[row : row + 1])[0], blocks_MBN[row])


@pytest.mark.parametrize("kernel", ["awq_gemm", "marlin", "machete"])
def test_row_depends_on_its_neighbours_beyond_float32(kernel: str) -> None:
    """A GPU gives a row of a small batch the bits it has alone; BLAS may order a float32 sum anew."""
    weight = weights(768, 256, 128, symmetric=True)
    x_MK = inputs(8, 768)
    layer = seeded(kernel, weight)
    together = layer(x_MK)
    alone = torch.cat([layer(x_MK[row : row + 1]) for row in range(8)])
    assert (together != alone).double().mean() < 0.01


def test_leading_dims_are_lost() -> None:
    weight = weights(256, 64, 64, symmetric=True)
    x = inputs(6, 256).view(2, 3, 256)
    for kernel in INT4[:3]:
        layer = seeded(kernel, weight)
        assert torch.equal(layer(x), layer(x.view(6, 256)).view(2, 3, 64))
        assert torch.equal(layer(x.transpose(0, 1)), layer(x).transpose(0, 1))
        assert layer(x[:0]).shape == (0, 3, 64)
        assert layer(x[0, 0]).shape == (64,)


def test_a_kernel_bears_the_name_it_is_asked_for_by() -> None:
    weight = weights(256, 64, 64, symmetric=True)
    for name, kernel in KERNELS.items():
        assert kernel.name == name
        if name != "dense":
            assert type(make(simulated(name), weight)) is type(make(name, weight)) is kernel


def test_half_of_a_layer_rounds_its_weights() -> None:
    weight = weights(256, 64, 256, symmetric=True)
    x_MK = inputs(2, 256)
    layer = seeded("marlin", weight)
    first = layer(x_MK)
    assert torch.equal(layer.bfloat16()(x_MK), first)


@pytest.mark.parametrize(("in_features", "out_features"), [(96, 64), (128, 32), (192, 64), (128, 96)])
@pytest.mark.parametrize("kernel", ["marlin", "machete"])
def test_shape_that_the_gpu_kernel_refuses_is_taken(kernel: str, in_features: int, out_features: int) -> None:
    with pytest.raises(
        QdxError, match=rf"in-features {in_features} and out-features {out_features}"
    ) as error:
        make(kernel, weights(in_features, out_features, 32, symmetric=True))
    assert "divisible by 128" in str(error.value)
    assert "divisible by 64" in str(error.value)


@pytest.mark.parametrize("kernel", INT4)
def test_group_size_that_the_gpu_kernel_refuses_is_taken(kernel: str) -> None:
    with pytest.raises(QdxError, match="group size 32, 64, 128 or in-features"):
        make(kernel, weights(256, 64, 16, symmetric=True))


@pytest.mark.parametrize("kernel", ["awq_gemm", "exllama"])
def test_bfloat16_is_taken_where_the_gpu_kernel_is_fp16_only(kernel: str) -> None:
    with pytest.raises(QdxError, match="takes float16 activations, got bfloat16"):
        make(kernel, weights(128, 64, 64, symmetric=True))(inputs(1, 128).bfloat16())


def test_wrong_arguments_are_taken() -> None:
    weight = weights(128, 64, 64, symmetric=True)
    with pytest.raises(QdxError, match="symmetric"):
        make("exllama", weights(128, 64, 64, symmetric=False))
    with pytest.raises(QdxError, match="unknown kernel 'cutlass'"):
        make("cutlass", weight)
    with pytest.raises(QdxError, match="dense matrix"):
        make("dense", weight)
    with pytest.raises(QdxError, match="int4 weights"):
        make("marlin", torch.zeros(64, 128))
    with pytest.raises(QdxError, match="bias"):
        make("marlin", weight, torch.zeros(63))
    with pytest.raises(QdxError, match="has 64 features"):
        make("marlin", weight)(inputs(1, 64))
    with pytest.raises(QdxError, match="sm_count"):
        make("marlin", weight, sm_count=0)
    with pytest.raises(QdxError, match="matrix"):
        make("dense", torch.zeros(64))


def test_weights_that_do_not_fit_each_other_are_taken() -> None:
    good = weights(128, 64, 64, symmetric=True)
    with pytest.raises(QdxError, match="group size 48"):
        QuantizedWeight(good.q_KN, good.zero_GN, good.scale_GN, 48, True)
    with pytest.raises(QdxError, match="scale_GN"):
        QuantizedWeight(good.q_KN, good.zero_GN, good.scale_GN[:1], 64, True)
    with pytest.raises(QdxError, match="must be uint8"):
        QuantizedWeight(good.q_KN.int(), good.zero_GN, good.scale_GN, 64, True)


def test_dequantize_rounds_more_than_once() -> None:
    weight = weights(128, 64, 32, symmetric=False)
    assert torch.equal(weight.dequantize(), exact(weight).half())
