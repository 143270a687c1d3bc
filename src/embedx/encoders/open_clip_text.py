"""How open_clip would tokenise for a text tower, written down so that it can be done without open_clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from embedx.core.digests import fingerprint
from embedx.core.errors import EncoderError
from embedx.encoders.clip_tokenizer import ClipTokenizer
from embedx.encoders.open_clip_source import Source
from embedx.encoders.text import CANARIES
from embedx.encoders.tokenization import TextTokenizer, library_tokenizer

_FILES = [
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "config.json",
]

_HARD = (*CANARIES, "", "Fluß &amp; 東京, ÉTÉ <b>don't</b> _snake_case_ 3½ 🙂 \t end", "a very long text, " * 100)


def describe_tokenizer(source: Source, what: str) -> tuple[ClipTokenizer, str]:
    """Return the tokenizer of a text tower, not padded, and the digest of what changes its ids.

    Args:
        source: the model.
        what: what to call the model in messages.

    Raises:
        EncoderError: its files are not on this machine and cannot be fetched, or it does more than we do.
    """
    said, context = source.config["text_cfg"], source.context
    settings = dict(said.get("tokenizer_kwargs") or {})
    if source.tokenizer is None:
        own = SimpleTokenizer(context_length=context, **settings)
        ours, digest = _of_open_clip(own, settings.get("clean", "lower"))
    else:
        folder = _tokenizer_folder(source.tokenizer, what)
        own = HFTokenizer(folder, context_length=context, tokenizer_mode=said.get("tokenizer_mode"), **settings)
        words = replace(library_tokenizer(Path(folder)), max_tokens=context)
        blanked = own.tokenizer.sep_token_id if own.strip_sep_token else None
        ours = ClipTokenizer(words, settings.get("clean", "whitespace"), blanked=blanked)
        digest = fingerprint([words.digest, ours.clean, ours.blanked])
    if replace(ours, pad_to=context)(list(_HARD))[0] != own(list(_HARD)).tolist():
        raise EncoderError(f"the tokenizer of {what} does what embedx cannot repeat", "Use another model")
    return ours, digest


def _of_open_clip(own: SimpleTokenizer, clean: str) -> tuple[ClipTokenizer, str]:
    """Return CLIP's byte pair encoding, whose words open_clip finds with a regular expression of its own."""
    begin, end = (own.decoder[number] for number in own.all_special_ids[:2])
    backend = Tokenizer(models.BPE(own.encoder, list(own.bpe_ranks), end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.add_special_tokens([own.decoder[number] for number in own.all_special_ids])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, own.sot_token_id), (end, own.eot_token_id)]
    )
    words = TextTokenizer(backend.to_str(), own.context_length)
    # Not of the JSON above, which another version of `tokenizers` may write otherwise.
    digest = fingerprint([own.encoder, list(own.bpe_ranks), own.all_special_ids, own.context_length, clean])
    return ClipTokenizer(words, clean, pattern=own.pat.pattern), digest


def _tokenizer_folder(source: str, what: str) -> str:
    """Return the folder of a tokenizer: itself, the local cache's, or downloaded."""
    from huggingface_hub import snapshot_download

    from embedx.encoders.checkpoints import is_reachable

    if Path(source).is_dir():
        return source
    try:
        cached = snapshot_download(source, local_files_only=True, allow_patterns=_FILES)
        if any(Path(cached).glob("tokenizer*")):
            return cached
    except (OSError, ValueError):  # LocalEntryNotFoundError is both
        pass
    address = f"https://huggingface.co/{source}"
    try:
        if is_reachable(address):
            return snapshot_download(source, allow_patterns=_FILES)
        reason = "no connection"
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = " ".join(str(error).split())[:150]
    raise EncoderError(
        f"the tokenizer of {what} is not on this machine and cannot be downloaded: {reason}",
        f"Fetch {address} where there is a network, put tokenizer.json and tokenizer_config.json beside weights and "
        "open_clip_config.json in a folder, and use open_clip:local-dir:FOLDER",
    )
