"""Distilled pairs as one picture: initial above learned image, and below them what the learned text says."""

from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from distill_utils.pages.images import to_picture

_WIDTH, _MOST_PAIRS = 1216, 8
_SIDE = 180  # about that of an image, in pixels
_GAP, _MARGIN = 8, 4
_FONT = Path("fonts/ttf/DejaVuSans.ttf")  # among matplotlib's data, so that every machine draws the same
_LINE, _MOST_LINES = 20, 7
_BACK, _INK, _SOFT = "#ffffff", "#1d2126", "#666d76"


def draw_pairs(run):
    """The first pairs of an opened run that fit beside each other, as a PIL image some 1,200 pixels wide."""
    rows = [("learned" if run.step else "image", run.final)]
    if run.initial is not None and len(run.initial) == len(run.final):
        rows.insert(0, ("initial", run.initial))
    heading, sentences = _sentences(run)
    pictures = [
        (name, [_scaled(pixels) for pixels in synthetic.pixels()[:_MOST_PAIRS]]) for name, synthetic in rows
    ]
    width, height = pictures[0][1][0].size
    columns = max(1, min(len(pictures[0][1]), (_WIDTH - 2 * _MARGIN + _GAP) // (width + _GAP)))
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / _FONT, 15)
    wrapped = [wrap(sentence, width, font.getlength) for sentence in sentences[:columns]]
    lines = max(map(len, wrapped), default=0)
    whole = len(rows) * (_LINE + height + _GAP) + (lines + 1) * _LINE * bool(lines) + 2 * _MARGIN
    canvas = Image.new("RGB", (columns * (width + _GAP) - _GAP + 2 * _MARGIN, whole), _BACK)
    draw, top = ImageDraw.Draw(canvas), _MARGIN
    for name, images in pictures:
        draw.text((_MARGIN, top), name, _SOFT, font)
        for column, image in enumerate(images[:columns]):
            canvas.paste(image, (_MARGIN + column * (width + _GAP), top + _LINE))
        top += _LINE + height + _GAP
    if lines:
        draw.text((_MARGIN, top), heading, _SOFT, font)
    for column, sentence in enumerate(wrapped):
        for number, line in enumerate(sentence):
            draw.text((_MARGIN + column * (width + _GAP), top + (number + 1) * _LINE), line, _INK, font)
    return canvas


def _sentences(run):
    """What the learned texts say, and how that is known."""
    if run.nearest:
        return "nearest caption", [near[0]["caption"] if near else "" for near in run.nearest]
    return "began as", [source or "noise" for source in run.sources]


def _scaled(pixels):
    """An image of about _SIDE pixels: small ones by a whole factor, so that pixels stay pixels."""
    picture = to_picture(pixels)
    factor = max(1, round(_SIDE / max(picture.size)))
    if max(picture.size) <= _SIDE:
        return picture.resize([side * factor for side in picture.size], Image.Resampling.NEAREST)
    scale = _SIDE / max(picture.size)
    return picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)


def wrap(sentence, width, measure):
    """The sentence in lines no wider than `width` by measure(text) -> pixels; cut after _MOST_LINES."""
    lines = [""]
    for word in sentence[:1000].split():
        longer = f"{lines[-1]} {word}".strip()
        if measure(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:  # a word may be wider than a line
            if measure(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], lines[_MOST_LINES - 1][:-1] + "…"]
    return lines
