"""The picture statistics on pictures whose values are known."""

import numpy as np
import pytest

from gdro_bench.instruments import panel


def flat(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.stack([np.full((16, 16, 3), c, dtype=np.uint8) for c in colours])


def test_a_flat_picture_has_no_edges_and_no_colour_entropy():
    images = flat((10, 20, 30), (250, 250, 250))
    assert panel.edge_density(images).tolist() == [0, 0]
    assert panel.colour_entropy(images).tolist() == [0, 0]


def test_edges_are_counted_by_their_contrast():
    image = flat((0, 0, 0))
    image[:, :, 8:] = 255  # one edge, between columns 7 and 8 of 15 differences
    assert panel.edge_density(image)[0] == pytest.approx(1 / 15)
    assert panel.edge_density(image // 2)[0] == pytest.approx(127 / 255 / 15)


def test_colours_in_equal_shares_have_the_entropy_of_their_number():
    image = flat((0, 0, 0))
    image[:, :8, 8:], image[:, 8:, :8], image[:, 8:, 8:] = 80, 140, 255
    assert panel.colour_entropy(image)[0] == pytest.approx(2.0)


def test_diversity_is_the_mean_distance_to_the_others():
    black_and_white = flat((0, 0, 0), (255, 255, 255), (255, 255, 255))
    assert panel.diversity(black_and_white) == pytest.approx([1.0, 0.5, 0.5])
    assert panel.diversity(flat((9, 9, 9), (9, 9, 9))) == pytest.approx([0.0, 0.0], abs=1e-6)
    assert np.isnan(panel.diversity(flat((9, 9, 9)))).all()


def test_darkness_and_saturation_are_shares():
    image = flat((0, 0, 0))
    image[:, :4], image[:, 4:8] = (255, 0, 0), (200, 100, 100)
    assert panel.saturation(image)[0] == pytest.approx((1 + 0.5) / 4)
    assert panel.dark_share(image)[0] == pytest.approx(0.5)


def test_detail_makes_a_jpeg_longer():
    noise = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    assert panel.jpeg_bytes(noise)[0] > 2 * panel.jpeg_bytes(flat((9, 9, 9)))[0] > 0


def test_vendi_counts_different_pictures():
    far = flat((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
    assert panel.vendi(far) == pytest.approx(4, abs=1e-2)
    assert panel.vendi(far[[0, 0, 0, 0]]) == pytest.approx(1, abs=1e-6)
    assert panel.vendi(far[[0, 0, 1, 1]]) == pytest.approx(2, abs=1e-2)


def test_every_image_gets_every_statistic():
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    rows = panel.statistics(images)
    assert [tuple(row) for row in rows] == [tuple(panel.STATISTICS)] * 3
    assert all(0 < row["edge_density"] < 1 and 0 < row["colour_entropy"] < 6 for row in rows)


def test_statistics_do_not_hang_on_how_many_images_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    rows = panel.statistics(images)
    monkeypatch.setattr(panel, "AT_ONCE", 2 * images[0].nbytes)
    assert panel.statistics(images) == rows
