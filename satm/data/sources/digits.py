"""The source `digits`."""

import torch
from sklearn.datasets import load_digits

from satm.config import DatasetOptions
from satm.data.images import Split, hold_out
from satm.data.listing import Listing, decoded_part
from satm.data.sources import DATASETS

TEST = 36
"""Test images per class."""


@DATASETS.named("digits")
def digits(options: DatasetOptions) -> Listing:
    """List scikit-learn's handwritten digits: 8 x 8 pixels, grey, 10 classes; 1,437 training and 360 test images.

    There is no official split; the same 36 images of each class are always the test images. Grey values 0 to 16 are
    stretched to 0 to 255.
    """
    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)[:, None]
    parts = hold_out(Split(pixels, torch.from_numpy(bunch.target)), TEST, seed=0)
    train, test = (decoded_part(part.images[:, 0].numpy(), part.labels.tolist(), "digits") for part in parts)
    return Listing(train, test, tuple(map(str, range(10))), published=True)
