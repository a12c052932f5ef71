"""Image files to uint8 tensors, in order, in batches, and in the errors' own words."""

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.transforms import normalise
from distill_utils.runs.errors import UserError


def encoder_input(images, device):
    """Images as they are kept, uint8, as the encoders take them, on the device; features of a frozen encoder
    as they are.
    """
    images = images.to(device)
    return images if images.is_floating_point() else normalise(images)


def require_files(paths):
    missing = next((path for path in paths if not path.is_file()), None)
    if missing:
        raise UserError(f"{missing} does not exist: give the folder of the images with --image_root.")


def batches(loader):
    """The loader's batches; a worker's UserError comes out as its own sentence, not as the worker's stack
    trace.
    """
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).strip().splitlines()[-1].split("UserError: ")[-1]) from None


def in_order(dataset, batch_size, num_workers):
    """A loader without randomness: it leaves torch's global generator alone, so that it does not matter when
    images are decoded.
    """
    return DataLoader(
        dataset, batch_size, num_workers=num_workers if len(dataset) > 500 else 0, generator=torch.Generator()
    )


def decode(dataset, num_workers, what):
    """All images of a dataset, uint8 [N, 3, H, W]."""
    loader = in_order(dataset, 64, num_workers)
    images = []
    for batch in tqdm(
        batches(loader), total=len(loader), desc=f"decoding {what}", disable=len(dataset) <= 500
    ):
        images.append(batch[0] if isinstance(batch, list) else batch)
    return torch.cat(images)
