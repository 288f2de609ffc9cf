"""Precision and recall of `search --duplicates` on known copies among other pictures.

    python benchmarks/duplicates.py --images=A.npz --workdir=DIR

Of 600 of A.npz's `train_images` (uint8 [n, side, side, 3]; --seed=S takes the S-th 600)
60 are copied, ten in each way: the file itself, encoded anew (JPEG, quality 30 to 70),
resized (half to one and a half), brightened (by 15 to 50 %), cropped (to 75 to 92 % a
side) and mirrored. All are embedded by the run in DIR, and the duplicates that are
found compared with the truth. Pictures that are doubles in A.npz count as false.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

KINDS = ("exact", "re-encoded", "resized", "brightened", "cropped", "mirrored")


def main():
    """Run the benchmark that the flags describe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--copies", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first = args.seed * args.count
        images = np.load(args.images)["train_images"][first : first + args.count]
        pictures, embeddings = Path(folder, "pictures"), Path(folder, "E.npz")
        truth = make(images, pictures, args.copies, args.seed)
        program(
            "embed",
            f"--workdir={args.workdir}",
            f"--images={pictures}",
            f"--out={embeddings}",
        )
        words = program("search", "--duplicates", f"--embeddings={embeddings}")
    found = [frozenset(line.split("\t")[:2]) for line in words.splitlines()]
    result = score(found, truth)
    if args.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:32} {value}")


def program(command, *flags):
    """Run a command of eir_jax; return what it prints."""
    words = [sys.executable, "-m", f"eir_jax.{command}", *flags]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def score(found, truth):
    """Precision and recall, with crops and mirrors and without, and hits by kind."""
    hits = Counter(truth[pair] for pair in found if pair in truth)
    of = Counter(truth.values())
    hard = {"cropped", "mirrored"}
    false = sum(pair not in truth for pair in found)
    easy = sum(n for kind, n in hits.items() if kind not in hard)
    return {
        "precision": sum(hits.values()) / max(len(found), 1),
        "recall": sum(hits.values()) / sum(of.values()),
        "precision without crops, mirrors": easy / max(easy + false, 1),
        "recall without crops, mirrors": easy
        / sum(n for kind, n in of.items() if kind not in hard),
        **{kind: f"{hits[kind]} of {of[kind]}" for kind in KINDS},
        "false": false,
    }


def make(images, folder, copies, seed):
    """Write pictures and copies of some; return {the two names: the kind}."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:05}.jpg", quality=95)
    truth = {}
    for j, i in enumerate(rng.permutation(len(images))[:copies]):
        kind, names = KINDS[j % len(KINDS)], (f"{i:05}.jpg", f"copy{j:03}.jpg")
        copy(folder / names[0], folder / names[1], kind, rng)
        truth[frozenset(names)] = kind
    return truth


def copy(source, target, kind, rng):
    """Write a copy of a picture, made in one way."""
    if kind == "exact":
        target.write_bytes(source.read_bytes())
        return
    image, quality = Image.open(source).convert("RGB"), 92
    if kind == "re-encoded":
        quality = int(rng.integers(30, 70))
    elif kind == "resized":
        scale = rng.choice([0.5, 0.75, 1.5])
        size = [round(side * scale) for side in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
    elif kind == "brightened":
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(1.15, 1.5))
    elif kind == "cropped":
        scale = rng.uniform(0.75, 0.92)
        width, height = (round(side * scale) for side in image.size)
        x = int(rng.integers(0, image.width - width + 1))
        y = int(rng.integers(0, image.height - height + 1))
        image = image.crop((x, y, x + width, y + height))
    else:
        image = ImageOps.mirror(image)
    image.save(target, quality=quality)


if __name__ == "__main__":
    main()
