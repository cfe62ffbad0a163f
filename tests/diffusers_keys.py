"""Names of a transformer's weights in LTX-2's files, spelled as diffusers does."""

import re

# First match wins. Written here once more, so that a wrong table is found.
RENAMES = (
    (r"^patchify_proj\.", "proj_in."),
    (r"^audio_patchify_proj\.", "audio_proj_in."),
    (r"^adaln_single\.", "time_embed."),
    (r"^audio_adaln_single\.", "audio_time_embed."),
    (r"^prompt_adaln_single\.", "prompt_adaln."),
    (r"^audio_prompt_adaln_single\.", "audio_prompt_adaln."),
    (r"^av_ca_(video|audio)_scale_shift_adaln_single\.", r"av_cross_attn_\1_scale_shift."),
    (r"^av_ca_a2v_gate_adaln_single\.", "av_cross_attn_video_a2v_gate."),
    (r"^av_ca_v2a_gate_adaln_single\.", "av_cross_attn_audio_v2a_gate."),
    (r"\.scale_shift_table_a2v_ca_(video|audio)$", r".\1_a2v_cross_attn_scale_shift_table"),
    (r"\.([qk])_norm\.", r".norm_\1."),
)


def rename(name: str) -> str:
    """Spell an original name of a transformer's weight, without prefix, as diffusers does."""
    for pattern, other in RENAMES:
        name, count = re.subn(pattern, other, name)
        if count:
            break
    return name
