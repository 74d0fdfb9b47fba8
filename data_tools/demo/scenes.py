"""The little worlds of the procedural corpus: what moves, what it hits, how that looks and how it sounds.

A scene is made from a random generator and a length; then ``scene.events`` holds every hit with its sound, and
``scene.draw(time, size)`` paints the world at any time. Coordinates are [0, 1] from the top left corner. Each of the
four classes has its own look and timbre: ``ball`` (low thumps, pitched by speed), ``bell`` (inharmonic ringing),
``rain`` (short bursts of noise), ``blocks`` (wooden clicks).
"""

import colorsys
import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SAMPLE_RATE = 44100  # Hz
WHITE = (255, 255, 255)
OVERSAMPLING = 2  # pictures are drawn this many times larger and averaged down

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Hit:
    """One event of the truth: ``what`` strikes ``on`` at ``time`` (seconds), at the place (x, y).

    ``pitch`` (Hz) is what its sound falls to, its lowest partial, or the middle of its noise.
    """

    time: float
    x: float
    y: float
    what: str
    on: str
    pitch: float = 0.0


class Scene:
    """A world of one class; sub-classes fill ``events`` in their constructor and paint themselves.

    Attributes:
        events: every hit with its sound, (samples,) at SAMPLE_RATE.
        background: colours of the top and the bottom of the picture.
    """

    def __init__(self, rng: np.random.Generator, hues: tuple[float, float]) -> None:
        self.events: list[tuple[Hit, np.ndarray]] = []
        hue, depth = rng.uniform(*hues), rng.uniform(0.15, 0.45)
        self.background = (colour(hue, 0.5, depth), colour(hue + 0.06, 0.5, depth + 0.25))

    def draw(self, time: float, size: int) -> np.ndarray:
        """Return the picture at ``time`` (seconds) as (size, size, 3) uint8."""
        canvas = Canvas(size * OVERSAMPLING, *self.background)
        self.paint(canvas, time)
        return np.asarray(canvas.image.reduce(OVERSAMPLING))

    def paint(self, canvas: "Canvas", time: float) -> None:
        """Draw what is in the world at ``time`` (seconds)."""
        raise NotImplementedError

    def glow(self, time: float, on: str) -> float:
        """Return how much what is called ``on`` still shines from its last hit, in [0, 1]."""
        ages = [time - hit.time for hit, _ in self.events if hit.on == on and hit.time <= time]
        return math.exp(-min(ages) / 0.12) if ages else 0.0


class Ball(Scene):
    """Two balls in a box with a springy floor; they knock each other, too."""

    STEP = 0.001  # seconds

    def __init__(self, rng: np.random.Generator, seconds: float) -> None:
        super().__init__(rng, (0.55, 0.95))
        self.floor = rng.uniform(0.84, 0.92)
        self.radius = rng.uniform(0.1, 0.13, 2)
        self.gravity = rng.uniform(3.5, 5.0)
        self.lift = np.sqrt(2 * self.gravity * rng.uniform(0.3, 0.55, 2))  # speed at which the floor returns a ball
        self.pitch = rng.uniform(70, 140, 2)  # Hz
        hue = rng.uniform(0, 1)
        self.colours = [colour(hue, 0.9, 1.0), colour(hue + rng.uniform(0.3, 0.7), 0.8, 1.0)]
        place = np.stack([rng.uniform([0.2, 0.65], [0.35, 0.8]), rng.uniform(0.25, 0.6, 2)], 1)  # (ball, xy)
        speed = np.stack([rng.uniform(0.35, 0.7, 2) * rng.choice([-1, 1], 2), np.zeros(2)], 1)
        self.track = np.empty((math.ceil(seconds / self.STEP) + 2, 2, 2))  # (step, ball, xy)
        for step in range(len(self.track)):
            self.track[step] = place
            speed[:, 1] += self.gravity * self.STEP
            place = place + speed * self.STEP
            self._collide(step * self.STEP, place, speed)

    def _collide(self, time: float, place: np.ndarray, speed: np.ndarray) -> None:
        for ball, (radius, lift) in enumerate(zip(self.radius, self.lift, strict=True)):
            (x, y), name = place[ball], f"ball {ball}"
            if y + radius > self.floor and speed[ball, 1] > 0:
                self._thump(Hit(time, x, self.floor, name, "floor"), ball, abs(speed[ball, 1]))
                speed[ball, 1] = -lift
            if y < radius and speed[ball, 1] < 0:
                self._thump(Hit(time, x, 0.0, name, "ceiling"), ball, abs(speed[ball, 1]))
                speed[ball, 1] *= -1
            if x < radius and speed[ball, 0] < 0:
                self._thump(Hit(time, 0.0, y, name, "left wall"), ball, abs(speed[ball, 0]))
                speed[ball, 0] *= -1
            if x > 1 - radius and speed[ball, 0] > 0:
                self._thump(Hit(time, 1.0, y, name, "right wall"), ball, abs(speed[ball, 0]))
                speed[ball, 0] *= -1
        between = place[1] - place[0]
        normal = between / np.linalg.norm(between)
        approach = float((speed[0] - speed[1]) @ normal)
        if np.linalg.norm(between) < self.radius.sum() and approach > 0:
            middle = place[0] + normal * self.radius[0]
            self._thump(Hit(time, float(middle[0]), float(middle[1]), "ball 0", "ball 1"), 0, approach)
            speed[0] -= approach * normal  # equal masses: they exchange what they have along the normal
            speed[1] += approach * normal

    def _thump(self, hit: Hit, ball: int, speed: float) -> None:
        time = np.arange(round(0.4 * SAMPLE_RATE)) / SAMPLE_RATE
        pitch = self.pitch[ball] * (0.7 + 0.4 * speed)
        phase = 2 * np.pi * pitch * (time + 0.02 * (1 - np.exp(-time / 0.02)))  # falls to its pitch from twice as high
        loudness = min(1.0, 0.35 + 0.35 * speed)
        hit = dataclasses.replace(hit, pitch=pitch)
        self.events.append((hit, loudness * np.sin(phase) * decay(time, 0.08)))

    def paint(self, canvas: "Canvas", time: float) -> None:
        """Draw the ball in its room, whose walls shine when it hits them."""
        shine = self.glow(time, "floor")
        canvas.rectangle(0, self.floor, 1, 1, blend(colour(0.1, 0.3, 0.35), WHITE, 0.7 * shine))
        canvas.rectangle(0, 0, 1, 0.03, blend(self.background[0], WHITE, self.glow(time, "ceiling")))
        for x, name in ((0.0, "left wall"), (0.97, "right wall")):
            lit = blend(self.background[0], WHITE, self.glow(time, name))
            canvas.rectangle(x, 0, x + 0.03, self.floor, lit)
        for (x, y), radius, fill in zip(self.track[round(time / self.STEP)], self.radius, self.colours, strict=True):
            canvas.circle(x, y, radius, fill)
            canvas.circle(x - 0.35 * radius, y - 0.35 * radius, 0.3 * radius, blend(fill, WHITE, 0.7))


class Bell(Scene):
    """A pendulum that swings between two bells."""

    def __init__(self, rng: np.random.Generator, seconds: float) -> None:
        super().__init__(rng, (0.0, 1.0))
        self.pivot = (0.5 + rng.uniform(-0.03, 0.03), rng.uniform(0.05, 0.12))
        self.length = rng.uniform(0.5, 0.58)
        self.reach = rng.uniform(0.4, 0.46)  # radians at which it meets a bell
        self.swing = rng.uniform(0.28, 0.45)  # seconds from bell to bell
        self.phase = rng.uniform(0.3, 0.9)  # of the swing, at time zero
        self.metal = colour(rng.uniform(0.1, 0.16), 0.85, 0.9)
        pitch = rng.uniform(450, 900)  # Hz
        pitches = {"right bell": pitch, "left bell": pitch * rng.uniform(1.2, 1.5)}
        for number in range(1, math.ceil(seconds / self.swing + self.phase) + 1):
            time = (number - self.phase) * self.swing
            if time < seconds:
                x, y = self._bob(time)
                name = "right bell" if number % 2 else "left bell"
                hit = Hit(time, x + (0.07 if number % 2 else -0.07), y, "clapper", name, pitches[name])
                self.events.append((hit, ring(pitches[name])))

    def _bob(self, time: float) -> tuple[float, float]:
        swings = time / self.swing + self.phase
        side = 1 if math.floor(swings) % 2 == 0 else -1  # to the right first
        across = (swings % 1) * 2 - 1  # -1 at one bell, 1 at the other
        edge = math.asin(1 / 1.5)  # the free pendulum would swing half as far again
        angle = side * self.reach * 1.5 * math.sin(edge * across)
        return self.pivot[0] + self.length * math.sin(angle), self.pivot[1] + self.length * math.cos(angle)

    def paint(self, canvas: "Canvas", time: float) -> None:
        """Draw the clapper and the two bells, which shine when it hits them."""
        beyond = self.length * math.sin(self.reach) + 0.16
        height = self.pivot[1] + self.length * math.cos(self.reach)
        for side, name in ((1, "right bell"), (-1, "left bell")):
            x, shine = self.pivot[0] + side * beyond, self.glow(time, name)
            if shine > 0.05:
                halo = blend(self.background[1], (255, 255, 200), shine)
                canvas.ring(x, height, 0.12 + 0.2 * (1 - shine), 0.03, halo)
            canvas.bell(x, height, 0.1, blend(self.metal, WHITE, 0.8 * shine))
        bob = self._bob(time)
        canvas.line(*self.pivot, *bob, 0.03, (235, 235, 235))
        canvas.circle(*self.pivot, 0.03, (235, 235, 235))
        canvas.circle(*bob, 0.07, (210, 50, 50))


class Rain(Scene):
    """Drops that fall into water and leave ripples."""

    def __init__(self, rng: np.random.Generator, seconds: float) -> None:
        super().__init__(rng, (0.5, 0.68))
        self.shore = rng.uniform(0.42, 0.55)
        self.speed = rng.uniform(1.3, 1.9)  # picture heights per second
        self.water = colour(rng.uniform(0.48, 0.62), 0.8, rng.uniform(0.45, 0.65))
        tone = rng.uniform(2500, 4500)  # Hz
        time = rng.uniform(0.02, 0.2)
        while time < seconds:
            x, y, centre = rng.uniform(0.12, 0.88), rng.uniform(self.shore + 0.12, 0.9), tone * rng.uniform(0.8, 1.25)
            self.events.append((Hit(time, x, y, "drop", "water", centre), burst(rng, centre)))
            time += rng.uniform(0.14, 0.34)

    def paint(self, canvas: "Canvas", time: float) -> None:
        """Draw the water, and a ring for each drop that has hit it."""
        canvas.rectangle(0, self.shore, 1, 1, self.water)
        for hit, _ in self.events:
            age = time - hit.time
            if 0 <= age < 0.7:
                for radius in (0.05 + 0.32 * age, 0.02 + 0.2 * age):
                    canvas.ripple(hit.x, hit.y, radius, blend(WHITE, self.water, age / 0.7))
        for hit, _ in self.events:
            y = hit.y - (hit.time - time) * self.speed
            if -0.2 < y <= hit.y:
                canvas.drop(hit.x, y, 0.035, (215, 240, 255))


class Blocks(Scene):
    """A bar that sweeps to and fro over a row of wooden blocks and strikes each as it passes."""

    def __init__(self, rng: np.random.Generator, seconds: float) -> None:
        super().__init__(rng, (0.2, 0.5))
        self.count = int(rng.integers(4, 6))
        self.pace = rng.uniform(0.2, 0.28)  # seconds from block to block
        self.phase = rng.uniform(0, 2 * self.count)
        self.top = rng.uniform(0.55, 0.65)
        hue, self.step = rng.uniform(0, 1), rng.choice([-1, 1]) * rng.uniform(0.06, 0.1)
        self.colours = [colour(hue + n * 0.8 / self.count, 0.85, 0.95) for n in range(self.count)]
        base, ratio = rng.uniform(700, 1000), rng.uniform(1.12, 1.22)
        for number in range(math.ceil(self.phase - 0.5), math.ceil(self.phase + seconds / self.pace) + 1):
            time = (number + 0.5 - self.phase) * self.pace
            if 0 <= time < seconds:
                block = int(self._along(number + 0.5))
                x, y, pitch = (block + 0.5) / self.count, self._height(block), base * ratio**block
                self.events.append((Hit(time, x, y, "bar", f"block {block}", pitch), click(pitch)))

    def _along(self, travelled: float) -> float:
        """Return where the bar is, in blocks from the left, after it ``travelled`` so many, turning at the walls."""
        there = travelled % (2 * self.count)
        return min(there, 2 * self.count - there)

    def _height(self, block: int) -> float:
        """Return the y of the block's top."""
        return self.top + self.step * (block / (self.count - 1) - 0.5)

    def paint(self, canvas: "Canvas", time: float) -> None:
        """Draw the blocks and what hits them; a block that is hit sinks and shines."""
        width = 1 / self.count
        for block, fill in enumerate(self.colours):
            shine = self.glow(time, f"block {block}")
            left, top = (block + 0.12) * width, self._height(block) + 0.08 * shine
            canvas.rectangle(left, top, left + 0.76 * width, 0.97, blend(fill, WHITE, 0.8 * shine))
        x = self._along(self.phase + time / self.pace) * width
        canvas.rectangle(x - 0.025, 0, x + 0.025, self.top - 0.02, (240, 240, 240))
        canvas.circle(x, self.top - 0.06, 0.055, (60, 60, 60))


SCENES: dict[str, type] = {"ball": Ball, "bell": Bell, "blocks": Blocks, "rain": Rain}


# --- sounds: (samples,) at SAMPLE_RATE, loudest within a few milliseconds ---------------------------------------------


def decay(time: np.ndarray, constant: float) -> np.ndarray:
    """Return an envelope that rises in a millisecond and falls by 1/e every ``constant`` seconds."""
    return np.minimum(1.0, time / 0.001) * np.exp(-time / constant)


def ring(pitch: float) -> np.ndarray:
    """Return a struck bell: inharmonic partials, the higher the shorter."""
    time = np.arange(round(1.2 * SAMPLE_RATE)) / SAMPLE_RATE
    partials = ((1.0, 1.0, 0.3), (2.0, 0.6, 0.22), (2.76, 0.7, 0.16), (4.07, 0.5, 0.1), (5.4, 0.4, 0.06))
    return sum(a * np.sin(2 * np.pi * pitch * r * time) * decay(time, d) for r, a, d in partials)


def click(pitch: float) -> np.ndarray:
    """Return a struck wooden block: two partials, gone at once."""
    time = np.arange(round(0.15 * SAMPLE_RATE)) / SAMPLE_RATE
    partials = ((1.0, 1.0, 0.02), (2.58, 0.7, 0.008))
    return sum(a * np.sin(2 * np.pi * pitch * r * time) * decay(time, d) for r, a, d in partials)


def burst(rng: np.random.Generator, centre: float) -> np.ndarray:
    """Return a splash: noise of about an octave around ``centre`` Hz."""
    time = np.arange(round(0.15 * SAMPLE_RATE)) / SAMPLE_RATE
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    frequency = np.fft.rfftfreq(len(time), 1 / SAMPLE_RATE)
    shaped = np.fft.irfft(spectrum * np.exp(-(((frequency - centre) / (0.35 * centre)) ** 2)), len(time))
    return shaped / np.abs(shaped).max() * decay(time, 0.025)


# --- pictures --------------------------------------------------------------------------------------------------------


def colour(hue: float, saturation: float, value: float) -> Colour:
    """Return an RGB colour from hue (any turn), saturation and value in [0, 1]."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, min(value, 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def blend(base: Colour, added: Colour, share: float) -> Colour:
    """Return ``base`` with a ``share`` in [0, 1] of ``added``."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(base, added, strict=True))
    return red, green, blue


class Canvas:
    """A square picture to draw on in [0, 1] coordinates, over a vertical gradient."""

    def __init__(self, pixels: int, top: Colour, bottom: Colour) -> None:
        rows = np.linspace(top, bottom, pixels)[:, None].repeat(pixels, 1)  # (H, W, 3)
        self.image = Image.fromarray(rows.astype(np.uint8))
        self._draw = ImageDraw.Draw(self.image)
        self._pixels = pixels

    def _scaled(self, *values: float) -> list[float]:
        return [value * self._pixels for value in values]

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        """Fill a rectangle."""
        self._draw.rectangle(self._scaled(left, top, right, bottom), fill)

    def circle(self, x: float, y: float, radius: float, fill: Colour) -> None:
        """Fill a circle."""
        self._draw.ellipse(self._scaled(x - radius, y - radius, x + radius, y + radius), fill)

    def ring(self, x: float, y: float, radius: float, width: float, fill: Colour) -> None:
        """Outline a circle."""
        box = self._scaled(x - radius, y - radius, x + radius, y + radius)
        self._draw.ellipse(box, outline=fill, width=round(width * self._pixels))

    def ripple(self, x: float, y: float, radius: float, fill: Colour) -> None:
        """Outline a flat ellipse, a circle on water."""
        box = self._scaled(x - radius, y - 0.4 * radius, x + radius, y + 0.4 * radius)
        self._draw.ellipse(box, outline=fill, width=max(1, round(0.022 * self._pixels)))

    def drop(self, x: float, y: float, radius: float, fill: Colour) -> None:
        """Fill a falling drop whose lowest point is (x, y)."""
        self.circle(x, y - radius, radius, fill)
        tail = [(x - radius, y - radius), (x + radius, y - radius), (x, y - 4 * radius)]
        self._draw.polygon([tuple(self._scaled(*point)) for point in tail], fill)

    def bell(self, x: float, y: float, radius: float, fill: Colour) -> None:
        """Fill a bell whose middle is (x, y)."""
        self.circle(x, y - 0.3 * radius, 0.7 * radius, fill)
        sides = [(-0.7, -0.3), (0.7, -0.3), (1.0, 1.0), (-1.0, 1.0)]
        self._draw.polygon([tuple(self._scaled(x + a * radius, y + b * radius)) for a, b in sides], fill)
        self.circle(x, y - 1.05 * radius, 0.2 * radius, fill)

    def line(self, x1: float, y1: float, x2: float, y2: float, width: float, fill: Colour) -> None:
        """Draw a straight line."""
        self._draw.line(self._scaled(x1, y1, x2, y2), fill, round(width * self._pixels))
