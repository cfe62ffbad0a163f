"""The pictures of docs/architecture.md are what the code draws, and are all shown there."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from experiments.docs.draw_architecture import FOLDER, PICTURES, ROOT
from experiments.docs.svg import DARK, LIGHT, Drawing, number

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_the_code_draws(name):
    drawn = PICTURES[name]().render()
    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == drawn, (
        "run python -m experiments.docs.draw_architecture"
    )


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_xml_and_everything_lies_within_its_card(name):
    root = ElementTree.fromstring(PICTURES[name]().render())
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    for shape in root.iter():
        for axis, size, limit in (("x", "width", width), ("y", "height", height)):
            if axis in shape.attrib:
                start, length = float(shape.attrib[axis]), float(shape.attrib.get(size, 0))
                assert start >= 0, shape.attrib
                assert start + length <= limit, shape.attrib


def test_the_folder_holds_these_pictures_and_the_page_shows_each():
    assert {path.stem for path in FOLDER.glob("*.svg")} == set(PICTURES)
    assert set(re.findall(r"\(images/(\w+)\.svg\)", PAGE)) == set(PICTURES)


def test_every_role_has_a_colour_for_light_and_for_dark_pages():
    assert LIGHT.keys() == DARK.keys()
    drawn = "".join(draw().render() for draw in PICTURES.values())
    used = set(re.findall(r'class="[^"]*?\b[fs]-([\w-]+)', drawn)) | set(re.findall(r' [fs]-([\w-]+)"', drawn))
    assert used <= LIGHT.keys()


def test_coordinates_have_two_digits_and_words_are_escaped():
    assert [number(x) for x in (1.0, 0.125, -0.001, 10.456, 100)] == ["1", "0.12", "0", "10.46", "100"]
    picture = Drawing(10, 10, "a < b")
    picture.text(1, 2, "c & d")
    assert "a &lt; b" in picture.render()
    assert "c &amp; d" in picture.render()
