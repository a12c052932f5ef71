"""Caption cleaning, as the image-text retrieval literature does it (ALBEF, BLIP and the works after them)."""

import re

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def clean_caption(caption, max_words=30):
    """Lower case, `.!"()*#:;~` to spaces, runs of white space to one space, at most `max_words` words."""
    words = _PUNCTUATION.sub(" ", caption.lower()).split()
    return " ".join(words[:max_words])
