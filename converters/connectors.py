"""The feature projections and connectors of LTX-2 under their original names and under those of diffusers.

Source: specs/ltx2.md 8.2, 8.3, 9.1, 9.2, appendix A.1.
"""

from collections.abc import Iterator

from converters.rules import Rule, check_rules

ORIGINAL, TRANSFORMERS = "text_embedding_projection.", "model.diffusion_model."
LINEARS = {
    "attn/q": "attn1.to_q",
    "attn/k": "attn1.to_k",
    "attn/v": "attn1.to_v",
    "attn/o": "attn1.to_out.0",
    "attn/gate": "attn1.to_gate_logits",
    "mlp/up": "ff.net.0.proj",
    "mlp/down": "ff.net.2",
}


def original_rules(shared: bool) -> tuple[Rule, ...]:
    """List the table for keys of a published file; `shared` says whether both streams have one projection."""
    names = {"video": f"{ORIGINAL}aggregate_embed"}
    if not shared:
        names = {stream: f"{ORIGINAL}{stream}_aggregate_embed" for stream in ("video", "audio")}
    layers, norm = "transformer_1d_blocks", "{}_norm"
    connectors = [
        _connector(stream, f"{TRANSFORMERS}{stream}_embeddings_connector.", layers, norm)
        for stream in ("video", "audio")
    ]
    return check_rules([*_features(names), *connectors[0], *connectors[1]])


def diffusers_rules(shared: bool) -> tuple[Rule, ...]:
    """List the table for keys of diffusers' folder `connectors`."""
    names = {"video": "text_proj_in"}
    if not shared:
        names = {stream: f"{stream}_text_proj_in" for stream in ("video", "audio")}
    layers, norm = "transformer_blocks", "norm_{}"
    connectors = [_connector(stream, f"{stream}_connector.", layers, norm) for stream in ("video", "audio")]
    return check_rules([*_features(names), *connectors[0], *connectors[1]])


def _features(names: dict[str, str]) -> Iterator[Rule]:
    for stream, theirs in names.items():
        yield Rule(f"features/{stream}/w", f"{theirs}.weight")
        yield Rule(f"features/{stream}/b", f"{theirs}.bias")


def _connector(stream: str, prefix: str, layers: str, norm: str) -> Iterator[Rule]:
    yield Rule(f"{stream}/registers", f"{prefix}learnable_registers")
    layer = f"{prefix}{layers}.{{i}}."
    for ours, theirs in LINEARS.items():
        yield Rule(f"{stream}/layers/{ours}/w", f"{layer}{theirs}.weight")
        yield Rule(f"{stream}/layers/{ours}/b", f"{layer}{theirs}.bias")
    for which in ("q", "k"):
        yield Rule(f"{stream}/layers/attn/{which}_norm", f"{layer}attn1.{norm.format(which)}.weight")
