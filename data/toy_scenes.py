"""The toy data's scenes: coloured shapes on a background, drawn, and described in five true captions each."""

import math
import random
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from PIL import Image, ImageDraw

CAPTIONS_PER_IMAGE = 5
MAX_WORDS = 30  # the loaders cut a caption there, and every shape must be named before the cut

COLOURS = {
    "red": (215, 35, 40),
    "orange": (255, 140, 15),
    "yellow": (250, 220, 35),
    "green": (30, 145, 60),
    "blue": (35, 75, 215),
    "purple": (130, 45, 170),
    "pink": (250, 130, 195),
    "black": (20, 20, 22),
}
RADII = {"small": 0.115, "medium": 0.165, "large": 0.235}  # of the circle around a shape, in image sides
_SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium sized"),
    "large": ("large", "big"),
}


class Background(NamedTuple):
    pattern: str
    tones: tuple  # RGB colours
    phrases: tuple  # "on ..."
    predicates: tuple  # "the background is ..."


def _plain(colour, tone):
    return Background(
        "plain",
        (tone,),
        (f"a {colour} background", f"a plain {colour} background"),
        (colour, f"plain {colour}"),
    )


BACKGROUNDS = {
    "white": _plain("white", (250, 250, 250)),
    "grey": _plain("grey", (150, 155, 155)),
    "black": _plain("black", (15, 15, 18)),
    "beige": _plain("beige", (235, 215, 185)),
    "gradient": Background(
        "gradient",
        ((130, 190, 245), (245, 250, 255)),
        (
            "a light blue gradient",
            "a background that fades from light blue to white",
            "a fading light blue background",
        ),
        ("a light blue gradient", "light blue and fades to white"),
    ),
    "stripes": Background(
        "stripes",
        ((185, 225, 190), (248, 252, 248)),
        ("a striped background", "pale green stripes", "a background of green and white stripes"),
        ("striped", "striped in pale green"),
    ),
    "checkerboard": Background(
        "checkerboard",
        ((165, 165, 170), (240, 240, 240)),
        ("a checkerboard", "a checkered background", "a grey and white checkerboard"),
        ("checkered", "a checkerboard"),
    ),
}
_CLEAR = 110  # least RGB distance between a shape and every tone of its background


class Shape(NamedTuple):
    kind: str  # a key of OUTLINES
    colour: str  # a key of COLOURS
    size: str  # a key of RADII
    row: int  # 0 top, 1 middle, 2 bottom
    column: int  # 0 left, 1 middle, 2 right
    x: float  # centre, in image sides from the left
    y: float  # and from the top
    turn: float  # radians, too small to make a diamond of a square
    rgb: tuple  # a shade of the colour


class Scene(NamedTuple):
    background: str  # a key of BACKGROUNDS
    shapes: tuple  # one to three, apart from each other, no two of one kind and colour


# ---- outlines: polygons about (0, 0) that reach out to radius 1, y pointing down


def _arc(corners, radius=1.0, start=-90.0):
    angles = [math.radians(start + 360 * corner / corners) for corner in range(corners)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _star():
    tips, notches = _arc(5), _arc(5, radius=0.45, start=-54)
    return [point for pair in zip(tips, notches) for point in pair]


def _ring():
    outer, inner = _arc(48), _arc(48, radius=0.55)
    return (
        outer + outer[:1] + inner[:1] + inner[::-1]
    )  # a closed outer circle, a cut inwards, the hole the other way round


def _cross(arm=0.32, reach=0.95):
    quarter = [(arm, -reach), (arm, -arm), (reach, -arm)]
    points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return points


def _heart():
    angles = [2 * math.pi * step / 48 for step in range(48)]
    curve = [
        (
            16 * math.sin(a) ** 3,
            5 * math.cos(2 * a) + 2 * math.cos(3 * a) + math.cos(4 * a) - 13 * math.cos(a),
        )
        for a in angles
    ]
    return [(x / 18, (y - 2) / 18) for x, y in curve]


OUTLINES = {
    "circle": _arc(48, radius=0.95),
    "square": _arc(4, start=-45),
    "triangle": _arc(3),
    "star": _star(),
    "cross": _cross(),
    "ring": _ring(),
    "diamond": [(0, -1), (0.62, 0), (0, 1), (-0.62, 0)],
    "heart": _heart(),
}


# ---- scenes


def _clear_colours(background):
    tones = BACKGROUNDS[background].tones
    return [name for name, rgb in COLOURS.items() if min(math.dist(rgb, tone) for tone in tones) >= _CLEAR]


def _make_shape(rng, colours):
    colour, size = rng.choice(colours), rng.choice(list(RADII))
    row, column = rng.randrange(3), rng.randrange(3)
    low, high = RADII[size] + 0.01, 0.99 - RADII[size]
    y, x = (min(max(0.2 + 0.3 * cell + rng.uniform(-0.03, 0.03), low), high) for cell in (row, column))
    rgb = tuple(min(max(value + rng.randint(-12, 12), 0), 255) for value in COLOURS[colour])
    return Shape(
        rng.choice(list(OUTLINES)), colour, size, row, column, x, y, math.radians(rng.uniform(-9, 9)), rgb
    )


def _compatible(a, b):
    apart = math.dist((a.x, a.y), (b.x, b.y)) > RADII[a.size] + RADII[b.size] + 0.01
    return apart and (a.kind, a.colour) != (b.kind, b.colour)


def make_scene(rng):
    """A random `Scene` from the random.Random `rng`."""
    background = rng.choice(list(BACKGROUNDS))
    colours = _clear_colours(background)
    count = rng.choice((1, 2, 2, 3, 3))
    while True:
        shapes = tuple(_make_shape(rng, colours) for _ in range(count))
        if all(_compatible(a, b) for a, b in combinations(shapes, 2)):
            return Scene(background, shapes)


# ---- drawing


@lru_cache(maxsize=len(BACKGROUNDS))
def _background(name, side):
    pattern, tones = BACKGROUNDS[name].pattern, BACKGROUNDS[name].tones
    image = Image.new("RGB", (side, side), tones[0])
    draw = ImageDraw.Draw(image)
    if pattern == "gradient":
        for y in range(side):
            row = tuple(round(a + (b - a) * y / (side - 1)) for a, b in zip(*tones))
            draw.line([(0, y), (side, y)], fill=row)
    if pattern in ("stripes", "checkerboard"):
        step = side / 8
        for row in range(8):
            for column in range(8):
                if (column if pattern == "stripes" else row + column) % 2:
                    draw.rectangle(
                        [column * step, row * step, (column + 1) * step - 1, (row + 1) * step - 1],
                        fill=tones[1],
                    )
    return image


def draw_scene(scene, *, resolution=72, supersampling=4):
    """The scene as an RGB PIL image of `resolution` x `resolution` pixels."""
    side = resolution * supersampling
    image = _background(scene.background, side).copy()
    draw = ImageDraw.Draw(image)
    for shape in scene.shapes:
        cos, sin = (RADII[shape.size] * f(shape.turn) for f in (math.cos, math.sin))
        outline = [
            (shape.x + cos * x - sin * y, shape.y + sin * x + cos * y) for x, y in OUTLINES[shape.kind]
        ]
        # Whole pixels, so that the last bit of a machine's sine cannot show.
        draw.polygon([(round(side * x), round(side * y)) for x, y in outline], fill=shape.rgb)
    return image.reduce(supersampling)


# ---- captions


def _noun(shape, told, rng):
    words = f"{shape.colour} {shape.kind}"
    if "size" in told:
        words = f"{rng.choice(_SIZE_WORDS[shape.size])} {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _place(shape, rng):
    """Where the shape is in the image, as "in the upper left corner"."""
    edge, half = (("top", "upper"), ("", ""), ("bottom", "lower"))[shape.row]
    side = ("left", "", "right")[shape.column]
    if edge and side:
        return rng.choice(
            (
                f"in the {edge} {side} corner",
                f"in the {half} {side} corner",
                f"at the {edge} {side}",
                f"in the {half} {side}",
            )
        )
    if edge:
        return rng.choice((f"at the {edge}", f"at the {edge} centre", f"in the {half} middle"))
    if side:
        return rng.choice((f"on the {side}", f"on the {side} side", f"in the middle {side}"))
    return rng.choice(("in the middle", "in the centre", "at the centre"))


def _relation(a, b, rng):
    """Where `a` is from `b`, as "above" or "below and to the left of"."""
    across, down = a.x - b.x, a.y - b.y
    side = "left" if across < 0 else "right"
    vertical = "above" if down < 0 else rng.choice(("below", "under"))
    if abs(down) > 2 * abs(across):
        return vertical
    if abs(across) > 2 * abs(down):
        return rng.choice((f"to the {side} of", f"{side} of"))
    return f"{'above' if down < 0 else 'below'} and to the {side} of"


def _join(phrases, rng):
    if len(phrases) == 1:
        return phrases[0]
    comma = rng.choice(("", ",")) if len(phrases) > 2 else ""
    return f"{', '.join(phrases[:-1])}{comma} and {phrases[-1]}"


def _chain(shapes, nouns, verb, rng):
    """Two or three shapes from one another: "a red star above a blue ring, which is left of a pink heart"."""
    text = f"{nouns[0]} {verb}{_relation(shapes[0], shapes[1], rng)} {nouns[1]}"
    if len(shapes) == 2:
        return text
    if rng.random() < 0.5:
        return f"{text}, which is {_relation(shapes[1], shapes[2], rng)} {nouns[2]}"
    return f"{text}, and {nouns[2]} {verb}{_place(shapes[2], rng)}"


def _phrase(shapes, told, rng):
    """A noun phrase: "a red star at the top and a blue ring in the lower left"."""
    nouns = [_noun(shape, told, rng) for shape in shapes]
    if "place" in told and len(shapes) > 1 and rng.random() < 0.5:
        return _chain(shapes, nouns, "", rng)
    if "place" in told:
        nouns = [f"{noun} {_place(shape, rng)}" for noun, shape in zip(nouns, shapes)]
    return _join(nouns, rng)


def _statement(shapes, told, rng):
    """A clause with a verb that tells the places: "at the top there is a red star, in the lower left a blue
    ring".
    """
    nouns = [_noun(shape, told, rng) for shape in shapes]
    if len(shapes) > 1 and rng.random() < 0.6:
        return _chain(shapes, nouns, "is ", rng)
    if len(shapes) == 1 and rng.random() < 0.6:
        return f"{nouns[0]} {rng.choice(('is', 'sits'))} {_place(shapes[0], rng)}"
    first, *others = (_place(shape, rng) for shape in shapes)
    return ", ".join(
        [f"{first} there is {nouns[0]}", *(f"{place} {noun}" for place, noun in zip(others, nouns[1:]))]
    )


_LEADS = (
    "",
    "",
    "",
    "a picture of ",
    "an image of ",
    "a photo of ",
    "a drawing of ",
    "there is ",
    "we see ",
    "this shows ",
)


def _introduced(phrase, count, rng):
    number = ("one shape: ", "two shapes: ", "three shapes: ")[count - 1]
    return rng.choice((*_LEADS, number)) + phrase


def _sentences(scene, rng):
    """One or two sentences, in lower case and without full stops, that name every shape with its colour.

    The fewer the shapes the more is told of each, so that the caption still picks its image out of a gallery.
    """
    shapes = rng.sample(scene.shapes, len(scene.shapes))
    told = rng.sample(("size", "place", "background"), rng.randint(3 - len(shapes), 3))
    background = BACKGROUNDS[scene.background]
    ground = rng.choice(background.phrases)
    if "place" in told and rng.random() < 0.4:
        text = _statement(shapes, told, rng)
    else:
        phrase = _phrase(shapes, told, rng)
        if "background" in told and rng.random() < 0.3:
            return [rng.choice((f"on {ground} there is {phrase}", f"{ground} with {phrase}"))]
        text = _introduced(phrase, len(shapes), rng)
    if "background" not in told:
        return [text]
    if rng.random() < 0.2:
        return [text, f"the background is {rng.choice(background.predicates)}"]
    return [f"{text}{',' if 'place' in told else ''} {rng.choice(('on', 'on', 'against'))} {ground}"]


def _typed(sentences, rng):
    """The sentences as people type them: most with capitals and a full stop, some without either."""
    if rng.random() < 0.65:
        sentences = [sentence[0].upper() + sentence[1:] for sentence in sentences]
    return ". ".join(sentences) + rng.choice((".", ".", ""))


def make_captions(scene, rng):
    """Five different captions of the scene, at most MAX_WORDS words each, from the random.Random `rng`."""
    captions = []
    while len(captions) < CAPTIONS_PER_IMAGE:
        sentences = _sentences(scene, rng)
        if sentences not in captions and len(" ".join(sentences).split()) <= MAX_WORDS:
            captions.append(sentences)
    return [_typed(sentences, rng) for sentences in captions]


def make_example(seed, split, index):
    """Scene `index` of `split` and its five captions: a function of its arguments alone."""
    rng = random.Random(f"{seed}/{split}/{index}")
    scene = make_scene(rng)
    return scene, make_captions(scene, rng)
