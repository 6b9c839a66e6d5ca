"""The accounting of bytes that experiments/speed reads from a program."""

from experiments.speed import traffic

PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused (p: bf16[8,4]) -> f32[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %c = f32[8,4]{1,0} convert(%p)
}

%body (state: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %state = (s32[], bf16[8,4]{1,0}) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%state), index=1
  %y = bf16[8,4]{1,0} fusion(%x), kind=kLoop, metadata={op_name="jit(f)/block_3/add"}
  ROOT %t = (s32[], bf16[8,4]{1,0}) tuple(%x, %y)
}

ENTRY %main (a: bf16[8,4], b: bf16[4,16]) -> f32[8,16] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = bf16[4,16]{1,0} parameter(1)
  %w = (s32[], bf16[8,4]{1,0}) while(%a), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %z = bf16[8,4]{1,0} fusion(%a, %a), kind=kLoop, metadata={op_name="jit(f)/block_4/add"}
  ROOT %d = (f32[8,16]{1,0}, s8[32]{0}) custom-call(%z, %b), custom_call_target="__cublas$gemm", metadata={op_name="jit(f)/dot"}
}
"""  # noqa: E501


def test_every_kernel_reads_its_operands_and_writes_its_results_once():
  add, product = sorted(traffic.moved(PROGRAM), key=lambda x: x.kind)
  assert (add.kind, add.where, add.calls) == ("other", "jit(f)/block/add", 6)
  assert add.nbytes == 5 * (64 + 64) + 3 * 64
  assert (product.kind, product.calls) == ("product", 1)
  assert product.nbytes == (8 * 4 + 4 * 16) * 2 + 8 * 16 * 4 + 32
  assert traffic.totals([add, product]) == {
    "other": add.nbytes, "product": product.nbytes,
  }  # fmt: skip
