"""Test that previews show every image large enough and at its position, with class names, on pages of bounded size."""

from __future__ import annotations

import io
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cafe_core.synthetic_set.preview import BACKGROUND, MAX_PAGE_SIDE, Page, draw_page, plan_page, png_bytes


def _pixels(classes: int, per_class: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (classes, per_class, *shape), dtype=np.uint8)


def _draw(names: list[str], per_class: int, shape: tuple[int, int, int] = (1, 8, 8)) -> tuple[Page, NDArray[np.uint8]]:
    page = plan_page(names, per_class, *shape[1:])
    pixels = _pixels(len(names), per_class, shape)
    return page, np.asarray(draw_page(page, page.select(pixels)))


def _names(count: int) -> list[str]:
    return [f"class {k}" for k in range(count)]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 48), (3, 64, 64), (1, 1, 1)])
@pytest.mark.parametrize(("classes", "per_class"), [(2, 1), (10, 1), (3, 4)])
def test_draws_every_image_scaled_by_a_whole_number(shape: tuple[int, int, int], classes: int, per_class: int) -> None:
    page, image = _draw(_names(classes), per_class, shape)
    assert page.complete
    assert min(page.image_height, page.image_width) >= 64
    pixels, repeat = _pixels(classes, per_class, shape), page.scale.repeat
    for k in range(classes):
        for column in range(per_class):
            x, y = page.image_position(k, column)
            cell = image[y : y + page.image_height, x : x + page.image_width]
            expected = pixels[k, column].transpose(1, 2, 0).repeat(repeat, axis=0).repeat(repeat, axis=1)
            np.testing.assert_array_equal(cell.reshape(expected.shape), expected)
            assert (image[y - 1, x : x + page.image_width] == BACKGROUND).all()
    assert image.ndim == (2 if shape[0] == 1 else 3)
    assert image.shape[:2] == page.size[::-1]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 512, 512)])
@pytest.mark.parametrize(
    ("classes", "per_class"), [(2, 1), (10, 1), (26, 1), (100, 1), (1000, 1), (10, 10), (100, 10), (1000, 50), (10, 50), (1, 1)]
)
def test_pages_are_bounded_and_not_tall(shape: tuple[int, int, int], classes: int, per_class: int) -> None:
    page = plan_page(_names(classes), per_class, *shape[1:])
    width, height = page.size
    assert max(width, height) <= MAX_PAGE_SIDE
    assert 0.75 < width / height < 5
    assert page.image_height >= 64
    assert page.rows == classes or page.rows > 100


@pytest.mark.parametrize(("height", "width"), [(8, 1000), (1000, 8), (3000, 3000), (5, 512)])
def test_images_of_any_shape_stay_within_the_page(height: int, width: int) -> None:
    page = plan_page(_names(30), 30, height, width)
    assert max(page.size) <= MAX_PAGE_SIDE
    image = draw_page(page, page.select(np.broadcast_to(np.uint8(0), (30, 30, 1, height, width))))
    assert image.size == page.size


def test_large_images_of_many_classes_are_reduced_by_skipping_pixels() -> None:
    page = plan_page(_names(100), 1, 512, 512)
    assert page.complete
    assert (page.scale.step, page.image_height) == (8, 64)


def test_states_how_much_of_a_large_set_is_shown() -> None:
    page, image = _draw(_names(1500), 30, (1, 4, 4))
    assert not page.complete
    assert page.description() == f"{page.rows} of 1500 classes, 5 of 30 images of each"
    assert image[-24:].min() < 128  # the line below the images
    opened = Image.open(io.BytesIO(png_bytes(Image.fromarray(image), page.description())))
    assert opened.info["Description"] == page.description()


def test_shows_fewer_images_per_class_before_fewer_classes() -> None:
    page = plan_page(_names(100), 20, 32, 32)
    assert page.rows == 100
    assert 5 <= page.columns < 20


def test_file_size_of_a_page_of_noise_is_bounded() -> None:
    page, image = _draw(_names(40), 5, (3, 128, 128))
    assert len(png_bytes(Image.fromarray(image), page.description())) < 3 * MAX_PAGE_SIDE**2


def test_equal_sets_give_equal_files() -> None:
    first, second = (png_bytes(Image.fromarray(_draw(_names(3), 2)[1]), "3 classes") for _ in range(2))
    assert first == second


# -- labels


def _label_area(page: Page, image: NDArray[np.uint8], k: int) -> NDArray[np.uint8]:
    x, y = page.image_position(k, 0)
    return image[y : y + page.image_height, x - page.label_width - 4 : x - 2]


@pytest.mark.parametrize("channels", [1, 3])
def test_draws_each_class_name_left_of_its_images(channels: int) -> None:
    page, image = _draw(["cat", "dog", "eel"], 2, (channels, 8, 8))
    assert page.labels == ("cat", "dog", "eel")
    areas = [_label_area(page, image, k) for k in range(3)]
    assert all(area.min() < 128 < area.max() for area in areas)  # dark text on a light page
    assert not any(np.array_equal(areas[a], areas[b]) for a, b in [(0, 1), (1, 2), (0, 2)])


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("T-shirt/top", "T-shirt/top"),
        ("naïve café", "naive cafe"),
        ("tab\there\n", "tab here"),
        ("犬", "#1"),
        ("", "#1"),
        ("\ud800", "#1"),
        ("\0", "#1"),
        ("犬 dog", "犬 dog"),  # a character that the font lacks is drawn as a box
    ],
)
def test_labels_contain_what_the_font_can_draw(name: str, label: str) -> None:
    page, image = _draw(["a", name], 1)
    assert page.labels[1] == label
    assert _label_area(page, image, 1).min() < 128


@pytest.mark.parametrize("name", ["an extraordinarily long name of a class", "x" * 100_000, "W" * 30, "犬" * 10_000 + "dog"])
def test_long_names_are_truncated_with_an_ellipsis(name: str) -> None:
    page, image = _draw([name, "b"], 1)
    assert page.labels[0].endswith("…") or page.labels[0] == "#0"
    assert page.label_width <= 160
    assert _label_area(page, image, 0)[:, 0].min() == BACKGROUND  # nothing is cut off at the left edge


def test_drawing_needs_neither_torch_nor_matplotlib() -> None:
    code = "import sys, cafe_core.synthetic_set.synthetic_set as _; sys.exit(bool({'torch', 'matplotlib'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_picture_in_the_readme_is_current(tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "docs" / "images"
    for name in ("draw.py", "mnist.zip"):
        shutil.copy(folder / name, tmp_path)
    runpy.run_path(str(tmp_path / "draw.py"), run_name="__main__")
    drawn, committed = (Image.open(io.BytesIO((path / "mnist.png").read_bytes())) for path in (tmp_path, folder))
    assert drawn.size == committed.size
    assert drawn.info == committed.info
