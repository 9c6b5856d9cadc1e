"""What a model attends to in a picture, and what it is about to say, before and after a method."""

from .found import Look, Picture, Seen, Token
from .looking import look

__all__ = ["Look", "Picture", "Seen", "Token", "look"]
