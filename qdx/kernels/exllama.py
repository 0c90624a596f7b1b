"""vLLM's own GPTQ kernel (exllama v2), before Marlin."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels import tensor_core
from qdx.kernels._base import KernelModel, check_weight, scratch
from qdx.kernels.cards import rule_of
from qdx.kernels.weights import QuantizedWeight

MOST_ROWS = 50
BLOCK_K = 128
BLOCK_N = 512
BLOCK_M = 8
OCTET = 8
STEP_K = 16
HALF_SUMS = rule_of("h100", "fp16", "float16")
# Into how many parts cuBLAS cuts K: (in-features, out-features): (first row, last row, parts)…. Read from the
# grids of cublasHgemm on an H100 (torch 2.11, CUDA 13; docs/results/h100_emulator) at every number of rows
# from 51 to 513. Outputs recorded where each kernel is first chosen are those of that many parts, bit by bit.
# What is left out runs a kernel that shares parts of K in another way (segment_k_on), but for 12288 x 4096 at
# 255 and 256 rows, whose outputs are those of two halves. It is a heuristic of cuBLAS's, so nothing is
# guessed for other shapes, row counts and GPUs: they are computed uncut. vLLM has 768 x 768 in o_proj alone.
# A model with its query projection apart, as the transformers backend has it, meets it there.
SPLITS = {
    (768, 1280): ((51, 513, 1),),
    (768, 768): ((51, 53, 4), (54, 64, 6), (65, 513, 1)),
    (768, 3072): ((51, 513, 1),),
    (768, 1536): ((51, 513, 1),),
    (1536, 768): ((51, 64, 5), (65, 128, 8), (129, 192, 6), (193, 256, 5), (257, 513, 1)),
    (4096, 6144): ((51, 256, 1), (385, 513, 1)),
    (4096, 4096): ((51, 64, 4), (65, 192, 1), (225, 384, 1), (394, 448, 1), (513, 513, 1)),
    (12288, 4096): ((51, 64, 8), (129, 192, 1), (255, 256, 2), (257, 384, 1), (513, 513, 1)),
}
SPLITS_SM_COUNT = 132
SPLIT_STEPS = 4  # parts of K are whole tiles of 64 rows
# Half products of this many elements at a time stay in a core's second-level cache.
_CHAIN_ELEMENTS = 1 << 19


@cache
def fma_is_fused() -> bool:
    """Return whether float32 `torch.addcmul` rounds once on this machine, in vector body and tail alike."""
    numbers = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(7, 37, generator=numbers, dtype=torch.float32) for _ in range(3))
    once = (a.double() + b.double() * c.double()).float()
    return bool(torch.equal(torch.addcmul(a, b, c), once))


def add_product(sum_: Tensor, a: Tensor, b: Tensor) -> None:
    """``sum_ = fma(a, b, sum_)`` in float32, in place."""
    if fma_is_fused():
        torch.addcmul(sum_, a, b, out=sum_)
    else:
        sum_.copy_(torch.addcmul(sum_.double(), a.double(), b.double()))


class Exllama(KernelModel):
    """Half FMAs and fp16 atomics for few rows, a half-accumulating matmul for many.

    Source: ``csrc/quantization/gptq/q_gemm.cu``: ``gemm_half_q_half_cuda`` (50 rows),
    ``gemm_half_q_half_gptq_4bit_kernel``, ``dot22_8_f``, ``reconstruct_exllama_4bit_kernel``,
    ``cublasHgemm``; ``qdq_4.cuh``: ``dequant_4bit_8_gptq`` (q - 8, exact).

    - Up to 50 rows: of each 8 rows of K, the even and the odd ones are two chains of 4 half FMAs; the two
      results are added in float32, multiplied by the scale and added to the sum of a 128-row K block in one
      float32 FMA. Each block's sum is rounded to fp16 and added to the output by an fp16 atomic: one
      rounding a block, in the order in which the thread blocks happen to finish. Here that order is drawn
      from `generator` for every call, block of 8 rows and block of 512 columns, the grid of the source; so
      are the low bits of the result. Thread blocks are launched K block after K block, so a small grid
      finishes in any order, and a large one in about the order of K: each is late by up to as many thread
      blocks as there are SMs. That spread is a choice: outputs recorded on an H100 lie between no lateness
      and two thread blocks an SM.
    - More rows: weights are reconstructed in fp16, and the matmul keeps its sums in fp16: one rounding for
      every 16 rows of K, the depth of a tensor core's instruction. Where cuBLAS is known to cut K (`SPLITS`),
      the parts' fp16 sums are added in fp16, the first part first. Nothing is left to chance, and where
      `SPLITS` has the shape and the number of rows `exact` gives the kernel's very bits.

    The half FMA is computed in float32 and then rounded to fp16, which differs from one rounding only where
    the exact sum needs more than 24 bits and lies next to a tie.

    Parameters
    ----------
    weight : QuantizedWeight
        Symmetric, in-features divisible by 32, out-features by 8, group size 32, 64, 128 or in-features.
    bias : Tensor, optional
        (out_features,); added to the fp16 result.
    sm_count : int
        Streaming multiprocessors of the modelled GPU: how far the order of the atomics strays from that of K,
        and whether `SPLITS` was read on such a GPU.
    generator : torch.Generator, optional
        Source of the order of the atomics; torch's global one if None.
    """

    name = "exllama"
    multiples = (32, 8)
    dtypes = (torch.float16,)

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: Tensor | None = None,
        *,
        sm_count: int = 132,
        generator: torch.Generator | None = None,
    ) -> None:
        if not weight.symmetric:
            raise QdxError(
                "kernel 'exllama' takes symmetric GPTQ weights only, got weights with zero points: "
                "use a checkpoint made with sym=true"
            )
        check_weight(type(self), weight)
        super().__init__(weight.in_features, weight.out_features, bias)
        self.generator, self.sm_count = generator, sm_count
        columns = weight.out_features
        self._blocks = -(-weight.in_features // BLOCK_K)
        padded = torch.zeros(self._blocks * BLOCK_K, columns, dtype=torch.float16)
        padded[: weight.in_features] = weight.q_KN.to(torch.float16) - 8
        # Row 8·o + 2·i + l of K is factor i of chain l of octet o.
        self._q_ILON = padded.view(-1, 4, 2, columns).permute(1, 2, 0, 3).contiguous()
        size = weight.group_size
        groups_in_block = 1 if size == weight.in_features or size >= BLOCK_K else BLOCK_K // size
        index = torch.arange(self._blocks * groups_in_block) * (BLOCK_K // groups_in_block) // size
        index.clamp_(max=weight.scale_GN.shape[0] - 1)  # rows of padding: their weights are 0
        self._scale_BGN = (
            weight.scale_GN[index].view(self._blocks, groups_in_block, columns).to(torch.float32)
        )

    def multiply(self, x_MK: Tensor) -> Tensor:
        """Choose the path by the number of rows."""
        missing = self._blocks * BLOCK_K - self.in_features
        if missing:
            x_MK = torch.nn.functional.pad(x_MK, (0, missing))
        if x_MK.shape[0] > MOST_ROWS:
            return self.add_bias(self._reconstructed(x_MK))
        return self.add_bias(self.atomics(self.block_sums(x_MK), self.draw_orders(x_MK.shape[0])))

    def draw_orders(self, rows: int) -> Tensor:
        """Draw the order in which K blocks are added: int64 (row blocks, column blocks, K blocks)."""
        shape = (-(-rows // BLOCK_M), -(-self.out_features // BLOCK_N), self._blocks)
        late = self.sm_count / (shape[0] * shape[1])
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float32)
        return (torch.arange(self._blocks) + drawn * late).argsort(-1)

    def block_sums(self, x_MK: Tensor) -> Tensor:
        """Sum each 128-row block of K: float16 (rows, K blocks, out_features), work memory."""
        rows, blocks, columns = x_MK.shape[0], self._blocks, self.out_features
        octets = blocks * BLOCK_K // OCTET
        x_MILO1 = x_MK.view(rows, octets, 4, 2).permute(0, 2, 3, 1).contiguous().unsqueeze(-1)
        at_once = max(1, _CHAIN_ELEMENTS // (2 * octets * columns))
        out_MBN = scratch("blocks", rows, blocks, columns, dtype=torch.float16)
        for first in range(0, rows, at_once):
            x_part = x_MILO1[first : first + at_once]
            count = x_part.shape[0]
            chain_MLON = scratch("chain", count, 2, octets, columns, dtype=torch.float16)
            torch.mul(self._q_ILON[0], x_part[:, 0], out=chain_MLON)
            for i in range(1, 4):
                torch.addcmul(chain_MLON, self._q_ILON[i], x_part[:, i], out=chain_MLON)
            dot_MLON = scratch("dot", count, 2, octets, columns).copy_(chain_MLON)
            dot_MON = dot_MLON[:, 0].add_(dot_MLON[:, 1])
            out_MBN[first : first + count] = self._scaled(dot_MON)
        return out_MBN

    def _scaled(self, dot_MON: Tensor) -> Tensor:
        """Chain each K block's float32 FMAs over 16 octets: float32 (rows, K blocks, out_features)."""
        groups = self._scale_BGN.shape[1]
        each = BLOCK_K // OCTET // groups
        dot_MBGJN = dot_MON.unflatten(1, (self._blocks, groups, each))
        sum_MBN = scratch("sum", dot_MON.shape[0], self._blocks, self.out_features)
        for octet in range(BLOCK_K // OCTET):
            group, j = divmod(octet, each)
            if octet == 0:
                torch.mul(dot_MBGJN[:, :, group, j], self._scale_BGN[:, group], out=sum_MBN)
            else:
                add_product(sum_MBN, dot_MBGJN[:, :, group, j], self._scale_BGN[:, group])
        return sum_MBN

    def atomics(self, block_MBN: Tensor, order_RCB: Tensor) -> Tensor:
        """Add the K blocks' sums in fp16, in the given orders: float16 (rows, out_features)."""
        rows = block_MBN.shape[0]
        y_MN = torch.zeros(rows, self.out_features, dtype=torch.float16)
        for row_block, order_CB in enumerate(order_RCB.tolist()):
            m = slice(row_block * BLOCK_M, (row_block + 1) * BLOCK_M)
            for column_block, order_B in enumerate(order_CB):
                n = slice(column_block * BLOCK_N, (column_block + 1) * BLOCK_N)
                for block in order_B:
                    y_MN[m, n].add_(block_MBN[m, block, n])
        return y_MN

    def _reconstructed(self, x_MK: Tensor) -> Tensor:
        """Multiply by fp16 weights with fp16 sums, rounded every 16 rows of K."""
        rows, columns, octets = x_MK.shape[0], self.out_features, self._q_ILON.shape[2]
        steps = self._blocks * BLOCK_K // STEP_K
        each = BLOCK_K // OCTET // self._scale_BGN.shape[1]
        scale_GN = self._scale_BGN.view(-1, columns).to(torch.float16)
        half_TRN = scratch("half_weight", steps, STEP_K, columns, dtype=torch.float16)
        torch.mul(
            self._q_ILON.view(OCTET, octets // each, each, columns),
            scale_GN[:, None],
            out=half_TRN.view(OCTET, octets // each, each, columns),
        )
        # The 16 rows of a step come chain by chain: their order inside one instruction does not matter.
        weight_TRN = scratch("weight", steps, OCTET, 2, columns)
        weight_TRN.copy_(half_TRN.view(OCTET, steps, 2, columns).transpose(0, 1))
        x_TMR = scratch("x", steps, rows, 4, 2, 2)
        x_TMR.copy_(x_MK.view(rows, steps, 2, 4, 2).permute(1, 0, 3, 4, 2))
        weight_TRN, x_TMR = weight_TRN.view(steps, STEP_K, columns), x_TMR.view(steps, rows, STEP_K)
        sum_MN = scratch("sum", rows, columns)
        total_MN: Tensor | None = None
        for part in self._parts(rows, steps):
            y_MN = torch.empty(rows, columns, dtype=torch.float16)
            torch.mm(x_TMR[part.start], weight_TRN[part.start], out=sum_MN)
            for step in part[1:]:
                y_MN.copy_(sum_MN)
                sum_MN.copy_(y_MN)
                sum_MN.addmm_(x_TMR[step], weight_TRN[step])
            y_MN.copy_(sum_MN)
            total_MN = y_MN if total_MN is None else total_MN.add_(y_MN)
        assert total_MN is not None
        return total_MN

    def _cuts(self, rows: int) -> int | None:
        """Return into how many parts cuBLAS cuts K; None where that is not known."""
        if self.sm_count != SPLITS_SM_COUNT:
            return None
        known = SPLITS.get((self.in_features, self.out_features), ())
        return next((parts for first, last, parts in known if first <= rows <= last), None)

    def _parts(self, rows: int, steps: int) -> list[range]:
        """Return the steps of K that are summed together."""
        parts = self._cuts(rows) or 1
        each = -(-steps // (parts * SPLIT_STEPS)) * SPLIT_STEPS if parts > 1 else steps
        return [range(at, min(at + each, steps)) for at in range(0, steps, each)]

    def exact_known(self, rows: int) -> bool:
        """Up to 50 rows chance decides; of more, where cuBLAS is known to cut K or not to."""
        return rows > MOST_ROWS and self._cuts(rows) is not None

    def multiply_exactly(self, x_MK: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Sum in fp16 accumulators, part by part."""
        octets, groups = self._q_ILON.shape[2], self._scale_BGN.shape[1]
        q_GKN = (
            self._q_ILON[..., columns]
            .permute(2, 0, 1, 3)
            .reshape(self._blocks * groups, BLOCK_K // groups, len(columns))
        )
        scale_GN = self._scale_BGN[..., columns].view(-1, len(columns)).to(torch.float16)
        weight_KN = (q_GKN * scale_GN[:, None]).to(torch.float32).view(octets * OCTET, len(columns))
        missing = self._blocks * BLOCK_K - self.in_features
        x_padded = torch.nn.functional.pad(x_MK[rows], (0, missing)).to(torch.float32)
        total_MN: Tensor | None = None
        for part in self._parts(x_MK.shape[0], octets * OCTET // STEP_K):
            k = slice(part.start * STEP_K, part.stop * STEP_K)
            y_MN = tensor_core.chain(x_padded[:, k], weight_KN[k], HALF_SUMS).to(torch.float16)
            total_MN = y_MN if total_MN is None else total_MN.add_(y_MN)
        assert total_MN is not None
        return self.add_bias(total_MN, columns)
