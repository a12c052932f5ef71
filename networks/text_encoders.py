"""Frozen text encoders through transformers, and their caption embeddings, computed once and cached."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPTextModelWithProjection,
)
from transformers.utils import cached_file

from distill_utils.runs.errors import UserError, first_line
from distill_utils.runs.reading import read_json
from distill_utils.runs.tensors import require_plain_file
from distill_utils.runs.writing import atomic_path, partial_path, remove_orphans

# Short names -> the hub's id; its last part is the folder looked for in checkpoint_dir.
_ALIASES = {
    "bert": "google-bert/bert-base-uncased",
    "distilbert": "distilbert/distilbert-base-uncased",
    "clip": "openai/clip-vit-base-patch32",
    "gpt1": "openai-community/openai-gpt",
    "bge": "BAAI/bge-base-en-v1.5",
}
TOY = "toy_bert"
MAX_TOKENS = 64


def _cls(output, mask):
    return output.last_hidden_state[:, 0]


def _last_token(output, mask):
    """Of a causal model only the last token has seen the whole caption."""
    return output.last_hidden_state[torch.arange(len(mask)), mask.sum(dim=1) - 1]


def _mean(output, mask):
    weights = mask[:, :, None].to(output.last_hidden_state.dtype)
    return (output.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1)


def _projected(output, mask):
    return output.text_embeds


POOLINGS = {"cls": _cls, "last": _last_token, "mean": _mean, "projected": _projected}
_OF_TYPE = {
    "clip": "projected",
    "clip_text_model": "projected",
    "openai-gpt": "last",
    "gpt2": "last",
}  # all others: cls


class TextEncoder:
    """A frozen transformer in eval mode: captions to one vector each, pooled as the model was trained to be.

    pooling: cls (BERT and its kin), last (causal models), mean (sentence encoders that say so), or projected
    (CLIP's text tower); normalised: to unit length. Vectors have `width` dimensions.
    """

    def __init__(self, tokenizer, model, pooling="cls", normalised=False):
        self.tokenizer, self.model = tokenizer, model.eval().requires_grad_(False)
        self.pooling, self.normalised = pooling, normalised
        self.width = model.config.projection_dim if pooling == "projected" else model.config.hidden_size
        if (
            tokenizer.pad_token is None
        ):  # GPT has none; what is padding is masked out, so that any token will do
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        tokenizer.padding_side = "right"

    @torch.no_grad()
    def __call__(self, captions, device, batch_size=256, progress=True):
        """float32 embeddings [len(captions), width] on the CPU; captions are cut at MAX_TOKENS tokens."""
        self.model.to(device)
        vectors = torch.empty(len(captions), self.width)
        # Batches of captions of like length waste no work on padding.
        order = sorted(range(len(captions)), key=lambda i: (len(captions[i]), i))
        for start in tqdm(
            range(0, len(order), batch_size),
            desc="embedding captions",
            disable=not progress or len(order) < 2000,
        ):
            ids = order[start : start + batch_size]
            tokens = self.tokenizer(
                [captions[i] or " " for i in ids],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
                return_attention_mask=True,
            ).to(device)
            mask = tokens["attention_mask"]
            pooled = POOLINGS[self.pooling](
                self.model(input_ids=tokens["input_ids"], attention_mask=mask), mask
            ).float()
            vectors[ids] = (F.normalize(pooled, dim=-1) if self.normalised else pooled).cpu()
        self.model.cpu()
        return vectors

    def fingerprint(self):
        """A hash of the weights, the vocabulary and the pooling."""
        digest = hashlib.sha256(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        if (self.pooling, self.normalised) != ("cls", False):
            digest.update(f"{self.pooling} {self.normalised}".encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(
                value.contiguous().view(torch.uint8).numpy().data
                if value.dim()
                else str(value.item()).encode()
            )
        return digest.hexdigest()


def _how_to_pool(source, config):
    """(pooling, normalised): what a sentence encoder says in its own files, else what its kind of model was
    trained for.
    """
    module = _optional_json(source, "1_Pooling/config.json", {})
    parts = [part for part in _optional_json(source, "modules.json", []) if isinstance(part, dict)]
    normalised = any(str(part.get("type", "")).endswith("Normalize") for part in parts)
    if module.get("pooling_mode_mean_tokens"):
        return "mean", normalised
    return _OF_TYPE.get(config.model_type, "cls"), normalised


def _optional_json(source, name, default):
    try:
        path = cached_file(
            source,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return default
    return read_json(path, default) if path else default


def build_text_encoder(name, *, pretrained=True, checkpoint_dir, seed=0):
    """The encoder `name`: an alias, a local folder, a folder of `checkpoint_dir`, or a hub id; with random
    weights if not pretrained.
    """
    hub_id = _ALIASES.get(name, name)
    local = [path for path in (Path(checkpoint_dir) / hub_id.split("/")[-1], Path(hub_id)) if path.is_dir()]
    source = str(local[0]) if local else hub_id
    try:
        for file in sorted(Path(source).glob("*.bin")) if local else ():
            require_plain_file(file)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        kind = CLIPTextModelWithProjection if config.model_type.startswith("clip") else AutoModel
        no_code = {"trust_remote_code": False} if kind is AutoModel else {}  # CLIP's class is a fixed one
        if pretrained:
            model = kind.from_pretrained(source, **no_code)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                text_config = getattr(config, "text_config", config)
                model = (
                    kind._from_config(text_config)
                    if kind is CLIPTextModelWithProjection
                    else kind.from_config(config, **no_code)
                )
    except UserError:
        raise
    except Exception as error:  # a broken folder surfaces as any of a dozen types
        where = (
            f"{source} is not a whole checkpoint"
            if local
            else f"no folder {Path(checkpoint_dir) / hub_id.split('/')[-1]}, and the hub gave none"
        )
        raise UserError(f"--text_encoder {name!r} cannot be loaded: {where} ({first_line(error)})") from error
    if not hasattr(model.config, "hidden_size"):
        raise UserError(
            f"--text_encoder {name!r} is a {type(model).__name__}, which has no single width of token "
            "vectors."
        )
    return TextEncoder(tokenizer, model, *_how_to_pool(source, config))


def embed_captions(encoder, captions, *, cache_dir, device, progress=True):
    """Embeddings [len(captions), width] from the cache, or computed and cached.

    The key hashes the captions, the weights and the vocabulary, so that a changed input is never served an
    old answer.
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
    remove_orphans(path.parent)
    with atomic_path(path) as partial:
        partial.write_bytes(save({"embeddings": embeddings}))
    return embeddings


def _wordpiece_vocabulary(captions, size):
    """BERT's special tokens, every character as a word and as a piece of one, and the most frequent words.

    (The trainer of the tokenizers library breaks ties differently in every process, and the toy data must be
    the same everywhere.)
    """
    words = Counter(word for caption in captions for word in caption.split())
    characters = sorted({character for word in words for character in word})
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *characters,
        *(f"##{character}" for character in characters),
    ]
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    return pieces + frequent[: max(0, size - len(pieces))]


@torch.no_grad()
def ensure_toy_bert(captions, checkpoint_dir, *, width=256, layers=2, heads=4, vocabulary=2000, seed=0):
    """Write a tiny, untrained but informative BERT checkpoint for a data set's train captions; its folder.

    Random weights give every caption nearly the same CLS vector, with the words in its small differences. The
    last LayerNorm's scale and shift, set from the captions, standardise every dimension: a plain checkpoint,
    no code of its own. (Larger random weights set the captions apart too, but saturate the attention:
    captions of one image were then no nearer than others.)
    """
    key = hashlib.sha256(
        "\0".join([str((width, layers, heads, vocabulary, seed)), *captions]).encode()
    ).hexdigest()[:12]
    folder = Path(checkpoint_dir) / f"{TOY}_{key}"
    if (folder / "model.safetensors").exists():
        return folder
    remove_orphans(checkpoint_dir)
    partial = partial_path(folder)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "vocab.txt").write_text(
        "\n".join(_wordpiece_vocabulary(captions, vocabulary)), encoding="utf-8"
    )
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
        if not (
            folder / "model.safetensors"
        ).exists():  # else another process was first: its folder is the same
            raise
    return folder
