"""Each hook, implemented by a throw-away plugin, does what hookspecs.py says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import steer
from steer import hookspecs
from steer._plugins import _trace_after, _trace_before, manager
from steer.errors import PluginError, SteerError, UnknownNameError
from steer.model_map import Attention, Layer, ModelMap, Tower
from steer.registry import kernels


@dataclass
class Mine(steer.Method):
    name: ClassVar[str] = "mine_of_the_tests"
    paper: ClassVar[str] = "https://example.org"
    summary: ClassVar[str] = "Does nothing."

    layers: tuple[int, ...]
    strength: float = 1.0

    def interventions(self, model_map):
        return []


class Methods:
    def __init__(self, *classes: object) -> None:
        self.classes = classes

    @steer.hookimpl
    def steer_register_methods(self, registry):
        for cls in self.classes:
            registry.add(cls)


def test_a_registered_method_is_listed_and_created(plugged):
    plugged(Methods(Mine), "mine")
    info = steer.methods()["mine_of_the_tests"]
    assert (info.cls, info.plugin, info.summary, info.paper) == (Mine, "mine", Mine.summary, Mine.paper)
    assert info.to_dict()["config"] == {"layers": "required", "strength": 1.0}
    assert steer.create("mine_of_the_tests", layers=(1,)) == Mine((1,), 1.0)


def test_create_names_what_is_wrong_and_what_exists(plugged):
    plugged(Methods(Mine), "mine")
    with pytest.raises(UnknownNameError, match=r"mine_of_the_test.*mine_of_the_tests"):
        steer.create("mine_of_the_test")
    with pytest.raises(UnknownNameError, match=r"'strenght'.*layers, strength.*'strength'"):
        steer.create("mine_of_the_tests", layers=(1,), strenght=2)
    with pytest.raises(SteerError, match=r"needs layers"):
        steer.create("mine_of_the_tests")


def without(attribute: str) -> type:
    """The method without one of the things that registration asks for."""
    namespace = {"interventions": Mine.interventions, "name": "x", "paper": "p", "summary": "s"}
    del namespace[attribute]
    return dataclass(type("Half", (steer.Method,), namespace))


REFUSED = {
    "not a class": (7, "7"),
    "not a method": (int, "subclass"),
    "no name": (without("name"), "'name'"),
    "no paper": (without("paper"), "'paper'"),
    "no summary": (without("summary"), "'summary'"),
    "no interventions": (without("interventions"), "interventions"),
    "not a dataclass": (type("Plain", (Mine,), {}), "dataclass"),
    "a bad name": (dataclass(type("Bad", (Mine,), {"name": "Mine!"})), "'Mine!'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_method_is_refused_and_the_plugin_named(plugged, name):
    cls, fact = REFUSED[name]
    plugged(Methods(cls), "careless")
    with pytest.warns(RuntimeWarning, match="careless") as caught:
        steer.methods()
    assert fact in str(caught[0].message)


def test_one_class_from_two_plugins_is_an_error_only_if_it_is_another_class(plugged):
    plugged(Methods(Mine, Mine), "mine")
    steer.methods()
    plugged(Methods(dataclass(type("Twin", (Mine,), {}))), "twin")
    with pytest.raises(PluginError, match=r"mine.*twin|twin.*mine"):
        steer.methods()


def test_the_first_answer_to_inspect_wins_and_none_leaves_it_to_the_general_rule(plugged):
    layer = Layer(0, "only", Attention("softmax", "only"))
    told = ModelMap("Told", "told", {"text": Tower("text", "t", 4, (layer,))})

    class Knows:
        @steer.hookimpl
        def steer_inspect_model(self, model):
            return told if isinstance(model, torch.nn.Bilinear) else None

    plugged(Knows())
    assert steer.inspect(torch.nn.Bilinear(1, 1, 1)) is told
    model, _ = steer.zoo.load("tiny-vlm")
    assert steer.inspect(model).model_class == type(model).__name__


def test_an_answer_to_inspect_that_is_no_map_is_refused(plugged):
    class Confused:
        @steer.hookimpl
        def steer_inspect_model(self, model):
            return {"towers": {}}

    plugged(Confused())
    with pytest.raises(PluginError, match="dict"):
        steer.inspect(torch.nn.Linear(1, 1))


def test_sessions_tell_plugins_when_they_open_and_when_the_model_is_restored(plugged):
    model, _ = steer.zoo.load("tiny-vlm")
    seen = []

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    class Watches:
        @steer.hookimpl
        def steer_session_enter(self, session):
            seen.append(("enter", session, hooks() > 0))

        @steer.hookimpl
        def steer_session_exit(self, session, report):
            seen.append(("exit", session, hooks() > 0, report))

    plugged(Watches())
    item = steer.Intervention(steer.sites.resid_out([0]), steer.ops.Scale(1.0))
    with steer.attach(model, item, strict=False) as session:
        pass
    (enter, entered, installed), (leave, left, still, report) = seen
    assert (enter, leave, installed, still) == ("enter", "exit", True, False)
    assert entered is session
    assert left is session
    assert str(report) == str(session.report())


def test_kernels_are_collected_and_two_for_one_op_are_an_error(plugged):
    def function(x):
        return x

    class Brings:
        @steer.hookimpl
        def steer_register_kernels(self, registry):
            registry.add("op_of_the_tests", "cpu", function)

    plugged(Brings(), "first")
    assert kernels()["op_of_the_tests", "cpu"] is function
    plugged(Brings(), "second")
    with pytest.raises(PluginError, match=r"first.*second|second.*first"):
        kernels()


def test_a_session_runs_the_kernel_that_a_plugin_brought_while_it_is_there():
    class Brings:
        @steer.hookimpl
        def steer_register_kernels(self, registry):
            registry.add("shift", "cpu", lambda h, v, *more, **how: h - 3 * v)

    model, _ = steer.zoo.load("tiny-vlm")
    one = steer.Intervention(steer.sites.resid_out([0]), steer.ops.Add(torch.ones(192)))

    def moved(*items):
        with steer.attach(model, *items), steer.record(model, steer.sites.resid_out([0])) as states:
            model(input_ids=torch.ones(1, 4, dtype=torch.long))
        return states["resid_out", 0]

    plain, before = moved(), moved(one)
    plugin = Brings()
    manager().register(plugin, name="throw-away")
    try:
        torch.testing.assert_close(moved(one), plain - 3)
    finally:
        manager().unregister(plugin)
    assert torch.equal(moved(one), before)


def test_every_hook_has_a_sentence_of_documentation():
    for name in manager().hook.__dict__:
        if name.startswith("steer_"):
            assert getattr(hookspecs, name).__doc__.strip().endswith(".")


def test_the_built_in_plugins_come_through_entry_points():
    names = {name for name, _ in manager().list_name_plugin()}
    assert {"steer-vlm:prompts", "steer-vlm:vectors", "steer-vlm:attention", "steer-vlm:memory"} <= names


def test_the_trace_shows_what_a_plugin_raised(plugged, capsys):
    class Raises:
        @steer.hookimpl
        def steer_inspect_model(self, model):
            raise RuntimeError("not today")

    plugged(Raises())
    stop = manager().add_hookcall_monitoring(_trace_before, _trace_after)
    try:
        with pytest.raises(RuntimeError, match="not today"):
            manager().hook.steer_inspect_model(model=torch.nn.Linear(1, 1))
    finally:
        stop()
    assert "[steer plugins] steer_inspect_model raised RuntimeError: not today" in capsys.readouterr().err
