"""The table of floors in docs/architecture.md is the list that tests/test_floors.py holds imports to."""

import re

from prose import ROOT
from test_floors import FLOORS

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_table_has_every_room_on_its_floor():
    (table,) = re.findall(r"<!-- floors -->\n((?:\|.*\n)+)", PAGE)
    rows = [row.strip("|").split("|") for row in table.splitlines()[2:]]
    said = {int(floor): re.findall(r"`(\w+)`", rooms) for floor, rooms, _ in rows}
    assert said == {floor: [room for room in rooms if room != "__main__"] for floor, rooms in FLOORS.items()}


def test_floors_come_from_the_top():
    floors = [int(floor) for floor in re.findall(r"^\| (\d) \| `", PAGE, re.MULTILINE)]
    assert floors == sorted(FLOORS, reverse=True)
