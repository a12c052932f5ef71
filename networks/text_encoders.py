"""Frozen text encoders through transformers, and their caption embeddings, computed once and cached."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from distill_utils.errors import UserError

# The names the published recipes use -> folder in checkpoint_dir, which is also the hub's id.
_ALIASES = {"bert": "bert-base-uncased"}
TOY = "toy_bert"
MAX_TOKENS = 64


class TextEncoder:
    """A frozen transformer in eval mode: captions to CLS vectors."""

    def __init__(self, tokenizer, model):
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, captions, device, batch_size=256, progress=True):
        """float32 embeddings [len(captions), width] on the CPU; captions are cut at MAX_TOKENS tokens."""
        self.model.to(device)
        vectors = torch.empty(len(captions), self.model.config.hidden_size)
        # Batches of captions of like length waste no work on padding.
        order = sorted(range(len(captions)), key=lambda i: (len(captions[i]), i))
        for start in tqdm(range(0, len(order), batch_size), desc="embedding captions", disable=not progress or len(order) < 2000):
            ids = order[start : start + batch_size]
            tokens = self.tokenizer([captions[i] for i in ids], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            vectors[ids] = self.model(**tokens.to(device)).last_hidden_state[:, 0].float().cpu()
        self.model.cpu()
        return vectors

    def fingerprint(self):
        """A hash of the weights and the vocabulary."""
        digest = hashlib.sha256(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().view(torch.uint8).numpy().data if value.dim() else str(value.item()).encode())
        return digest.hexdigest()


def build_text_encoder(name, *, pretrained=True, checkpoint_dir, seed=0):
    """The encoder `name`: an alias, a local folder, a folder of `checkpoint_dir`, or a hub id; with random weights if not pretrained."""
    name = _ALIASES.get(name, name)
    local = [path for path in (Path(checkpoint_dir) / name, Path(name)) if path.is_dir()]
    source = str(local[0]) if local else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if pretrained:
            model = AutoModel.from_pretrained(source)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = AutoModel.from_config(AutoConfig.from_pretrained(source))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        where = f"{source} is not a whole checkpoint" if local else f"no folder {Path(checkpoint_dir) / name}, and the hub gave none"
        raise UserError(f"--text_encoder {name!r} cannot be loaded: {where} ({str(error).strip().splitlines()[0]})") from error
    if not hasattr(model.config, "hidden_size"):
        raise UserError(f"--text_encoder {name!r} is a {type(model).__name__}, which has no single width of token vectors.")
    return TextEncoder(tokenizer, model)


def embed_captions(encoder, captions, *, cache_dir, device, progress=True):
    """Embeddings [len(captions), width] from the cache, or computed and cached.

    The key hashes the captions, the weights and the vocabulary, so that a changed input is never served an old answer.
    """
    digest = hashlib.sha256(encoder.fingerprint().encode() + f"{MAX_TOKENS}".encode())
    for caption in captions:
        digest.update(caption.encode() + b"\0")
    path = Path(cache_dir) / f"{digest.hexdigest()[:32]}.safetensors"
    try:
        return load_file(path)["embeddings"]
    except (OSError, SafetensorError, KeyError):
        pass  # absent, or left broken by a full disk: made anew
    embeddings = encoder(captions, device, progress=progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({"embeddings": embeddings}, partial)
    os.replace(partial, path)
    return embeddings


def _wordpiece_vocabulary(captions, size):
    """BERT's special tokens, every character as a word and as a piece of one, and the most frequent words.

    (The trainer of the tokenizers library breaks ties differently in every process, and the toy data must be the same everywhere.)
    """
    words = Counter(word for caption in captions for word in caption.split())
    characters = sorted({character for word in words for character in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{character}" for character in characters)]
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    return pieces + frequent[: max(0, size - len(pieces))]


@torch.no_grad()
def ensure_toy_bert(captions, checkpoint_dir, *, width=256, layers=2, heads=4, vocabulary=2000, seed=0):
    """Write a tiny, untrained but informative BERT checkpoint for a data set's training captions; returns its folder.

    Random weights give every caption nearly the same CLS vector, with the words in its small differences. The last LayerNorm's
    scale and shift, set from the captions, standardise every dimension: a plain checkpoint, no code of its own. (Larger random
    weights set the captions apart too, but saturate the attention: captions of one image were then no nearer than others.)
    """
    key = hashlib.sha256("\0".join([str((width, layers, heads, vocabulary, seed)), *captions]).encode()).hexdigest()[:12]
    folder = Path(checkpoint_dir) / f"{TOY}_{key}"
    if (folder / "model.safetensors").exists():
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "vocab.txt").write_text("\n".join(_wordpiece_vocabulary(captions, vocabulary)), encoding="utf-8")
    tokenizer = BertTokenizerFast.from_pretrained(str(partial))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=2 * width,
                max_position_embeddings=MAX_TOKENS,
            )
        )
    sample = sorted(set(captions))[:: max(1, len(set(captions)) // 4000)]
    vectors = TextEncoder(tokenizer, model)(sample, "cpu", progress=False)
    last_norm = model.encoder.layer[-1].output.LayerNorm
    spread = vectors.std(dim=0, correction=0).clamp(min=1e-6)
    last_norm.bias.copy_((last_norm.bias - vectors.mean(dim=0)) / spread)
    last_norm.weight.div_(spread)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        os.replace(partial, folder)
    except OSError:
        if not (folder / "model.safetensors").exists():  # else another process was first: its folder is the same
            raise
    return folder
