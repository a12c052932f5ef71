"""Recall from a score matrix, against sorting every row."""

import time

import numpy as np
import torch

from distill_utils.benchmarks.cells import spread, timed
from distill_utils.evaluation.retrieval import recall_from_scores
from distill_utils.evaluation.tables import aligned


def naive_recall(scores, txt2img, ks=(1, 5, 10)):
    """Every query's candidates sorted in a Python loop, as the published codes do; ties against the model."""
    n, m = scores.shape
    image_of = txt2img.numpy()
    hits = {}
    for side, rows in (("img", scores.T), ("txt", scores)):
        ranks = np.empty(len(rows), dtype=int)
        for query, row in enumerate(rows.numpy()):
            order = np.argsort(-row, kind="stable")
            right = image_of == query if side == "txt" else np.arange(n) == image_of[query]
            best = row[right].max()
            tied_or_better = np.searchsorted(-row[order], -best, side="right")
            ranks[query] = tied_or_better - (right & (row >= best)).sum()
        hits |= {f"{side}_r{k}": 100.0 * float((ranks < k).mean()) for k in ks}
    return hits | {"r_mean": sum(hits.values()) / len(hits)}


def benchmark(args, folder):
    """Recall from one score matrix of the size of COCO's 5k test split; the matrix product apart."""
    n, m = args.gallery
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    txt2img = torch.cat([torch.arange(n), torch.randint(n, (m - n,))])
    images = torch.nn.functional.normalize(torch.randn(n, 64), dim=1)
    texts = torch.nn.functional.normalize(images[txt2img] + 1.5 * torch.randn(m, 64) / 8, dim=1)
    scores = (images @ texts.T).mul(200).round().div(200)  # coarse, so that there are ties
    began = time.perf_counter()
    expected = naive_recall(scores, txt2img)
    naive = time.perf_counter() - began
    scores, txt2img = scores.to(device), txt2img.to(device)
    found = {}
    ours = spread(timed(lambda _: found.update(recall_from_scores(scores, txt2img)), device, args.repeats))
    identical, ratio = (
        all(abs(found[key] - expected[key]) < 1e-9 for key in expected),
        naive / ours["seconds"],
    )
    rows = [["argsort of every row", f"{naive:.3f}", ""]]
    rows += [["recall_from_scores", f"{ours['seconds']:.3f}", f"{ratio:.1f}"]]
    print(aligned([f"recall, {n} images x {m} texts", "seconds", "x faster"], rows))
    answer = "yes" if identical else "NO"
    print(f"identical results, ties included: {answer} (r_mean {expected['r_mean']:.3f})")
    return {"naive_seconds": naive, "ours": ours, "ratio": ratio, "identical": identical}
