"""A tiny tokenizer of Gemma's kind: pieces with a mark for spaces, bytes for what it does not know."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = ("a", "red", "blue", "ball", "and")
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
SPACE = "▁"


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
