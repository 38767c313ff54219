"""Datasets, ZCA whitening and differentiable Siamese augmentation."""

from satm.data.augment import FAMILIES, Augmentation, Draw
from satm.data.datasets import load_dataset
from satm.data.images import ImageData, Preprocessor, Split, hold_out, keep_classes, load_images, save_images
from satm.data.sources import DATASETS
from satm.data.whitening import Whitening, fit_whitening, load_whitening, save_whitening
