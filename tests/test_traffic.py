"""The accounting of bytes that experiments/speed reads from a program."""

from experiments.speed import traffic

PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused (p: bf16[8,4]) -> f32[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %c = f32[8,4]{1,0} convert(%p)
}

%cutting (p: f32[3,8,4], i: s32[]) -> f32[8,4] {
  %p = f32[3,8,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %s = f32[1,8,4]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,8,4}
  ROOT %r = f32[8,4]{1,0} bitcast(%s)
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
  %all = f32[3,8,4]{2,1,0} parameter(2)
  %at = s32[] parameter(3)
  %one = f32[8,4]{1,0} fusion(%all, %at), kind=kLoop, calls=%cutting, metadata={op_name="jit(f)/slice"}
  ROOT %d = (f32[8,16]{1,0}, s8[32]{0}) custom-call(%z, %b), custom_call_target="__cublas$gemm", metadata={op_name="jit(f)/dot"}
}
"""  # noqa: E501


def test_of_what_is_only_cut_the_slices_are_read():
  (one,) = [x for x in traffic.moved(PROGRAM) if x.where == "jit(f)/slice"]
  assert one.nbytes == 2 * 8 * 4 * 4 + 4


def test_every_kernel_reads_its_operands_and_writes_its_results_once():
  found = {x.where: x for x in traffic.moved(PROGRAM)}
  add, product = found["jit(f)/block/add"], found["jit(f)/dot"]
  assert (add.kind, add.calls) == ("other", 6)
  assert add.nbytes == 5 * (64 + 64) + 3 * 64
  assert (product.kind, product.calls) == ("product", 1)
  assert product.nbytes == (8 * 4 + 4 * 16) * 2 + 8 * 16 * 4 + 32
  assert traffic.totals([add, product]) == {
    "other": add.nbytes, "product": product.nbytes,
  }  # fmt: skip
