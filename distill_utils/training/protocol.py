"""The field's protocols: what of a student trains, in experts, matching and evaluation alike."""


def protocol(image_trainable):
    """P1: image tower and text head (MTT-VL, LoRS). P2: a head on the frozen image tower, and the text head
    (RepBlend). The text encoder is frozen in both. Numbers of different protocols do not compare.
    """
    return "P1" if image_trainable else "P2"
