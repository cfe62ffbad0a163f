"""The dual-stream network once more, in NumPy and float64: every token with its own modulation, everyone sees everyone.

Written from the published order of operations (LTX-2, arXiv 2601.03233, and its released transformer), and shared with
no line of the package: only names of weights are read from it. Slow, small, and for networks with split rotations.
"""

import jax
import numpy as np

from tests.phases import MAX_SECONDS, published_frequencies


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def linear(p, x):
    return x @ p.w.T + (0 if p.b is None else p.b)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(p, x):
    return linear(p.down, gelu(linear(p.up, x)))


def norm(x, weight=1.0):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def turned(x, angles):
    """Rotate heads [B, T, N, H]: channels i and i + H/2 are one complex number, angles are [T, N, H/2]."""
    half = x.shape[-1] // 2
    pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def softmax_mix(q, k, v, seen=True):
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)


def attention(p, x_q, x_kv, angles_q=0.0, angles_k=0.0, seen=True, past=None):
    """Norms of queries and keys go over all heads together, values are not rotated, a gate is 2 sigmoid per head.

    `past` is more keys and values [B, S, N, H], as they are.
    """

    def heads(x):
        return x.reshape(*x.shape[:2], p.heads, -1)

    q = turned(heads(norm(linear(p.q, x_q), p.q_norm)), angles_q)
    k = turned(heads(norm(linear(p.k, x_kv), p.k_norm)), angles_k)
    v = heads(linear(p.v, x_kv))
    if past is not None:
        k, v = (np.concatenate(both, axis=1) for both in zip((k, v), past, strict=True))
    mixed = softmax_mix(q, k, v, seen)
    if p.gate is not None:
        mixed = mixed * 2 * sigmoid(linear(p.gate, x_q))[..., None]
    return linear(p.o, mixed.reshape(*x_q.shape[:2], -1))


def embed(p, time):
    """Embed noise levels [B, T] that are scaled already: a vector [B, T, D] and rows [B, T, R, D]."""
    angles = time[..., None] * 10_000.0 ** (-np.arange(128) / 128)
    hidden = linear(p.up, np.concatenate([np.cos(angles), np.sin(angles)], axis=-1))
    vector = linear(p.down, hidden * sigmoid(hidden))
    return vector, linear(p.rows, vector * sigmoid(vector)).reshape(*vector.shape[:2], -1, vector.shape[-1])


def rows_of(table, rows):
    return [table[i] + rows[:, :, i] for i in range(len(table))]


def angles_of(axes, width, heads):
    """Angles [T, N, H/2] of tokens whose coordinates, from -1 to 1, are given by axis: [T] each."""
    grid = published_frequencies(len(axes), width).astype(np.float64)
    pairs = np.stack([axis[:, None] * grid[None] for axis in axes], axis=-1).reshape(len(axes[0]), -1)
    unturned = np.zeros((len(pairs), width // 2 - pairs.shape[1]))
    return np.concatenate([unturned, pairs], axis=1).reshape(len(pairs), heads, -1)


def rotations(config, frames, audio_frames, grid):
    """Angles of video and audio tokens, in their own stream and in the crossings; sinks are at the middle, at 0."""
    starts, ends = (np.maximum(0, 8 * np.arange(frames) + shift) for shift in (-7, 1))
    seconds_v = np.repeat((starts + ends) / 48, grid[0] * grid[1])
    starts, ends = (np.maximum(0, 4 * np.arange(audio_frames) + shift) for shift in (-3, 1))
    seconds_a = (starts + ends) / 200
    rows, columns = (x.ravel() for x in np.meshgrid(*(np.arange(n) + 0.5 for n in grid), indexing="ij"))
    pixels = [np.tile(x, frames) * config.spatial_compression / 1024 - 1 for x in (rows, columns)]
    time_v = 2 * seconds_v / MAX_SECONDS - 1
    time_a = np.concatenate([np.zeros(config.sinks), 2 * seconds_a / MAX_SECONDS - 1])
    width, heads = config.audio.width, config.audio.heads
    own_v = angles_of([time_v, *pixels], config.video.width, heads)
    return own_v, angles_of([time_v], width, heads), angles_of([time_a], width, heads)


def velocities(params, config, latents, contexts, mask, levels, crossing, gates, grid):
    """Predict both velocities.

    `levels`, `crossing` and `gates` are the noise levels of (video, audio), one per token [B, T] and sinks included,
    that drive a stream's own modulation, its part in the crossings, and the gate of what it reads. `contexts` have a
    `mask` [B, X] of tokens that may be read. With text AdaLN one level serves a sample.
    """
    p = wide(params)
    ends, own, cross, text = (p.video, p.audio), [], [], []
    x = [linear(end.patchify, np.asarray(tokens, np.float64)) for end, tokens in zip(ends, latents, strict=True)]
    if config.sinks:
        x[1] = np.concatenate([np.repeat(p.sinks, len(x[1]), axis=0), x[1]], axis=1)
    for end, level, crossed, gate, context in zip(ends, levels, crossing, gates, contexts, strict=True):
        own.append(embed(end.time, 1000 * level))
        rows = embed(end.cross_time, 1000 * crossed)[1], embed(end.cross_gate_time, config.gate_multiplier * gate)[1]
        cross.append(np.concatenate(rows, axis=2))
        prompt_rows = None if end.prompt_time is None else embed(end.prompt_time, 1000 * level[:, :1])[1]
        projected = np.asarray(context, np.float64)
        text.append((projected if end.caption is None else mlp(end.caption, projected), prompt_rows))
    turns, seen = rotations(config, latents[0].shape[1] // (grid[0] * grid[1]), latents[1].shape[1], grid), mask != 0
    for i in range(config.layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], p.layers)
        x = layer_of(layer, x, [rows for _, rows in own], cross, text, seen[:, None, None], turns)
    heads = [head(end, tokens, vector) for end, tokens, (vector, _) in zip(ends, x, own, strict=True)]
    return heads[0], heads[1][:, config.sinks :]


def layer_of(p, x, own, cross, text, seen, turns):
    (own_v, cross_v, cross_a), x = turns, list(x)
    streams = (p.video, p.audio)
    for i, (stream, turn) in enumerate(zip(streams, (own_v, cross_a), strict=True)):
        shift, scale, gate, *_ = rows_of(stream.table, own[i])
        h = norm(x[i]) * (1 + scale) + shift
        x[i] = x[i] + gate * attention(stream.self_attn, h, h, turn, turn)
        x[i] = x[i] + read_text(stream, x[i], own[i], *text[i], seen)
    tables = (p.cross_table_video, p.cross_table_audio)
    parts = [rows_of(table, rows) for table, rows in zip(tables, cross, strict=True)]
    before = [norm(tokens) for tokens in x]
    of_a2v, of_v2a = ([n * (1 + rows[j]) + rows[j + 1] for n, rows in zip(before, parts, strict=True)] for j in (0, 2))
    x[0] = x[0] + parts[0][4] * attention(p.a2v, of_a2v[0], of_a2v[1], cross_v, cross_a)
    x[1] = x[1] + parts[1][4] * attention(p.v2a, of_v2a[1], of_v2a[0], cross_a, cross_v)
    for i, stream in enumerate(streams):
        _, _, _, shift, scale, gate, *_ = rows_of(stream.table, own[i])
        x[i] = x[i] + gate * mlp(stream.mlp, norm(x[i]) * (1 + scale) + shift)
    return x


def read_text(stream, x, own, context, prompt_rows, seen):
    if prompt_rows is None:
        return attention(stream.text_attn, norm(x), context, seen=seen)
    shift, scale, gate = rows_of(stream.table, own)[6:]
    context_shift, context_scale = rows_of(stream.text_table, prompt_rows)
    context = context * (1 + context_scale) + context_shift
    return gate * attention(stream.text_attn, norm(x) * (1 + scale) + shift, context, seen=seen)


def head(p, x, vector):
    centred = x - x.mean(-1, keepdims=True)
    shift, scale = p.head_table[0] + vector, p.head_table[1] + vector
    return linear(p.head, centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale) + shift)
