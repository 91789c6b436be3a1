"""
Detector frames of a rotation scan: source, scattering glow, beam, detector and noise.

    clean(k) = dark + source(k) * glow(k) * flat          the truth: background
    frame(k) = digitised(clean + signal + noise), then hot pixels, zingers and dead pixels

All arithmetic is float32 in a fixed order over fixed strips of rows, so a frame has the same bits in
whatever block it is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from tomoscale import blocks
from tomoscale.simulate.streams import knots, smooth, stream

STRIP_PIXELS = 32768
"""Pixels worked on at once: six float32 strips stay in a core's second-level cache."""

MAX_COUNT = 65535


@dataclass(frozen=True)
class Settings:
    """A whole scan in numbers; counts are those of the detector, lengths are pixels, times are frames."""

    shape: tuple[int, int, int]
    seed: int = 0
    degrees: float = 360.0
    # detector
    dark_level: float = 100.0
    dark_spread: float = 3.0
    read_noise: float = 2.0
    gain: float = 2.0
    hot_fraction: float = 2e-4
    zingers_per_mpixel: float = 2.0
    # source: sawtooth of the top-ups, slow drift, jitter from frame to frame, all relative
    topup_frames: int = 240
    topup_depth: float = 0.03
    drift: float = 0.08
    jitter: float = 0.003
    # glow
    floor: float = 60.0
    glow: float = 500.0
    wobble: float = 0.02
    shade: float = 0.05
    # the beam in the middle of the detector
    centre: Literal["blocked", "direct"] = "blocked"
    beam_fraction: float = 0.22
    beam_counts: float = 9000.0
    # blobs
    blobs: int = 300
    peak_counts: tuple[float, float] = (40.0, 6000.0)
    blob_radius: tuple[float, float] = (2.0, 9.0)
    blob_frames: tuple[float, float] = (1.5, 4.0)
    max_half_frames: float = 40.0
    margin_fraction: float = 0.06
    edge_level: float = 0.05

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.shape[1:]

    @property
    def frame_pixels(self) -> int:
        """Number of pixels of a frame."""
        return self.shape[1] * self.shape[2]

    def beam_half(self) -> tuple[float, float]:
        """Half height and half width of the beam in the middle."""
        return self.beam_fraction * self.shape[1] / 2, self.beam_fraction * self.shape[2] / 2


def omega(settings: Settings) -> np.ndarray:
    """Return the rotation angle of every frame in degrees, float64."""
    return np.arange(settings.shape[0]) * (settings.degrees / settings.shape[0])


def source(settings: Settings) -> np.ndarray:
    """Return the intensity of the source in every frame, about 1, float32."""
    n_frames = settings.shape[0]
    rng = stream(settings.seed, "source")
    age = (np.arange(n_frames) + rng.integers(settings.topup_frames)) % settings.topup_frames
    decay = 1 - settings.topup_depth * age / settings.topup_frames
    drift = 1 + settings.drift * smooth(knots(rng, max(2, n_frames // 400), 1), (n_frames,))
    jitter = 1 + settings.jitter * rng.standard_normal(n_frames)
    return (decay * drift * jitter).astype(np.float32)


class Defects(NamedTuple):
    """Pixels, by their index in the flattened frame, that are hot (with their counts) or dead."""

    hot: np.ndarray
    hot_counts: np.ndarray
    dead: np.ndarray


def defects(settings: Settings) -> Defects:
    """Choose the hot and dead pixels; a quarter as many are dead as are hot."""
    rng = stream(settings.seed, "defects")
    n_hot = round(settings.hot_fraction * settings.frame_pixels)
    chosen = rng.choice(settings.frame_pixels, n_hot + n_hot // 4, replace=False)
    return Defects(chosen[:n_hot], rng.lognormal(7.0, 0.8, n_hot).astype(np.uint32), chosen[n_hot:])


class Scan:
    """
    The maps of one scan that do not change from frame to frame, and the exposure of frames.

    Holds four float32 maps of a frame's size; `held_bytes` says how many bytes that is.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.source = source(settings)
        self.defects = defects(settings)
        rows, columns = settings.frame_shape
        self.strips = blocks.spans(rows, max(1, STRIP_PIXELS // columns))
        self.scale = 0.22 * min(rows, columns)
        self.row = (np.arange(rows, dtype=np.float32) - (rows - 1) / 2)[:, None]
        self.column = (np.arange(columns, dtype=np.float32) - (columns - 1) / 2)[None, :]
        self.dark, self.steady, self.with_cosine, self.with_sine = np.empty((4, rows, columns), np.float32)
        self._make_maps()
        self.beam = self._direct_beam() if settings.centre == "direct" else None

    @staticmethod
    def held_bytes(settings: Settings) -> int:
        """Bytes of the maps and of the strips being worked on, at most."""
        share = min(1.0, 2 * settings.beam_fraction) ** 2 if settings.centre == "direct" else 0.0
        strip = 4 * max(STRIP_PIXELS, settings.shape[2])
        per_pixel = 16 + 32 * share + 64 * settings.hot_fraction
        return int(settings.frame_pixels * per_pixel) + 12 * strip + 64 * sum(settings.shape)

    def _make_maps(self) -> None:
        """Fill the dark level, and the flat field times stop times the three terms of the turning shade."""
        s, shape = self.settings, self.settings.frame_shape
        rng = stream(s.seed, "detector")
        dark_knots, flat_knots = knots(rng, 3, 2), knots(rng, 4, 2)
        cosine_knots, sine_knots = knots(rng, 3, 2), knots(rng, 3, 2)
        for rows in self.strips:
            window = (rows, slice(None))
            n = (rows.stop - rows.start, shape[1])
            grain = rng.standard_normal(n, np.float32)
            self.dark[rows] = s.dark_level + s.dark_spread * (grain + 2 * smooth(dark_knots, shape, window))
            grain = rng.standard_normal(n, np.float32)
            flat = 1 + 0.02 * grain + 0.05 * smooth(flat_knots, shape, window)
            if s.centre == "blocked":
                flat *= 1 - 0.97 * self._beam_profile(rows)
            self.steady[rows] = flat
            flat *= s.shade
            self.with_cosine[rows] = flat * smooth(cosine_knots, shape, window)
            self.with_sine[rows] = flat * smooth(sine_knots, shape, window)

    def _beam_profile(self, rows: slice, columns: slice = slice(None)) -> np.ndarray:
        """Return 1 inside the beam in the middle, 0 outside, with soft edges."""
        half_height, half_width = self.settings.beam_half()
        outside = np.maximum(abs(self.row[rows]) - half_height, abs(self.column[:, columns]) - half_width)
        outside /= self._softness
        return 1 / (1 + np.exp(np.clip(outside, -40, 40)))

    @property
    def _softness(self) -> float:
        return max(1.0, 0.006 * self.settings.shape[2])

    def _direct_beam(self) -> tuple[slice, slice, np.ndarray]:
        """Return the window of the direct beam and its counts: steady, with cosine, with sine of the turn."""
        s = self.settings
        rng = stream(s.seed, "sample")
        cosine_knots, sine_knots = knots(rng, 6, 2), knots(rng, 6, 2)
        window = []
        for n, half in zip(s.frame_shape, s.beam_half(), strict=True):
            reach, middle = half + 16 * self._softness, (n - 1) / 2
            window.append(slice(max(0, math.floor(middle - reach)), min(n, math.ceil(middle + reach) + 1)))
        rows, columns = window
        profile = self._beam_profile(rows, columns) * s.beam_counts
        maps = np.empty((3, *profile.shape), np.float32)
        maps[0] = 0.6 * profile
        maps[1] = 0.15 * profile * smooth(cosine_knots, s.frame_shape, (rows, columns))
        maps[2] = 0.15 * profile * smooth(sine_knots, s.frame_shape, (rows, columns))
        return rows, columns, maps

    # ------------------------------------------------------------ exposure

    def expose(
        self, frames: range, signal: np.ndarray, counts: np.ndarray, background: np.ndarray | None
    ) -> None:
        """
        Fill the counts of some frames and, when asked for, their truth.

        Parameters
        ----------
        frames : range
            Which frames of the scan.
        signal : (frame, row, column)
            Noise-free counts of the blobs, float32.
        counts : (frame, row, column)
            Receives what the detector writes, uint16.
        background : (frame, row, column) or None
            Receives the noise-free frames without blobs and hot pixels, float32.
        """
        s = self.settings
        for i, k in enumerate(frames):
            rng = stream(s.seed, "frame", k)
            n_zingers = rng.poisson(s.zingers_per_mpixel * s.frame_pixels / 1e6)
            zingers = rng.integers(s.frame_pixels, size=n_zingers)
            zinger_counts = rng.lognormal(7.5, 0.8, n_zingers).astype(np.uint32)
            for rows in self.strips:
                light = self._light(k, rows)
                if background is not None:
                    np.add(light, self.dark[rows], out=background[i, rows])
                light += signal[i, rows]
                spread = light * s.gain
                spread += s.read_noise**2
                np.sqrt(spread, out=spread)
                spread *= rng.standard_normal(light.shape, np.float32)
                light += spread
                light += self.dark[rows]
                _digitise(light, counts[i, rows])
            _add(counts[i], zingers, zinger_counts)
            self._add_defects(counts[i])

    def expose_dark(self, frames: range, counts: np.ndarray) -> None:
        """Fill frames that are taken without beam."""
        for i, k in enumerate(frames):
            rng = stream(self.settings.seed, "dark", k)
            for rows in self.strips:
                dark = rng.standard_normal(self.dark[rows].shape, np.float32)
                dark *= self.settings.read_noise
                dark += self.dark[rows]
                _digitise(dark, counts[i, rows])
            self._add_defects(counts[i])

    def _light(self, k: int, rows: slice) -> np.ndarray:
        """Return the noise-free counts of the beam and its glow in a strip of frame k, without blobs."""
        s = self.settings
        turn = math.radians(s.degrees) * k / s.shape[0]
        cosine, sine = math.cos(turn), math.sin(turn)
        row_shift = 0.3 * s.wobble * s.shape[2] * math.sin(2 * turn)
        column_shift = s.wobble * s.shape[2] * math.sin(turn + 0.7)
        r, c = (self.row[rows] - row_shift) / self.scale, (self.column - column_shift) / self.scale
        light = r * r + c * c

        ring = np.sqrt(light)  # a powder ring: 8 % brighter at 1.55 scales from the centre
        ring -= 1.55
        ring *= ring
        ring *= -0.5 / 0.35**2
        np.exp(ring, out=ring)
        ring *= 0.08
        ring += 1

        light += 1  # glow / (1 + distance^2)^1.5
        light *= np.sqrt(light)
        np.divide(s.glow, light, out=light)
        light += s.floor
        light *= ring

        shade = np.multiply(self.with_cosine[rows], cosine, out=ring)
        shade += self.with_sine[rows] * sine
        shade += self.steady[rows]
        light *= shade
        if self.beam is not None:
            beam_rows, columns, maps = self.beam
            first, last = max(rows.start, beam_rows.start), min(rows.stop, beam_rows.stop)
            if first < last:
                steady, with_cosine, with_sine = maps[:, first - beam_rows.start : last - beam_rows.start]
                part = light[first - rows.start : last - rows.start, columns]
                part += steady + cosine * with_cosine + sine * with_sine
        light *= self.source[k]
        return light

    def _add_defects(self, frame: np.ndarray) -> None:
        """Add the counts of hot pixels, and blank the dead ones."""
        _add(frame, self.defects.hot, self.defects.hot_counts)
        frame.reshape(-1)[self.defects.dead] = 0


def _add(frame: np.ndarray, pixels: np.ndarray, more: np.ndarray) -> None:
    """Add counts to some pixels, saturated."""
    values = frame.reshape(-1)
    values[pixels] = np.minimum(values[pixels] + more, MAX_COUNT)


def _digitise(values: np.ndarray, counts: np.ndarray) -> None:
    """Round to whole counts, saturated; the values are used up."""
    values += 0.5
    np.clip(values, 0, MAX_COUNT, out=values)
    counts[...] = values


@lru_cache(maxsize=1)
def scan_of(settings: Settings) -> Scan:
    """Return the scan of these settings; a process keeps the maps of the last one."""
    return Scan(settings)
