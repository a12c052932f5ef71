"""Hand a distilled set over: `python -m distill_utils.export --ckpt_path RUN_OR_FILE --to folder --out SET`.

Each form holds the exact float32 tensors, so that no code of this project is needed to read them, and a card
that says what they are:
    folder       images/00000.png ... (8 bits), tensors.safetensors, pairs.json, README.md
    safetensors  one file: images, texts, similarity, lr_img, lr_txt; the card in its metadata, and beside it
    parquet      one row a pair: png, image, text, similarity (its row of S), captions; the card likewise
"""

import argparse
import json
import math
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
from safetensors.torch import save

from distill_utils.pages.card import card
from distill_utils.pages.images import encode, to_picture
from distill_utils.pages.inputs import plain_meta, read_nearest, source_captions
from distill_utils.pages.rows import set_rows
from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_json
from distill_utils.runs.signals import run_program
from distill_utils.runs.writing import atomic_path, write_json, write_text
from distill_utils.synthetic.checkpoint import find_checkpoint
from distill_utils.synthetic.set import SyntheticSet


def describe_pairs(nearest, sources, count):
    """Per pair {"nearest_captions", "source_caption"}, as far as they are known."""
    return [
        {"nearest_captions": [one["caption"] for one in near], "source_caption": source}
        for near, source in zip(nearest or [[]] * count, sources or [None] * count)
    ]


def exact_tensors(synthetic):
    images, texts, similarity = (tensor.contiguous() for tensor in synthetic.tensors())
    return {
        "images": images,
        "texts": texts,
        "similarity": similarity,
        "lr_img": synthetic.lr_img.detach(),
        "lr_txt": synthetic.lr_txt.detach(),
    }


def tensor_bytes(tensors, about=None):
    """A .safetensors whose header is in order: the library writes what is `about` the tensors in any."""
    data = save(tensors, metadata=about)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header + data[end:]


def export_safetensors(synthetic, out, pairs, meta, text):
    about = {"card": text, "pairs": json.dumps(pairs), "meta": json.dumps(meta)}
    with atomic_path(out) as partial:
        partial.write_bytes(tensor_bytes(exact_tensors(synthetic), about))
    write_text(out.with_suffix(".md"), text)


def export_folder(synthetic, out, pairs, meta, text):
    for number, pixels in enumerate(synthetic.pixels()):
        with atomic_path(out / f"images/{number:05d}.png") as partial:
            partial.write_bytes(encode(to_picture(pixels)))
    with atomic_path(out / "tensors.safetensors") as partial:
        partial.write_bytes(tensor_bytes(exact_tensors(synthetic)))
    write_json(out / "pairs.json", [{"image": f"images/{n:05d}.png"} | pair for n, pair in enumerate(pairs)])
    write_text(out / "README.md", text)


def export_parquet(synthetic, out, pairs, meta, text):
    tensors = exact_tensors(synthetic)
    shape = tensors["images"].shape[1:]

    def rows(tensor):
        flat = tensor.flatten(1)
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat.flatten().numpy()), flat.shape[1])

    columns = {
        "png": pyarrow.array([encode(to_picture(pixels)) for pixels in synthetic.pixels()]),
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
        "meta": meta,
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
    synthetic, notes = SyntheticSet.load(path), []
    step, count = synthetic.meta.get("step"), len(synthetic)
    rows = set_rows(read_json(path.parent / "results.json", {}), path, synthetic, notes)
    nearest = read_nearest(path.parent, step, count, notes)
    pairs = describe_pairs(nearest, source_captions(synthetic, notes), count)
    meta = plain_meta(synthetic, notes)
    FORMS[args.to](synthetic, out, pairs, meta, card(synthetic, path, rows, args.licence))
    print("\n".join([f"{count} pairs in {out}", *notes]))
    return out


if __name__ == "__main__":
    sys.exit(run_program(main))
