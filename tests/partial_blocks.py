"""Block tables whose last block is incomplete, as the reference's recordings have them; the package refuses these."""

from omniforcing_jax.layout import Block, Layout


def blocks_with_rest(layout: Layout, latent_frames: int) -> tuple[Block, ...]:
    """Block table of any length from block 0 on; n video latents of a partial block go with 25 n // 3 audio latents.

    Source: OmniForcing@9c25f15:ltx_causal/attention/mask_builder.py, compute_av_blocks.
    """
    full, rest = divmod(latent_frames - layout.first_v, layout.step_v)
    table = layout.blocks(latent_frames - rest)
    if not rest:
        return table
    start = layout.block(full + 1)
    audio_end = start.audio_start + layout.step_a * rest // layout.step_v
    return (*table, Block(start.video_start, latent_frames, start.audio_start, audio_end))
