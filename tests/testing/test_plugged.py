"""A plugin that is there for a while."""

from __future__ import annotations

import pytest

import steer
from steer import testing
from steer.errors import PluginError, UnknownNameError

from .methods import Right


def test_a_method_is_there_inside_and_gone_after():
    with testing.plugged(Right) as given:
        assert given is Right
        assert steer.create("right", factor=2.0) == Right(2.0)
    with pytest.raises(UnknownNameError):
        steer.create("right")


def test_it_is_gone_after_an_error_too():
    with pytest.raises(ZeroDivisionError), testing.plugged(Right):
        raise ZeroDivisionError
    assert "right" not in steer.methods()


def test_an_object_with_hooks_is_called():
    seen = []

    class Watches:
        @steer.hookimpl
        def steer_session_exit(self, session, report):
            seen.append(report)

    model, inputs = testing.tiny("clip")
    with testing.plugged(Watches(), name="watches"), testing.plugged(Right), steer.attach(model, Right()):
        model(**inputs)
    with steer.attach(model, Right()):
        model(**inputs)
    assert len(seen) == 1


def test_the_same_name_twice_is_told():
    with testing.plugged(Right), pytest.raises(PluginError, match="'plugged'"):
        with testing.plugged(Right):
            pass
    assert "right" not in steer.methods()


def test_a_hook_with_wrong_arguments_is_told_and_not_kept():
    class Wrong:
        @steer.hookimpl
        def steer_register_methods(self, nothing):
            pass

    with pytest.raises(PluginError, match="nothing"), testing.plugged(Wrong(), name="wrong"):
        pass
    with testing.plugged(Right, name="wrong"):
        assert "right" in steer.methods()


def test_a_hook_that_there_is_none_of_is_told_and_not_kept():
    class Wrong:
        @steer.hookimpl
        def steer_register_method(self, registry):
            pass

    with pytest.raises(PluginError, match="steer_register_method"), testing.plugged(Wrong(), name="wrong"):
        pass
    with testing.plugged(Right, name="wrong"):
        assert "right" in steer.methods()
