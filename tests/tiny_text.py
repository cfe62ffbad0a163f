"""A tiny Gemma with connectors, and a tokenizer of its kind: a mark for spaces, bytes for what it does not know."""

import atexit
import dataclasses
import shutil
import tempfile
from functools import cache
from pathlib import Path

from random_weights import fill
from tiny_stream import student, teacher
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from experiments.dry_run import published
from omniforcing_jax.io.weights import save_component, write_config
from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.pipeline.weights_folder import save_pipeline
from omniforcing_jax.text.connector import ConnectorConfig, ConnectorsConfig, connectors_spec
from omniforcing_jax.text.encoder import EncoderConfig
from omniforcing_jax.text.features import FeatureNorm
from omniforcing_jax.text.gemma import gemma_spec

WORDS = ("a", "red", "blue", "ball", "and")
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
SPACE = "▁"
VISION = {  # of a Gemma3Config: never read
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 28,
    "patch_size": 14,
}


def build_tokenizer() -> Tokenizer:
    """Build byte-fallback BPE with a start token, as tokenizer.json of Gemma 3 has it."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *sorted(set("".join(WORDS)))]
    merges = []
    for word in WORDS:
        merges += [(word[:end], word[end]) for end in range(1, len(word))] + [(SPACE, word)]
    merges = list(dict.fromkeys(merges))
    pieces += ["".join(merge) for merge in merges]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def save_tokenizer(folder: Path) -> Path:
    """Write tokenizer.json into a folder; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


ENCODER = EncoderConfig(
    gemma=dataclasses.replace(published.GEMMA, vocabulary=320, is_global=(False, True)),
    connectors=ConnectorsConfig(
        text_width=24,
        text_states=3,
        norm=FeatureNorm.PER_PROMPT,
        video=ConnectorConfig(layers=1, heads=4, head_size=6, registers=8),
        audio=ConnectorConfig(layers=1, heads=2, head_size=12, registers=8),
        tokens=16,  # as many as words have, so that networks compile nothing new
    ),
)
WITHOUT_WORDS = {"words": None, "encoder": ENCODER}


@cache
def params():
    """Random text model and connectors, nothing in them neutral."""
    return fill(abstract(gemma_spec(ENCODER.gemma))), fill(abstract(connectors_spec(ENCODER.connectors)), seed=1)


@cache
def folders() -> Path:
    """A folder with `student` and `teacher`, which read prompts with Gemma, and `text`, which has nothing else."""
    root = Path(tempfile.mkdtemp(prefix="tiny_gemma"))
    atexit.register(shutil.rmtree, root)
    gemma, connectors = params()
    save_component(root / "text", "text", gemma, ENCODER.gemma.to_dict())
    save_component(root / "text", "connectors", connectors, ENCODER.connectors.to_dict())
    save_tokenizer(root / "text" / "text")
    write_config(root / "text", {"format": 1})
    shared = {name: f"../text/{name}" for name in ("text", "connectors")}
    for name, pipeline in (("student", student()), ("teacher", teacher())):
        config = dataclasses.replace(pipeline.config, **WITHOUT_WORDS)
        save_pipeline(root / name, pipeline.replace(config=config, words=None), shared=shared)
    return root
