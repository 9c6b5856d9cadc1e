"""The method my_plugin, for steer."""

import steer


@steer.hookimpl
def steer_register_methods(registry):
    """Called when someone asks for a method; what is heavy is imported then, and not before."""
    from .method import MyPlugin

    registry.add(MyPlugin)
