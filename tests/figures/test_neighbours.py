import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from sklearn.datasets import load_digits

from eir_jax.figures import neighbours as figures
from eir_jax.figures import png
from eir_jax.system.errors import UserError


def digits(rows=200):
    data = load_digits()
    images = (data.images[:rows] * 15.9).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    return images[..., None].repeat(3, -1), data.data[:rows], data.target[:rows]


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def count(image, colour):
    wanted = np.round(np.array(to_rgb(colour)) * 255).astype(np.uint8)
    return int((image == wanted).all(axis=-1).sum())


def found_at(page, part):
    """Where the part's top left corner lies in the page, as (row, column) pairs."""
    height, width = part.shape[:2]
    corners = np.argwhere((page[: -height + 1, : -width + 1] == part[0, 0]).all(-1))
    return [
        (y, x)
        for y, x in corners.tolist()
        if (page[y, x : x + width] == part[0]).all()
        and (page[y : y + height, x : x + width] == part).all()
    ]


def test_draws_the_images_pixel_by_pixel(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    path = tmp_path / "new" / "folder" / "grid.png"
    neighbours = np.array([[1, 2], [4, 5]])
    label = np.array([0, 0, 1, 1, 0, 0])
    figures.neighbour_grid(images, neighbours, np.array([0, 3]), label, path)
    page = pixels(path)
    corners = [found_at(page, x.repeat(10, 0).repeat(10, 1)) for x in images]
    assert [len(x) for x in corners] == [1] * 6
    (query, first, second), (lower, *_) = [
        [corners[i][0] for i in row] for row in ([0, 1, 2], [3, 4, 5])
    ]
    assert query[0] == first[0] == second[0] < lower[0] and lower[1] == query[1]
    apart, between = first[1] - query[1], second[1] - first[1]
    assert apart > between + 30
    # One green frame and three pink ones, which have their class written below.
    green, pink = (count(page, x) for x in (figures.SAME, figures.OTHER))
    assert pink > 2.5 * green > 0
    assert [x.name for x in path.parent.iterdir()] == ["grid.png"]


@pytest.mark.parametrize("size", [1, 32, 300])
def test_any_size_fits_the_page(tmp_path, size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, size, size // 2 + 1, 3), np.uint8)
    path = tmp_path / "grid.png"
    names = ["Black_footed_Albatross, quite a long name of a bird", "", "$x_"]
    figures.neighbour_grid(
        images,
        np.tile(np.arange(1, 9), (4, 1)),
        np.arange(4),
        np.arange(9) % 4,
        path,
        rng.uniform(-1, 1, (4, 8)),
        class_names=names,
        title="A title",
    )
    page = pixels(path)
    edge = np.concatenate(
        [page[[0, -1]].reshape(-1, 3), page[:, [0, -1]].reshape(-1, 3)]
    )
    assert (edge == 255).all() and page.shape[1] < 2600


def test_without_labels_frames_are_grey(tmp_path):
    images, rows, _ = digits(30)
    path = tmp_path / "grid.png"
    figures.draw_neighbours(images, {"": rows}, None, path)
    page = pixels(path)
    assert count(page, figures.UNKNOWN) > 1000
    assert count(page, figures.SAME) == count(page, figures.OTHER) == 0


def test_draws_the_neighbours_found(tmp_path):
    _, rows, label = digits()
    images = np.random.default_rng(0).integers(0, 256, (200, 16, 16, 3), np.uint8)
    path = tmp_path / "grid.png"
    figures.draw_neighbours(images, {"": rows}, label, path)
    page = pixels(path)
    assert count(page, figures.SAME) > 5 * count(page, figures.OTHER)
    query = figures.choose_queries(len(rows), label)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for row in query:
        order = np.argsort(-(unit @ unit[row]))[:9]
        assert row == order[0]
        for i in order:
            assert found_at(page, images[i].repeat(10, 0).repeat(10, 1))


def test_a_tiny_set_and_the_same_file_again(tmp_path):
    path = tmp_path / "grid.png"
    for _ in range(2):
        figures.draw_neighbours(
            np.zeros((3, 8, 8, 3), np.uint8), {"": np.eye(3)}, np.array([0, 0, 1]), path
        )
    assert pixels(path).ndim == 3


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    path.write_text("old")

    def fail(self, file):
        file.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(png.FigureCanvasAgg, "print_png", fail)
    with pytest.raises(UserError, match=r"grid\.png cannot be written: disk full"):
        figures.draw_neighbours(
            np.zeros((3, 8, 8, 3), np.uint8), {"": np.eye(3)}, np.array([0, 0, 1]), path
        )
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_queries_are_of_different_classes_and_seeded():
    label = np.random.default_rng(0).integers(0, 10, 100)
    query = figures.choose_queries(100, label)
    np.testing.assert_array_equal(query, figures.choose_queries(100, label))
    assert len(set(label[query])) == 4
    assert (np.diff(label[query]) > 0).all()
    others = {tuple(figures.choose_queries(100, label, seed=i)) for i in range(9)}
    assert len(others) > 5


def test_queries_where_classes_are_few():
    label = np.array([5] * 50 + [7])
    query = figures.choose_queries(51, label)
    assert len(set(query)) == 4 and sorted(label[query]) == [5, 5, 5, 7]
    assert len(figures.choose_queries(3, np.zeros(3, int))) == 3
    assert len(set(figures.choose_queries(9))) == 4


@pytest.mark.parametrize(
    "images", [np.zeros((3, 8, 8, 3)), np.zeros((3, 8, 8, 1), np.uint8)]
)
def test_images_must_be_uint8_rgb(tmp_path, images):
    with pytest.raises(UserError, match="images must be uint8"):
        figures.draw_neighbours(images, {"": np.eye(3)}, None, tmp_path / "grid.png")
