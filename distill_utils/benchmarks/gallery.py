"""Evaluation passes over the test gallery: decoded once and kept, against decoding every file each time."""

import torch
from torch.utils.data import DataLoader

from data import build_datasets
from data.transforms import normalise
from distill_utils.benchmarks import cells
from distill_utils.benchmarks.cells import required, spread, timed
from distill_utils.evaluation.retrieval import retrieval_recall
from distill_utils.evaluation.students import gallery_recall
from distill_utils.evaluation.tables import aligned
from distill_utils.task.from_flags import model_maker, open_task


def evaluate_cell(args):
    """Seconds of a pass, both ways."""
    device = torch.device(args.device)
    task = open_task(args, device)
    roots, plain = (args.image_root, args.ann_root), {"image_size": args.image_size, "augmentation": None}
    test = build_datasets(args.dataset, *roots, **plain, toy_sizes=args.toy_size).test
    torch.manual_seed(args.seed)
    model = model_maker(args, task, device)().to(device).eval()
    kept = task.galleries["test"]

    @torch.no_grad()
    def decoding(_):
        loader = DataLoader(test, batch_size=256, num_workers=args.num_workers if len(test) > 500 else 0)
        images = torch.cat([model.encode_images(normalise(batch.to(device))) for batch in loader])
        return retrieval_recall(images, model.encode_texts(kept.texts.to(device)), kept.txt2img)

    results = {}
    for name, one_pass in (("decoding", decoding), ("cached", lambda _: gallery_recall(model, kept, device))):
        results[name] = spread(timed(one_pass, device, args.repeats))
        results[name]["passes_per_second"] = 1 / results[name]["seconds"]
    return results | {"images": len(kept.images), "texts": len(kept.texts)}


def benchmark(args, folder):
    """Evaluation passes a second, with and without the cached gallery."""
    result = required(cells.in_own_process(evaluate_cell, args), "The gallery cannot be measured")
    rows = [
        [name, f"{result[name]['seconds']:.3f}", f"{result[name]['passes_per_second']:.2f}"]
        for name in ("decoding", "cached")
    ]
    what = f"a pass over {result['images']} images, {result['texts']} texts"
    print(aligned([what, "seconds", "passes a second"], rows))
    result["ratio"] = result["decoding"]["seconds"] / result["cached"]["seconds"]
    print(f"cached {result['ratio']:.2f} times faster")
    return result
