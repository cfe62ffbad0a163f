"""Programs for a GPU as XLA writes them, cut to what is read; sizes are small enough to count by hand."""

import json


def gemm(target, left, right, made, epilogue="DEFAULT", more="", sums=(1, 1), batch=()):
    """A line of a call of cuBLASLt, which returns scratch memory, too."""
    numbers = {
        "lhs_contracting_dimensions": [str(sums[0])],
        "rhs_contracting_dimensions": [str(sums[1])],
        "lhs_batch_dimensions": list(map(str, batch)),
        "rhs_batch_dimensions": list(map(str, batch)),
    }
    config = {"gemm_backend_config": {"dot_dimension_numbers": numbers, "epilogue": epilogue}}
    return (
        f"({made}, s8[4194304]{{0}}) custom-call(%{left}, %{right}{more}), "
        f'custom_call_target="{target}", metadata={{op_name="jit(f)/dot_general"}}, backend_config={json.dumps(config)}'
    )


def attention(target, operands, made, sizes, path="jit(f)/dot_product_attention"):
    """A line of a call of cuDNN's attention."""
    config = {"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"dimensions": list(map(str, sizes))}}}
    return (
        f"({made}, u8[0]{{0}}) custom-call({', '.join('%' + name for name in operands)}), "
        f'custom_call_target="{target}", metadata={{op_name="{path}"}}, backend_config={json.dumps(config)}'
    )


LAYERS = f"""
%sliced (p: bf16[6,256,512], i: s32[]) -> bf16[256,512] {{
  %p = bf16[6,256,512]{{2,1,0}} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = bf16[1,256,512]{{2,1,0}} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={{1,256,512}}
  ROOT %view = bf16[256,512]{{1,0}} bitcast(%cut)
}}

%gated (y: bf16[128,256], x: bf16[128,512]) -> bf16[128,512] {{
  %y = bf16[128,256]{{1,0}} parameter(0)
  %x = bf16[128,512]{{1,0}} parameter(1)
  %twice = bf16[128,512]{{1,0}} concatenate(%y, %y), dimensions={{1}}
  ROOT %sum = bf16[128,512]{{1,0}} add(%twice, %x)
}}

%next (p: s32[]) -> s32[] {{
  %p = s32[] parameter(0)
  %one = s32[] constant(1)
  ROOT %sum = s32[] add(%p, %one)
}}

%body (...) -> (...) {{
  %state = (s32[], bf16[128,512]{{1,0}}, bf16[6,256,512]{{2,1,0}}, bf16[256]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[128,512]{{1,0}} get-tuple-element(%state), index=1
  %w = bf16[6,256,512]{{2,1,0}} get-tuple-element(%state), index=2
  %b = bf16[256]{{0}} get-tuple-element(%state), index=3
  %slice-start = ((bf16[6,256,512], s32[]), bf16[256,512]{{1,0}}, u32[]) fusion-start(%w, %i), calls=%sliced
  %own = bf16[256,512]{{1,0}} fusion-done(%slice-start)
  %gemm = {gemm("__cublas$lt$matmul", "x", "own", "bf16[128,256]{1,0}", "BIAS", ", %b")}
  %y = bf16[128,256]{{1,0}} get-tuple-element(%gemm), index=0
  %z = bf16[128,512]{{1,0}} fusion(%y, %x), kind=kLoop, calls=%gated, metadata={{op_name="jit(f)/add"}}
  %j = s32[] fusion(%i), kind=kLoop, calls=%next
  ROOT %out = (s32[], bf16[128,512]{{1,0}}, bf16[6,256,512]{{2,1,0}}, bf16[256]{{0}}) tuple(%j, %z, %w, %b)
}}

%condition (...) -> pred[] {{
  %state = (s32[], bf16[128,512]{{1,0}}, bf16[6,256,512]{{2,1,0}}, bf16[256]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %six = s32[] constant(6)
  ROOT %more = pred[] compare(%i, %six), direction=LT
}}

ENTRY %main (...) -> (...) {{
  %w = bf16[6,256,512]{{2,1,0}} parameter(0), metadata={{op_name="params.layers.w"}}
  %b = bf16[256]{{0}} parameter(1), metadata={{op_name="params.layers.b"}}
  %x = bf16[128,512]{{1,0}} parameter(2), metadata={{op_name="x"}}
  %zero = s32[] constant(0)
  %begin = (s32[], bf16[128,512]{{1,0}}, bf16[6,256,512]{{2,1,0}}, bf16[256]{{0}}) tuple(%zero, %x, %w, %b)
  %loop = (s32[], bf16[128,512], bf16[6,256,512], bf16[256]) while(%begin), condition=%condition, body=%body
  ROOT %end = bf16[128,512]{{1,0}} get-tuple-element(%loop), index=1
}}
"""
"""Six layers: a weight is sliced out of its stack beside the schedule, multiplied with a bias, and a gate is added."""

CACHE = f"""
%joined (fresh: bf16[1,64,4,64], past: bf16[1,192,4,64]) -> bf16[1,256,4,64] {{
  %fresh = bf16[1,64,4,64]{{3,2,1,0}} parameter(0)
  %past = bf16[1,192,4,64]{{3,2,1,0}} parameter(1)
  %half = bf16[] constant(0.5)
  %spread = bf16[1,64,4,64]{{3,2,1,0}} broadcast(%half), dimensions={{}}
  %turned = bf16[1,64,4,64]{{3,2,1,0}} multiply(%fresh, %spread)
  ROOT %both = bf16[1,256,4,64]{{3,2,1,0}} concatenate(%turned, %past), dimensions={{1}}
}}

%written (past: bf16[1,192,4,64], fresh: bf16[1,64,4,64], at: s32[]) -> bf16[1,192,4,64] {{
  %past = bf16[1,192,4,64]{{3,2,1,0}} parameter(0)
  %fresh = bf16[1,64,4,64]{{3,2,1,0}} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = bf16[1,192,4,64]{{3,2,1,0}} dynamic-update-slice(%past, %fresh, %zero, %at, %zero, /*index=5*/%zero)
}}

ENTRY %main (...) -> (...) {{
  %cache = bf16[1,192,4,64]{{3,2,1,0}} parameter(0), metadata={{op_name="cache.past.k"}}
  %q = bf16[1,64,4,64]{{3,2,1,0}} parameter(1), metadata={{op_name="q"}}
  %k = bf16[1,64,4,64]{{3,2,1,0}} parameter(2), metadata={{op_name="k"}}
  %at = s32[] parameter(3), metadata={{op_name="at"}}
  %all = bf16[1,256,4,64]{{3,2,1,0}} fusion(%k, %cache), kind=kLoop, calls=%joined
  %attend = {attention("__cudnn$fmhaSoftmax", ["q", "all", "all"], "bf16[1,4,64,64]{3,1,2,0}", (1, 4, 64, 256))}
  %out = bf16[1,4,64,64]{{3,1,2,0}} get-tuple-element(%attend), index=0
  %seen = bf16[1,64,4,64]{{3,2,1,0}} bitcast(%out)
  %kept = bf16[1,192,4,64]{{3,2,1,0}} fusion(%cache, %k, %at), kind=kLoop, calls=%written
  ROOT %end = (bf16[1,192,4,64]{{3,2,1,0}}, bf16[1,64,4,64]{{3,2,1,0}}) tuple(%kept, %seen)
}}
"""
"""An attention over past and fresh keys, which are joined for it, and a block's keys written in place."""
