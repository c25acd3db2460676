from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from rtsmap.errors import InputError, OptionsError
from rtsmap.mm.augment import AugmentOptions
from rtsmap.mm.packs import PackedImage, read_index, write_pack
from rtsmap.mm.samples import SampleOptions, SampleSource, collage, make_sample
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, TERRAIN_FOR_TRAINING, InputSpec
from rtsmap.rasters.tiling import Window
from tests.mm.labelled import labelled_image, packed

SPEC = InputSpec(4.0, (OPTICAL_RGB, TERRAIN))


def test_a_sample_depends_on_seed_and_number_only(tmp_path):
    images = packed(tmp_path)
    options = SampleOptions(chip_px=64)
    one, two = (SampleSource([(1.0, images)], SPEC, options, seed=5) for _ in range(2))
    two.draw(3)
    first, second = one.draw(7), two.draw(7)
    np.testing.assert_array_equal(first.layers["optical"].pixels, second.layers["optical"].pixels)
    np.testing.assert_array_equal(first.masks, second.masks)
    assert not np.array_equal(first.layers["optical"].pixels, one.draw(8).layers["optical"].pixels)


def test_without_quarter_turns_chips_are_mirrored_only_and_cut_where_they_were(tmp_path):
    images = packed(tmp_path)
    still = AugmentOptions(**{field.name: 0.0 for field in fields(AugmentOptions)})
    both = [
        SampleSource([(1.0, images)], SPEC, SampleOptions(64, zoom_sd=0, quarter_turns=q, augment=still), 0)
        for q in (True, False)
    ]
    turned = set()
    for number in range(30):
        one, upright = (source.draw(number).layers["optical"].pixels[0] for source in both)
        looks = [np.rot90(view, k) for view in (upright, upright[:, ::-1]) for k in range(4)]
        same = [k for k, look in enumerate(looks) if np.array_equal(one, look)]
        assert same
        # mirrored by chance alike, so that only the turn differs
        turned.add(same[0])
    assert turned == {0, 1, 2, 3}


def test_boxes_hold_their_masks_exactly(tmp_path):
    source = SampleSource([(1.0, packed(tmp_path))], SPEC, SampleOptions(chip_px=64), seed=0)
    seen = 0
    for number in range(40):
        sample = source.draw(number)
        for (x0, y0, x1, y1), mask in zip(sample.boxes.astype(int), sample.masks, strict=True):
            assert mask[y0:y1, x0:x1].sum() == mask.sum() >= SampleOptions().min_px
            assert mask[y0].any()
            assert mask[y1 - 1].any()
            assert mask[:, x0].any()
            assert mask[:, x1 - 1].any()
            seen += 1
    assert seen > 20


def test_without_terrain_the_layer_is_there_and_invalid():
    sample = make_sample(labelled_image(terrain=False), SPEC, SampleOptions(), None)
    assert not sample.layers["terrain"].valid.any()
    assert not sample.layers["terrain"].pixels.any()
    assert sample.layers["optical"].valid.all()


def test_imagery_goes_missing_only_where_terrain_is_left(tmp_path):
    images = packed(tmp_path)
    gone = AugmentOptions(optical_missing_share=1.0, dem_missing_share=0.5)
    source = SampleSource([(1.0, images)], SPEC, SampleOptions(chip_px=64, augment=gone), seed=0)
    plain = SampleSource([(1.0, images)], SPEC, SampleOptions(chip_px=64), seed=0)
    left = set()
    for number in range(20):
        layers = source.draw(number).layers
        seen = {name for name, layer in layers.items() if layer.valid.any()}
        assert len(seen) == 1
        left |= seen
        assert all(not layers[name].pixels.any() for name in layers.keys() - seen)
        assert plain.draw(number).layers["optical"].valid.any()
    assert left == {"optical", "terrain"}


def test_imagery_stays_where_slope_cannot_be_made_of_the_heights():
    image = labelled_image()
    heights = replace(image, terrain=replace(image.terrain, gradient=None))
    gone = SampleOptions(augment=AugmentOptions(optical_missing_share=1.0, dem_missing_share=0.0))
    for one, seen in ((heights, "optical"), (image, "terrain")):
        layers = make_sample(one, SPEC, gone, np.random.default_rng(0)).layers
        assert [name for name, layer in layers.items() if layer.valid.any()] == [seen]


def shifted(image, spec=SPEC, seed=0):
    options = AugmentOptions(dem_shift_sd_m=12.0, dem_missing_share=0, dem_smooth_share=0, dem_noise_m=0)
    return make_sample(image, spec, SampleOptions(augment=options), np.random.default_rng(seed))


def test_terrain_that_is_moved_lies_beside_imagery_and_labels():
    image = labelled_image()
    plain, moves = make_sample(image, SPEC, SampleOptions(), None), []
    for seed in range(20):
        sample = shifted(image, seed=seed)
        terrain, unmoved = sample.layers["terrain"], plain.layers["terrain"].pixels
        (top, bottom), (left, right) = (
            np.flatnonzero(terrain.valid.any(axis=axis))[[0, -1]] + [0, 1] for axis in (1, 0)
        )
        height, width = image.labels.shape
        rows, cols = top + bottom - height, left + right - width
        before = unmoved[:, top - rows : bottom - rows, left - cols : right - cols]
        np.testing.assert_array_equal(terrain.pixels[:, top:bottom, left:right], before)
        assert not terrain.pixels[:, ~terrain.valid].any()
        np.testing.assert_array_equal(sample.masks, plain.masks)
        moves.append((rows, cols))
    assert 2 < np.std(moves) < 4.5


def test_terrain_is_not_moved_away_from_its_labels_where_nothing_else_is_seen():
    image = labelled_image()
    dark = replace(image, optical_valid=np.zeros_like(image.optical_valid))
    alone = InputSpec(4.0, (TERRAIN,))
    for one, spec in ((image, alone), (dark, SPEC)):
        for seed in range(5):
            terrain = shifted(one, spec, seed).layers["terrain"]
            np.testing.assert_array_equal(
                terrain.pixels, make_sample(one, spec, SampleOptions(), None).layers["terrain"].pixels
            )


def test_the_gradient_can_be_a_band():
    image = labelled_image()
    sample = make_sample(image, InputSpec(4.0, (TERRAIN_FOR_TRAINING,)), SampleOptions(), None)
    np.testing.assert_array_equal(sample.layers["terrain"].pixels[3:], image.terrain.gradient)


def test_slivers_are_ignored_not_background():
    image = labelled_image()
    image.labels[:] = 0
    image.labels[0:2, 0:30] = 1
    sample = make_sample(image, SPEC, SampleOptions(), None)
    assert len(sample.masks) == 0
    assert sample.ignored.sum() == 60


def test_of_a_slump_only_what_is_seen_is_a_target():
    image = labelled_image()
    plain = make_sample(image, SPEC, SampleOptions(), None)
    # imagery shows the rows below 70, terrain the columns left of 25: of the second slump a part is seen
    image.optical_valid[:70] = False
    image.terrain.valid[:, 25:] = False
    image.labels[0:5, 60:70] = -1
    sample = make_sample(image, SPEC, SampleOptions(), None)
    seen = image.optical_valid | image.terrain.valid
    assert len(sample.masks) == len(plain.masks) == 2
    np.testing.assert_array_equal(sample.masks, plain.masks & seen)
    np.testing.assert_array_equal(sample.boxes, [[10, 20, 25, 44], [45, 70, 75, 80]])
    np.testing.assert_array_equal(sample.ignored, (image.labels < 0) | ((image.labels > 0) & ~seen))
    image.terrain.valid[:] = False
    blind = make_sample(image, SPEC, SampleOptions(), None)
    assert len(blind.masks) == 1
    assert blind.ignored[20:44, 10:40].all()


def test_a_collage_keeps_both_sides_and_their_slumps_apart():
    left, right = labelled_image(terrain=False), labelled_image(terrain=False)
    right.optical[:] = np.where(right.labels > 0, 201, 200)
    both = collage(left, right, 150, gap_px=5)
    rows, cols = right.labels.shape
    start = 150 - cols
    np.testing.assert_array_equal(both.optical[:, :rows, start:], right.optical)
    np.testing.assert_array_equal(both.optical[:, :rows, : start - 5], left.optical[:, :, : start - 5])
    assert not both.optical_valid[:, start - 5 : start].any()
    assert not both.optical_valid[rows:].any()
    assert both.terrain is None
    on_the_left = set(np.unique(both.labels[:, :start])) - {0}
    on_the_right = set(np.unique(both.labels[:, start:])) - {0}
    assert on_the_right
    assert not on_the_left & on_the_right


def test_collages_are_made_of_images_without_terrain_only(tmp_path):
    with_terrain, without = packed(tmp_path)
    for image, terrain in ((with_terrain, True), (without, False)):
        source = SampleSource([(1.0, [image])], SPEC, SampleOptions(chip_px=64, collage_share=1.0), seed=0)
        names = {source.draw(number).name for number in range(5)}
        assert all((" | " in name) != terrain for name in names)
    options = SampleOptions(chip_px=64, collage_share=1.0)
    both = SampleSource([(1.0, [with_terrain, without])], SPEC, options, seed=0)
    assert {both.draw(number).name for number in range(20)} == {"image 0", "image 1 | image 1"}


def test_impossible_sources_are_refused():
    with pytest.raises(OptionsError, match="collage_share"):
        SampleOptions(collage_share=2)
    with pytest.raises(InputError, match="at least one image"):
        SampleSource([(1.0, [])], SPEC, SampleOptions(), seed=0)
    with pytest.raises(OptionsError, match="chip_px"):
        SampleOptions(chip_px=8)


def wide(directory):
    """One image of 400 x 400 with slumps at its left side and two hard places at its right side."""
    image = labelled_image(0, (400, 400), terrain=False)
    hard = (Window(100, 300, 120, 330), Window(300, 350, 310, 360))
    write_pack(directory / "wide.pack", [replace(image, hard=hard)])
    return list(read_index(directory / "wide.pack")), hard


def drawn_windows(images, options, count=200):
    """Windows of the first draws."""
    seen = []

    class Watched(PackedImage):
        def read(self, window):
            seen.append(window)
            return PackedImage.read(self, window)

    watched = [Watched(**{f.name: getattr(image, f.name) for f in fields(image)}) for image in images]
    source = SampleSource([(1.0, watched)], SPEC, options, seed=2)
    for number in range(count):
        source.draw(number)
    return seen


def test_negatives_come_as_often_as_wanted(tmp_path):
    images, hard = wide(tmp_path)
    options = SampleOptions(chip_px=64, slump_share=1.0, hard_negative_share=0.3, negative_share=0.2)
    windows = drawn_windows(images, options)
    near = sum(any(window.meets(place) for place in hard) for window in windows)
    empty = sum(not any(window.meets(slump) for _, slump in images[0].slumps) for window in windows)
    assert 0.2 < near / len(windows) < 0.42
    assert 0.38 < empty / len(windows) < 0.62
    only = SampleOptions(chip_px=64, hard_negative_share=1.0)
    assert all(any(w.meets(place) for place in hard) for w in drawn_windows(images, only, 40))
    # ground without rejected places goes on as before
    without = [replace(image, hard=()) for image in images]
    assert drawn_windows(without, only, 40) == drawn_windows(without, SampleOptions(chip_px=64), 40)


def test_where_an_image_has_no_room_for_a_negative_another_has(tmp_path):
    full = replace(labelled_image(0, (90, 90)), labels=np.ones((90, 90), np.int16))
    write_pack(tmp_path / "some.pack", [full, full, wide_image(), full])
    images = list(read_index(tmp_path / "some.pack"))
    options = SampleOptions(chip_px=64, slump_share=1.0, negative_share=0.75)
    seen = drawn_samples(images, options)
    assert 0.65 < sum(not len(sample.masks) for sample in seen) / len(seen) < 0.85
    # where none has room they show slumps, and training goes on
    nothing = drawn_samples(images[:2], options, 5)
    assert all(len(sample.masks) for sample in nothing)


def wide_image():
    return labelled_image(1, (400, 400))


def drawn_samples(images, options, count=150):
    source = SampleSource([(1.0, images)], SPEC, options, seed=2)
    return [source.draw(number) for number in range(count)]


def test_shares_of_negatives_must_fit_together():
    with pytest.raises(OptionsError, match=r"0\.7 \+ 0\.5"):
        SampleOptions(hard_negative_share=0.7, negative_share=0.5)
    with pytest.raises(OptionsError, match="negative_share=-1"):
        SampleOptions(negative_share=-1)
