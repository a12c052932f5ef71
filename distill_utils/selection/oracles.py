"""VAS the slow, obvious way: what tests compare with and benchmarks race against."""

import numpy as np
import pyarrow.parquet


def vas_in_memory(folder, moment, fraction, fraction_vas):
    """Static VAS of a DataComp pool as one writes it first: all of it loaded, scored at once, sorted. Returns
    the subset, "u8,u8" [n].

    moment: S [D, D]. The fractions are of the pool, by CLIP score and then by VAS; ties by uid.
    """
    files = sorted(folder.glob("*.parquet"))
    tables = [
        pyarrow.parquet.read_table(file, columns=["uid", "clip_l14_similarity_score"]) for file in files
    ]
    uids = np.array(
        [(int(uid[:16], 16), int(uid[16:], 16)) for table in tables for uid in table["uid"].to_pylist()],
        np.dtype("u8,u8"),
    )
    clip = np.concatenate([table["clip_l14_similarity_score"].to_numpy() for table in tables])
    features = np.concatenate([np.load(file.with_suffix(".npz"))["l14_img"] for file in files]).astype(
        np.float32
    )
    kept = np.lexsort((uids["f1"], uids["f0"], -clip))[: int(len(clip) * fraction)]
    features, uids = features[kept], uids[kept]
    scores = ((features @ moment.astype(np.float32)) * features).sum(axis=1)
    return np.sort(uids[np.lexsort((uids["f1"], uids["f0"], -scores))[: int(len(clip) * fraction_vas)]])
