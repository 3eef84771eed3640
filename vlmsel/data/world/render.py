"""Pictures of the embedded world: a scene as a 48 x 48 RGB image.

Shapes are drawn at four times the size and reduced, so that edges are smooth; letters come from Pillow's built-in
bitmap font, one per 8 pixels.
"""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from vlmsel.data.world.scenes import CANVAS, CELL, COLORS, SIZES, Scene, Thing

_SCALE = 4
LETTER = 8  # pixels per letter of a sign
_BOARD = (225, 225, 215)
_INK = (15, 15, 15)


def render(scene: Scene) -> Image.Image:
    """Return the scene as an RGB image of 48 x 48 pixels."""
    size = CANVAS * _SCALE
    canvas = Image.new("RGB", (size, size), (scene.background,) * 3)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        _draw_shape(draw, thing, (scene.background,) * 3)
    image = canvas.resize((CANVAS, CANVAS), Image.Resampling.BOX)
    if scene.word is not None and scene.sign_row is not None:
        _draw_sign(ImageDraw.Draw(image), scene.word, scene.sign_row)
    return image


def _draw_shape(draw: ImageDraw.ImageDraw, thing: Thing, background: tuple[int, int, int]) -> None:
    x, y = (_SCALE * value for value in thing.center)
    r = _SCALE * SIZES[thing.size] / 2
    color, box = COLORS[thing.color], (x - r, y - r, x + r, y + r)
    if thing.shape == "circle":
        draw.ellipse(box, fill=color)
    elif thing.shape == "square":
        draw.rectangle(box, fill=color)
    elif thing.shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=color)
    elif thing.shape == "cross":
        draw.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=color)
        draw.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=color)
    else:
        draw.ellipse(box, fill=color)
        draw.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=background)


def letter_left(word: str, index: int) -> int:
    """Return where a letter of a sign begins, in pixels from the left."""
    return (CANVAS // LETTER - len(word)) // 2 * LETTER + index * LETTER


def _draw_sign(draw: ImageDraw.ImageDraw, word: str, row: int) -> None:
    top = row * CELL
    draw.rectangle((0, top, CANVAS - 1, top + CELL - 1), fill=_BOARD)
    font = ImageFont.load_default_imagefont()
    for index, letter in enumerate(word.upper()):
        draw.text((letter_left(word, index) + 1, top + 2), letter, fill=_INK, font=font)
