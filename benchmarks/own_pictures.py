"""What an embedding of unlabelled pictures finds, beside 8x8 pixels: docs/pictures.md.

    python benchmarks/own_pictures.py --pictures=DIR --embeddings=E.npz --classes=A,B

The folder DIR was embedded into E.npz (`eir_jax.embed`), its classes are told to nobody
but this script: of each picture the one in A,B whose name stands in its path. Printed
are, among the pictures themselves, the share whose nearest other one is of their class
and the accuracy of the weighted kNN classifier (k = 20, temperature .1), by the
embedding and by 8x8 pixels (mean removed from each picture, cosine).
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from eir_jax.evaluation.knn import knn_accuracy


def main():
    """Print one line for the embedding and one for the pixels."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("--classes", required=True)
    args = parser.parse_args()
    found, classes = np.load(args.embeddings), args.classes.split(",")
    label = np.array([_class_of(path, classes) for path in found["path"]])
    pixels = np.stack([_thumbnail(args.pictures / path) for path in found["path"]])
    for name, rows in (("embedding", found["embedding"]), ("8x8 pixels", pixels)):
        own = np.arange(len(rows))
        share = knn_accuracy(rows, label, rows, label, k=(1, 20), exclude=own)
        print(f"{name:12} nearest {share[1]:.1%}  kNN (k = 20) {share[20]:.1%}")


def _class_of(path, classes):
    (index,) = (i for i, name in enumerate(classes) if name in path)
    return index


def _thumbnail(path):
    image = Image.open(path).convert("RGB").resize((8, 8), Image.Resampling.BOX)
    pixels = np.asarray(image, np.float32).reshape(-1)
    pixels -= pixels.mean()
    return pixels if pixels.any() else np.ones_like(pixels)  # all of one tone


if __name__ == "__main__":
    main()
