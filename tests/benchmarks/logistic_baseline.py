"""How far a per-pixel logistic regression gets on benchmark-1: the line a network has to beat clearly.

    python -m tests.benchmarks.logistic_baseline [--preset benchmark-1] [--train 1 2 3] [--test 1001 ... 1005]

Bands: red, green, blue, elevation relative to its mean within 100 m, slope, shaded relief, on the
scene's grid. The regression is fitted on balanced pixels of the training seeds; threshold and smallest
object are those with the best F1 on the training seeds; objects are 8-connected components, matched
one to one by descending score at IoU 0.3 and 0.5.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from rasterio.features import rasterize
from rasterio.warp import Resampling, reproject
from scipy import ndimage
from scipy.signal import fftconvolve
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from rtsmap.rasters.tiling import Window
from rtsmap.simulate.presets import find_preset
from rtsmap.simulate.world import DEM_NODATA, World

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98)
BANDS = ("red", "green", "blue", "relative", "slope", "shade")
SMALLEST_PX = (20, 40, 80, 150)


def bands_and_truth(preset, seed):
    """Bands (6, H, W), which pixels have all of them, and the slump number at each pixel (0 = none)."""
    world = World(find_preset(preset), seed)
    height, width = world.geobox.shape
    rgb, valid = world.render(Window(0, 0, height, width))
    elevation = on_scene_grid(world)
    known = np.isfinite(elevation)
    filled = np.where(known, elevation, np.nanmean(elevation))
    gy, gx = np.gradient(filled, world.preset.ground_sample_distance_m)
    gy = -gy
    slope = np.degrees(np.arctan(np.hypot(gx, gy)))
    shade = 255 * np.clip((1 - gy * 0.7071 + gx * 0.7071) * 0.7071 / np.sqrt(1 + gx**2 + gy**2), 0, 1)
    relative = filled - disc_mean(filled, known, 25)
    shapes = [(world.outline(f), f.number + 1) for f in world.slumps]
    truth = (
        rasterize(shapes, (height, width), transform=world.geobox.affine, dtype="int32")
        if shapes
        else np.zeros((height, width), np.int32)
    )
    return (
        np.stack([*rgb.astype(np.float32), relative, slope, shade]).astype(np.float32),
        valid & known,
        truth,
    )


def on_scene_grid(world):
    """The DEM, bilinear on the scene's pixels; NaN where it has none."""
    dem = world.render_elevation(Window(0, 0, *world.dem_geobox.shape))
    out = np.full(world.geobox.shape, np.nan, np.float32)
    reproject(
        dem, out,
        src_transform=world.dem_geobox.affine, src_crs=str(world.dem_geobox.crs), src_nodata=DEM_NODATA,
        dst_transform=world.geobox.affine, dst_crs=str(world.geobox.crs), dst_nodata=np.nan,
        resampling=Resampling.bilinear,
    )  # fmt: skip
    return out


def disc_mean(values, known, radius_px):
    offsets = np.arange(-radius_px, radius_px + 1)
    disc = (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius_px**2).astype(np.float32)
    weight = fftconvolve(known.astype(np.float32), disc, mode="same")
    return fftconvolve(np.where(known, values, 0), disc, mode="same") / np.maximum(weight, 1)


def objects(probability, valid, threshold, smallest_px):
    """8-connected components above the threshold: label image and a score for each label."""
    labels, count = ndimage.label((probability > threshold) & valid, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    keep = np.flatnonzero(sizes >= smallest_px)
    keep = keep[keep > 0]
    renumber = np.zeros(count + 1, np.int64)
    renumber[keep] = np.arange(1, len(keep) + 1)
    scores = ndimage.mean(probability, labels, keep) if len(keep) else np.zeros(0)
    return renumber[labels], np.atleast_1d(scores)


def match(labels, scores, truth, iou):
    """True positives, false positives, false negatives of greedy one-to-one matching."""
    wanted = int(truth.max())
    pairs = np.stack([labels.ravel(), truth.ravel()])[:, (labels.ravel() > 0) & (truth.ravel() > 0)]
    sizes, targets = np.bincount(labels.ravel()), np.bincount(truth.ravel(), minlength=wanted + 1)
    both, shared = np.unique(pairs, axis=1, return_counts=True)
    found = {}
    for (a, b), n in zip(both.T.tolist(), shared.tolist(), strict=True):
        found.setdefault(a, []).append((n / (sizes[a] + targets[b] - n), b))
    taken = set()
    for a in np.argsort(-scores) + 1:
        for value, b in sorted(found.get(int(a), ()), reverse=True):
            if value >= iou and b not in taken:
                taken.add(b)
                break
    present = int((targets[1:] > 0).sum())
    return len(taken), len(scores) - len(taken), present - len(taken)


def f1(counts):
    tp, fp, fn = np.sum(counts, axis=0)
    return 2 * tp / max(2 * tp + fp + fn, 1)


def fit(scenes, rng):
    samples, answers = [], []
    for bands, valid, truth in scenes:
        for wanted in (True, False):
            at = np.flatnonzero(((truth > 0) == wanted) & valid)
            pick = rng.choice(at, min(len(at), 40_000), replace=False)
            samples.append(bands.reshape(len(bands), -1)[:, pick].T)
            answers.append(np.full(len(pick), wanted))
    scaler = StandardScaler().fit(np.concatenate(samples))
    model = LogisticRegression(max_iter=500).fit(
        scaler.transform(np.concatenate(samples)), np.concatenate(answers)
    )
    return scaler, model


def probability(bands, scaler, model):
    flat = bands.reshape(len(bands), -1).T
    return model.predict_proba(scaler.transform(flat))[:, 1].reshape(bands.shape[1:]).astype(np.float32)


def smooth(values, sigma):
    return ndimage.gaussian_filter(values, sigma) if sigma else values


def tune(maps):
    """Smoothing, threshold and smallest object with the best F1: (F1, sigma, threshold, pixels)."""
    best = (-1.0, 0.0, 0.5, 0)
    for sigma in (0.0, 1.5, 3.0):
        smoothed = [(smooth(p, sigma), v, t) for p, v, t in maps]
        for threshold, smallest in itertools.product(THRESHOLDS, SMALLEST_PX):
            counts = [
                match(*objects(p, v, threshold, smallest), np.where(v, t, 0), 0.3) for p, v, t in smoothed
            ]
            best = max(best, (f1(counts), sigma, threshold, smallest))
    return best


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="benchmark-1")
    parser.add_argument("--train", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--test", type=int, nargs="+", default=[1001, 1002, 1003, 1004, 1005])
    options = parser.parse_args()
    training = [bands_and_truth(options.preset, seed) for seed in options.train]
    scaler, model = fit(training, np.random.default_rng(0))
    print("coefficients", dict(zip(BANDS, model.coef_[0].round(2).tolist(), strict=True)))
    score, sigma, threshold, smallest = tune([(probability(b, scaler, model), v, t) for b, v, t in training])
    print(f"training seeds {options.train}: F1 {score:.3f} at IoU 0.3")
    print(f"with smoothing {sigma} px, threshold {threshold}, {smallest} px or more")
    at_30, at_50 = [], []
    for seed in options.test:
        bands, valid, truth = bands_and_truth(options.preset, seed)
        found = objects(smooth(probability(bands, scaler, model), sigma), valid, threshold, smallest)
        at_30.append(match(*found, np.where(valid, truth, 0), 0.3))
        at_50.append(match(*found, np.where(valid, truth, 0), 0.5))
        one, other = f1(at_30[-1:]), f1(at_50[-1:])
        print(f"seed {seed}: tp fp fn {at_30[-1]}, F1 {one:.3f} at IoU 0.3, {other:.3f} at 0.5")
    print(f"all test seeds: F1 {f1(at_30):.3f} at IoU 0.3, {f1(at_50):.3f} at IoU 0.5")


if __name__ == "__main__":
    main()
