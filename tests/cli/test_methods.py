"""`steer methods` lists what is installed."""

from __future__ import annotations

import json

from tests.files.toy import Toy, ToyPlugin


def test_the_table_and_the_json_list_a_plugins_method(steer_cli, plugged):
    plugged(ToyPlugin(), "toy-plugin")
    table = steer_cli("methods")
    assert table.code == 0
    (row,) = (line for line in table.out.splitlines() if " toy " in line)
    assert Toy.summary in row
    assert Toy.paper in row
    listed = {entry["name"]: entry for entry in json.loads(steer_cli("methods", "--json").out)}
    assert listed["toy"]["plugin"] == "toy-plugin"
    assert listed["toy"]["config"] == {"strength": 1.0, "layers": "all", "note": None, "options": None}
