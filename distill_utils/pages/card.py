"""The model card of an exported set: what it is, how good it is, how to train on it."""

from distill_utils.evaluation.protocols import METRICS
from distill_utils.pages.rows import on_other_data, protocol_of
from distill_utils.pages.templates import render
from distill_utils.pages.values import fact

_LABELS = {
    "random": "random real pairs, InfoNCE",
    "random_same_loss": "random real pairs, the set's loss",
    "identity": "distilled with S = I, the set's loss",
    "distilled": "this set",
    "while distilling": "this set, while distilling",
    "full": "full data",
}
_FACTS = ("step", "dataset", "protocol", "image_encoder", "text_encoder", "loss", "temperature")


def card(synthetic, path, rows, licence):
    """The card of the set in the file `path`, Markdown with the front matter of the Hugging Face hub.

    rows: {name: checked row} of the set's results. licence: None where that of the data it was made from
    applies.
    """
    meta = synthetic.meta
    about = meta | {"protocol": protocol_of(meta)}
    source = fact(meta.get("dataset")) or "the data set it was distilled from"
    return render(
        "card.md.j2",
        licence=licence or f"that of {source} applies",
        pairs=len(synthetic),
        facts={key: fact(about.get(key)) or "unknown" for key in _FACTS},
        lr_img=synthetic.lr_img.item(),
        lr_txt=synthetic.lr_txt.item(),
        similarity=synthetic.similarity.kind,
        images=list(synthetic.images.shape),
        texts=list(synthetic.texts.shape),
        mean=meta["mean"],
        std=meta["std"],
        file=path.name,
        metrics=METRICS,
        rows=[
            line
            for name, row in rows.items()
            for line in _lines(_LABELS[name] + on_other_data(row, synthetic), row)
        ],
    )


def _lines(label, row):
    """The lines of a row, one a protocol."""
    protocols = row["protocols"] or {"val": row}
    return [
        {
            "label": label,
            "protocol": protocol,
            "cells": [cells[metric] for metric in METRICS],
            "n": cells["r_mean"]["n"],
        }
        for protocol, cells in protocols.items()
    ]
