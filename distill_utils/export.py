"""Hand a distilled set over: `python -m distill_utils.export --ckpt_path logged_files/toy/quickstart --to
folder --out my_set`.

Each form holds the exact float32 tensors, so that no code of this project is needed to read them, and a card
that says what they are:
    folder       images/00000.png ... (8 bits), tensors.safetensors, pairs.json, README.md
    safetensors  one file: images, texts, similarity, lr_img, lr_txt; the card is in its metadata and beside
    it, as .md
    parquet      one row a pair: png, image, text, similarity (its row of S), captions; the card likewise
"""

import argparse
import io
import json
import math
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image
from safetensors.torch import save_file

from distill_utils.evaluation.protocols import METRICS, PROTOCOLS
from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_json
from distill_utils.runs.signals import run_program
from distill_utils.runs.writing import atomic_path, write_json, write_text
from distill_utils.synthetic.checkpoint import find_checkpoint
from distill_utils.synthetic.set import SyntheticSet

_CARD = """---
license: other
license_name: {licence}
tags: [dataset-distillation, image-text]
---

# {pairs} distilled image-text pairs

{facts}
## Recall on the test split, in percent

Fresh students trained on the set, mean and standard deviation over n of them. `val`: at the epoch that is best on the validation split;
`last`: at the last epoch; `best`: at the best test epoch, which selects on the test split.

{table}
## How to train on it

SGD with momentum .9 and weight decay 5e-4 at the learning rates above, x 0.1 at half time. A batch is (images[ids], texts[ids],
similarity[ids][:, ids]); the loss takes the logits and that block of the similarity.
"""
_ROWS = {
    "random": "random real pairs, InfoNCE",
    "random_same_loss": "random real pairs, the set's loss",
    "distilled": "this set",
    "full": "full data",
}


def png_bytes(pixels):
    """PNG of pixels [3, H, W] in [0, 1], rounded to 8 bits."""
    buffer = io.BytesIO()
    Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def describe_pairs(synthetic, folder):
    """Per pair {"nearest_captions", "source_caption"}: the nearest real captions that the run noted for this
    very step, if it did.
    """
    noted = read_json(folder / "nearest.json", {})
    same = noted.get("step") == synthetic.meta.get("step") and len(noted.get("captions", [])) == len(
        synthetic
    )
    nearest = noted["captions"] if same else [[] for _ in range(len(synthetic))]
    sources = synthetic.meta.get("source_captions") or [None] * len(synthetic)
    return [
        {"nearest_captions": [one["caption"] for one in near], "source_caption": source}
        for near, source in zip(nearest, sources)
    ]


def results_table(results):
    """The rows that evaluate left in results.json, by every protocol, as Markdown; an empty string where
    there are none.
    """
    lines = [
        f"| {label}, {protocol} | "
        + " | ".join(f"{cell['mean']:.1f} ± {cell['std']:.1f}" for cell in cells)
        + f" | {cells[0]['n']} |"
        for row, label in _ROWS.items()
        if row in results
        for protocol in PROTOCOLS
        for cells in [[results[row]["protocols"][protocol][key] for key in METRICS]]
    ]
    header = f"| students, epoch chosen by | {' | '.join(METRICS)} | n |\n|{'---|' * (len(METRICS) + 2)}\n"
    return header + "\n".join(lines) + "\n" if lines else ""


def card(synthetic, path, results, licence):
    """The model card, Markdown with the front matter of the Hugging Face hub."""
    meta = synthetic.meta
    facts = {
        "pairs": len(synthetic),
        "outer steps": meta.get("step", "unknown"),
        "distilled from": meta.get("dataset", "unknown"),
        "image encoder of the experts": meta.get("image_encoder", "unknown"),
        "text encoder": meta.get("text_encoder", "unknown"),
        "loss of the students": f"{meta.get('loss', 'unknown')}, temperature {meta.get('temperature', 'unknown')}",
        "learning rates (image, text)": f"{synthetic.lr_img.item():.6g}, {synthetic.lr_txt.item():.6g}",
        "similarity": synthetic.similarity.kind,
        "images": f"float32 {list(synthetic.images.shape)}, normalised by mean {meta['mean']} and std {meta['std']}: pixels = image * std + mean",
        "texts": f"float32 {list(synthetic.texts.shape)}, embeddings of the text encoder, not normalised",
        "file": path.name,
    }
    table = results_table(results) or "The set was not evaluated when it was exported.\n"
    listed = "".join(f"- **{key}**: {value}\n" for key, value in facts.items())
    return _CARD.format(licence=json.dumps(licence), pairs=len(synthetic), facts=listed, table=table)


def exact_tensors(synthetic):
    images, texts, similarity = (tensor.contiguous() for tensor in synthetic.tensors())
    return {
        "images": images,
        "texts": texts,
        "similarity": similarity,
        "lr_img": synthetic.lr_img.detach(),
        "lr_txt": synthetic.lr_txt.detach(),
    }


def export_safetensors(synthetic, out, pairs, text):
    with atomic_path(out) as partial:
        save_file(
            exact_tensors(synthetic),
            partial,
            metadata={"card": text, "pairs": json.dumps(pairs), "meta": json.dumps(synthetic.meta)},
        )
    write_text(out.with_suffix(".md"), text)


def export_folder(synthetic, out, pairs, text):
    for number, pixels in enumerate(synthetic.pixels()):
        with atomic_path(out / f"images/{number:05d}.png") as partial:
            partial.write_bytes(png_bytes(pixels))
    with atomic_path(out / "tensors.safetensors") as partial:
        save_file(exact_tensors(synthetic), partial)
    write_json(out / "pairs.json", [{"image": f"images/{n:05d}.png"} | pair for n, pair in enumerate(pairs)])
    write_text(out / "README.md", text)


def export_parquet(synthetic, out, pairs, text):
    tensors = exact_tensors(synthetic)
    shape = tensors["images"].shape[1:]

    def rows(tensor):
        flat = tensor.flatten(1)
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat.flatten().numpy()), flat.shape[1])

    columns = {
        "png": pyarrow.array([png_bytes(pixels) for pixels in synthetic.pixels()]),
        "image": rows(tensors["images"]),
        "text": rows(tensors["texts"]),
        "similarity": rows(tensors["similarity"]),
        "nearest_captions": pyarrow.array(
            [pair["nearest_captions"] for pair in pairs], pyarrow.list_(pyarrow.string())
        ),
        "source_caption": pyarrow.array([pair["source_caption"] for pair in pairs], pyarrow.string()),
    }
    facts = {
        "card": text,
        "meta": synthetic.meta,
        "image_shape": list(shape),
        "lr_img": tensors["lr_img"].item(),
        "lr_txt": tensors["lr_txt"].item(),
    }
    table = pyarrow.table(columns).replace_schema_metadata(
        {key: json.dumps(value) for key, value in facts.items()}
    )
    with atomic_path(out) as partial:
        pyarrow.parquet.write_table(
            table, partial, row_group_size=max(1, (64 << 20) // (4 * math.prod(shape)))
        )
    write_text(out.with_suffix(".md"), text)


FORMS = {"folder": export_folder, "safetensors": export_safetensors, "parquet": export_parquet}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ckpt_path",
        required=True,
        metavar="PATH",
        help="a distilled_*.pt, or a run's folder: its set chosen on val",
    )
    parser.add_argument("--to", choices=FORMS, default="folder", help="what to write (default: folder)")
    parser.add_argument("--out", required=True, metavar="PATH", help="the new folder or file")
    parser.add_argument(
        "--licence", help="what the card says (default: that of the data set it was distilled from applies)"
    )
    args = parser.parse_args(argv)
    path, out = find_checkpoint(args.ckpt_path), Path(args.out)
    if out.exists():
        raise UserError(f"--out {out} exists already: give a new path, nothing is overwritten.")
    synthetic = SyntheticSet.load(path)
    licence = (
        args.licence
        or f"that of {synthetic.meta.get('dataset', 'the data set it was distilled from')} applies"
    )
    text = card(synthetic, path, read_json(path.parent / "results.json", {}), licence)
    FORMS[args.to](synthetic, out, describe_pairs(synthetic, path.parent), text)
    print(f"{len(synthetic)} pairs in {out}")
    return out


if __name__ == "__main__":
    sys.exit(run_program(main))
