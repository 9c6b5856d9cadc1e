"""What was looked at, in words for pictures and pages."""

from __future__ import annotations

from .found import Look, Token

NAMED = 8
"""So many heads are named one by one."""


def title(found: Look) -> str:
    """The prompt, the model and what was attached."""
    methods = f" with {', '.join(found.methods)}" if found.methods else ""
    return f"{found.prompt!r} to {found.model_class}{methods}"


def head_words(found: Look, mean: bool = True) -> str:
    """Whose attention, of which heads, and whether their mean is shown."""
    layers = len({layer for layer, _ in found.heads})
    named = ", ".join(f"{layer}.{head}" for layer, head in found.heads)
    many = f"{len(found.heads)} heads in {layers} layer{'s' * (layers > 1)}"
    which = many if len(found.heads) > NAMED else f"head{'s' * (len(found.heads) > 1)} {named}"
    where = "the prompt's last token" if found.query == "last" else repr(found.query)
    kind = "attention" if found.attention == "self" else f"{found.attention}-attention"
    return f"{kind} of {where}, {'mean of ' * (mean and len(found.heads) > 1)}{which}"


def share_words(share: float) -> str:
    """A share in percent, never as nothing where it is something."""
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def picture_words(picture: int, pictures: int, view: int, views: int) -> str:
    """Which picture, and how it was read, where there are several."""
    number = f" {picture + 1}" if pictures > 1 else ""
    return f"picture{number}" + (f", view {view + 1} of {views}" if views > 1 else "")


def token_words(token: Token) -> str:
    """A token as one can read it: white space too, and its number where it says nothing."""
    bare = token.text.strip()
    if not token.text:
        return f"token {token.id}"
    return bare if bare and "\n" not in bare else repr(token.text)
