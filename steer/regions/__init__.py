"""Parts of a prompt as positions: a piece of its text, or a box in one of its pictures.

What is chosen belongs to one prompt, or one batch: the inputs that a processor made. The result is a `positions.mask`
and goes wherever positions go. A token that holds the smallest part of a piece of text belongs to it.

Where image tokens look is found by showing the processor pictures of the same size whose values say where each pixel
is; no architecture is known here. That tells which pixels reach which patch. Which patches make a token is told by how
many there are of each, and holds for models that keep the raster or put squares of it together. A connector that reads
the whole picture into each token (a resampler) has tokens without a place, and nothing in a processor can show that.
"""

from .pictures import footprints, image_region
from .text import char_range, prompt_text, text_span

__all__ = ["char_range", "footprints", "image_region", "prompt_text", "text_span"]
