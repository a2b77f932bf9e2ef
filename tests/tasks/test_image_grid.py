"""Rows of images under each other, members left of the others."""

import numpy as np

from tasks.image_grid import image_grid, row_tops


def test_images_stand_in_their_place():
    rows = [np.full((3, 1, 32, 32), value, np.uint8) for value in (10, 20)]
    rows[1][1] = 99
    grid = image_grid(rows, np.array([False, True, False]))
    tops = row_tops(2, rows[0].shape)
    assert grid.dtype == np.uint8
    assert grid.shape[2] == 3
    assert (grid[0] == 255).all()
    first, second = grid[tops[0] + 5], grid[tops[1] + 5]
    assert np.unique(first).tolist() == [10, 255]
    assert np.unique(second).tolist() == [20, 99, 255]
    # The one member comes first, enlarged to 64 pixels and apart from the others.
    places = np.flatnonzero(second[:, 0] == 99)
    assert len(places) == 64
    others = np.flatnonzero(second[:, 0] == 20)
    assert others.min() - places.max() > np.diff(others).max()


def test_colours_and_sizes_are_kept():
    images = np.random.default_rng(0).integers(0, 255, (1, 3, 64, 48)).astype(np.uint8)
    grid = image_grid([images], np.array([True]))
    top = int(row_tops(1, images.shape)[0])
    left = (grid.shape[1] - 48) // 2
    np.testing.assert_array_equal(
        grid[top : top + 64, left : left + 48], images[0].transpose(1, 2, 0)
    )
