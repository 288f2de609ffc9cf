"""Time the training views: tf.data and device against Pillow in worker processes.

    python benchmarks/pipeline.py                  # CIFAR-size arrays, batch 128
    python benchmarks/pipeline.py --jpeg           # 500x375 JPEG files, 224 px views
    python benchmarks/pipeline.py --pictures=DIR   # pictures of one's own for --jpeg

All sides make the same recipe: two views and a cutmix for each instance, as normalised
float32 arrays in this process. The Pillow side is what torchvision's transforms do to a
PIL image, in `--workers` processes that write into shared memory. The sides take turns;
printed are medians of instances/s, and ours / Pillow's (more than 1: ours is faster).
`device` is measured on the device that JAX finds, here without a training step.
"""

import argparse
import io
import itertools
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Generator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from configs import base

SLOTS = 8  # batches in shared memory
WORKER: tuple = ()  # of one of Pillow's processes: what it keeps between batches


def main():
    """Run the benchmark that the flags describe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jpeg", action="store_true", help="500x375 files, 224 px")
    parser.add_argument("--pictures", type=Path, help="enlarged to make the JPEG files")
    parser.add_argument("--images", type=int, help="default 50,000, or 1,000 files")
    parser.add_argument("--seconds", type=float, default=10, help="a side and repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of Pillow's side")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    config = base.get_config()
    with tempfile.TemporaryDirectory() as folder:
        if args.jpeg:
            config.batch_size = 32
            config.data.update(image_size=224, resize=256, source="folder")
            config.data.update(path=folder, keep="encoded")
            write_jpegs(Path(folder), args.pictures, args.images or 1000)
        result = measure(args, config)
    if args.json:
        machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0]}
        flags = vars(args) | {"pictures": str(args.pictures)}
        print(json.dumps(flags | machine | result, indent=2))
        return
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for name, value in result.items():
        print(f"  {name:36} {value:>10,}")


def measure(args, config):
    """Return medians of instances/s, and the ratios."""
    if args.jpeg:
        from eir_jax.data.encoded import EncodedImages
        from eir_jax.data.sources import load

        images = load(config.data).train.images
        assert isinstance(images, EncodedImages)
        files = [images.read(i) for i in range(len(images))]
        sides = {"Pillow": pillow(args, config, files)}
    else:
        images = smooth_images(args.images or 50_000)
        sides = {"Pillow": pillow(args, config, images)}  # first: its processes fork
        sides["device"] = device(config, images)
    sides["tf.data"] = tf_data(config, images)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    first = {}
    for name, batches in sides.items():
        began = time.perf_counter()
        next(batches)
        first[name] = time.perf_counter() - began
    for _ in range(args.repeats):
        for name, batches in sides.items():
            for _ in range(SLOTS):  # what was made while the others ran
                next(batches)
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < args.seconds:
                next(batches)
                count += config.batch_size
            rates[name].append(count / (time.perf_counter() - began))
    for batches in sides.values():
        batches.close()
    median = {name: statistics.median(x) for name, x in rates.items()}
    result: dict[str, float] = {}
    result |= {f"{name} instances/s": round(x) for name, x in median.items()}
    result |= {f"{name} first batch s": round(x, 1) for name, x in first.items()}
    ours = [name for name in median if name != "Pillow"]
    return result | {
        f"{name} / Pillow": round(median[name] / median["Pillow"], 2) for name in ours
    }


def smooth_images(count: int) -> np.ndarray:
    """Random blobs, uint8 [count, 32, 32, 3]; the work is that of any pixels."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


def write_jpegs(folder: Path, pictures: Path | None, count: int) -> None:
    """Write files of 500x375 (or 375x500) pixels: enlarged pictures, or blobs."""
    files = sorted(pictures.rglob("*.*"))[:count] if pictures else []
    blobs = smooth_images(count)
    for i in range(count):
        picture = (
            Image.open(files[i % len(files)]) if files else Image.fromarray(blobs[i])
        )
        shape = (375, 500) if i % 4 == 0 else (500, 375)
        large = picture.convert("RGB").resize(shape, Image.Resampling.BICUBIC)
        large.save(folder / f"{i:06d}.jpg", quality=90)


def tf_data(config, images) -> Generator[Any]:
    """Our pipeline on the host."""
    from eir_jax.data.pipeline import make_train_batches
    from eir_jax.objectives.systems import make_objective

    slots = make_objective(config, len(images)).slots
    return make_train_batches(images, config, slots, 0, 10**9)


def device(config, images) -> Generator[Any]:
    """Our pipeline inside a jitted function; each batch is waited for."""
    import jax

    from eir_jax.data.augment_device import make_batch_views, put_images
    from eir_jax.objectives.systems import make_objective
    from eir_jax.system import sharding

    config = config.copy_and_resolve_references()
    config.data.pipeline = "device"
    mesh = sharding.make_mesh()
    resident = {"images": put_images(images, config, mesh)}
    slots = make_objective(config, len(images)).slots
    make = jax.jit(make_batch_views(config, slots, mesh))
    for batch in sharding.put_batches(tf_data(config, images), mesh):
        yield jax.block_until_ready(make(batch | resident))


def pillow(args, config, images) -> Generator[Any]:
    """The same recipe on PIL images, in processes that write into shared memory."""
    size, batch_size = config.data.image_size, config.batch_size
    shape = (SLOTS, 3, batch_size, size, size, 3)
    memory = shared_memory.SharedMemory(create=True, size=4 * int(np.prod(shape)))
    context = multiprocessing.get_context("fork")
    setup = (images, config.data.to_dict(), config.views.to_dict(), memory.name, shape)
    pool = context.Pool(args.workers, initializer=start_worker, initargs=setup)
    rng = np.random.default_rng(0)

    def submit(slot):
        index = rng.permutation(len(images))[:batch_size]
        return pool.apply_async(make_pillow_batch, (slot, index))

    try:
        pending = [submit(slot) for slot in range(SLOTS)]
        for slot in itertools.cycle(range(SLOTS)):
            pending[slot].get()
            yield None
            pending[slot] = submit(slot)
    finally:
        pool.terminate()
        pool.join()
        memory.close()
        memory.unlink()


def start_worker(images, data, views, name, shape):
    """Keep what a worker needs between batches."""
    global WORKER
    memory = shared_memory.SharedMemory(name)
    batches = np.ndarray(shape, np.float32, memory.buf)
    WORKER = (images, data, views, memory, batches)
    random.seed(os.getpid())


def make_pillow_batch(slot, index):
    """Write view 1, view 2 and the mixed image of each instance."""
    images, data, views, _, batches = WORKER
    view1, view2, mixed = batches[slot]
    for row, i in enumerate(index):
        if isinstance(images[i], bytes):
            picture = Image.open(io.BytesIO(images[i])).convert("RGB")
        else:
            picture = Image.fromarray(images[i])
        view1[row] = pillow_view(picture, data, views)
        view2[row] = pillow_view(picture, data, views)
    size = data["image_size"]
    ratio = random.betavariate(1, 1)
    side = int(size * (1 - ratio) ** 0.5) // 2
    y, x = random.randrange(size), random.randrange(size)
    box = np.s_[:, max(0, y - side) : y + side, max(0, x - side) : x + side]
    mixed[:] = view1
    mixed[box] = view2[np.random.permutation(len(index))][box]


def pillow_view(picture, data, views):
    """Do what torchvision's transforms do to a PIL image."""
    size = data["image_size"]
    for _ in range(10):
        area = picture.width * picture.height * random.uniform(*views["crop_area"])
        low, high = np.log(views["crop_aspect"])
        aspect = np.exp(random.uniform(low, high))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= picture.width and 0 < h <= picture.height:
            break
    else:
        w = h = min(picture.size)
    left, top = (
        random.randint(0, picture.width - w),
        random.randint(0, picture.height - h),
    )
    view = picture.crop((left, top, left + w, top + h))
    view = view.resize((size, size), Image.Resampling.BILINEAR)
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    for name in random.sample([*enhancers, "hue"], 4):
        if name == "hue":
            view = turn_hue(view, random.uniform(-views["hue"], views["hue"]))
        else:
            factor = random.uniform(1 - views[name], 1 + views[name])
            view = enhancers[name](view).enhance(factor)
    if random.random() < views["grey"]:
        view = view.convert("L").convert("RGB")
    if random.random() < views["flip"]:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scaled = np.asarray(view, np.float32) / 255
    return (scaled - np.float32(data["mean"])) / np.float32(data["std"])


def turn_hue(view, turns):
    """Turn the hue as torchvision does: in HSV of 8 bits."""
    hue, saturation, value = view.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(int(turns * 255) % 256)
    channels = (Image.fromarray(turned), saturation, value)
    return Image.merge("HSV", channels).convert("RGB")


if __name__ == "__main__":
    main()
