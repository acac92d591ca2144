"""The pictures of a recorded run, as SVG that is equal for equal moments. Pure: text out.

They state their background and have colours for light and for dark, so that they are readable on
any page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

FONT = "font-family: -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
STYLE = f"""<style>
text {{ {FONT}; font-size: 13px; fill: #1f2328 }}
.back {{ fill: #ffffff }} .soft {{ fill: #59636e }} .line {{ stroke: #d1d9e0 }}
.buffered {{ fill: #d4691e }} .indexed {{ fill: #1f6feb }} .found {{ fill: #1a7f37 }}
.seed {{ font-weight: 700 }} .title {{ font-size: 15px; font-weight: 600 }}
.dot {{ fill: #8c959f }} .turn {{ stroke: #1f2328; stroke-dasharray: 3 3 }}
.big {{ font-size: 22px; font-weight: 600 }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e6edf3 }}
.back {{ fill: #0d1117 }} .soft {{ fill: #9198a1 }} .line {{ stroke: #3d444d }}
.buffered {{ fill: #f0883e }} .indexed {{ fill: #58a6ff }} .found {{ fill: #3fb950 }}
.dot {{ fill: #6e7681 }} .turn {{ stroke: #e6edf3 }}
}}
</style>"""
CHARACTER = 6.6
"""Mean width of a character, in pixels."""
STATES = {
    "BUFFERING": "buffering: every search is exact",
    "TRAINING": "training in the background",
    "TRAINED": "trained",
}
SECONDS = 12.0
"""How long the animation plays; the last part of it holds the end."""
HELD = 0.2
FRAMES = 60


@dataclass(frozen=True, slots=True)
class Moment:
    """What a search and a description showed, `at_s` after the first row was written."""

    at_s: float
    buffered: int
    indexed: int
    state: str
    asked: int
    found: int


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the neighbourhood of `seed`, at a place in [0, 1]."""

    text: str
    seed: str
    x: float
    y: float


def document(width: int, height: int, label: str, body: Sequence[str]) -> str:
    """Return an SVG with our style and background."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="{escape(label)}">',
            STYLE,
            f'<rect class="back" width="{width}" height="{height}" rx="8"/>',
            *body,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, said: str, kind: str = "", anchor: str = "start") -> str:
    """Return a line of text; `anchor` is start, middle or end."""
    shown = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{shown} text-anchor="{anchor}">{escape(said)}</text>'


def picture(words: Sequence[Word], moments: Sequence[Moment]) -> str:
    """Return the map of words, and beside it the rows of their collection over time."""
    label = "words near each other in meaning, and the rows of their collection"
    body = [*word_map(words, 20, 50, 520, 350), *rows_chart(moments, 610, 60, 320, 290)]
    return document(960, 430, label, body)


def word_map(
    words: Sequence[Word], left: float, top: float, width: float, height: float
) -> list[str]:
    """Return the words at their places; a word that would cover another is a dot."""
    taken: list[tuple[float, float, float]] = []
    parts = [text(left, 30, "nearest words, by one search", "title")]
    for word in sorted(words, key=lambda each: each.text != each.seed):
        half = CHARACTER * len(word.text) / 2 + 3
        x = left + half + word.x * (width - 2 * half)
        y = top + 12 + word.y * (height - 16)
        if any(abs(x - other) < half + wide and abs(y - at) < 14 for other, at, wide in taken):
            if not any(abs(x - other) < wide + 3 and abs(y - at) < 10 for other, at, wide in taken):
                parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y - 4:.1f}" r="1.8"/>')
            continue
        taken.append((x, y, half))
        parts.append(text(x, y, word.text, "seed" if word.text == word.seed else "soft", "middle"))
    return parts


def rows_chart(
    moments: Sequence[Moment], left: float, top: float, width: float, height: float
) -> list[str]:
    """Return the rows over time as two areas, and what the searches found."""
    end_s = moments[-1].at_s
    most = max(each.buffered + each.indexed for each in moments)

    def place(at_s: float, rows: float) -> str:
        return f"{left + at_s / end_s * width:.1f},{top + height - rows / most * height:.1f}"

    total = [place(each.at_s, each.buffered + each.indexed) for each in moments]
    indexed = [place(each.at_s, each.indexed) for each in moments]
    base = [place(end_s, 0), place(0, 0)]
    asked, found = sum(each.asked for each in moments), sum(each.found for each in moments)
    return [
        text(left, 30, f"{most:,} rows, while the index trains", "title"),
        f'<polygon class="buffered" opacity=".85" points="{" ".join([*total, *base])}"/>',
        f'<polygon class="indexed" points="{" ".join([*indexed, *base])}"/>',
        *(
            f'<line class="line" x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}"/>'
            for y in (top, top + height / 2, top + height)
        ),
        *(
            text(left - 6, top + height * (1 - share) + 4, f"{share * most:,.0f}", "soft", "end")
            for share in (0, 0.5, 1)
        ),
        *turns(moments, left, top, width, height),
        text(left, top + height + 18, "0 s", "soft"),
        text(left + width, top + height + 18, f"{end_s:.1f} s", "soft", "end"),
        f'<rect class="buffered" x="{left}" y="{top + height + 34}" width="12" height="12"/>',
        text(left + 18, top + height + 45, "buffered: exact"),
        f'<rect class="indexed" x="{left + 130}" y="{top + height + 34}" width="12" height="12"/>',
        text(left + 148, top + height + 45, "indexed"),
        text(left, top + height + 68, f"found: {found:,} of {asked:,} searched words", "found"),
    ]


def turns(
    moments: Sequence[Moment], left: float, top: float, width: float, height: float
) -> list[str]:
    """Return a line where the training begins, and one where its index serves."""
    parts = []
    for state, said in (("TRAINING", "training"), ("TRAINED", "trained")):
        at_s = next((each.at_s for each in moments if each.state == state), None)
        if at_s is not None:
            x = left + at_s / moments[-1].at_s * width
            parts.append(
                f'<line class="turn" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{top + height}"/>'
            )
            parts.append(text(x, top - 8, said, "soft", "middle"))
    return parts


def sampled(moments: Sequence[Moment], frames: int) -> list[Moment]:
    """Return the moment that was the latest at each of `frames` equal steps, with sums so far.

    `asked` and `found` become those of all moments up to it.
    """
    shown: list[Moment] = []
    end_s = moments[-1].at_s
    asked = found = at = 0
    for frame in range(1, frames + 1):
        while at < len(moments) and moments[at].at_s <= end_s * frame / frames + 1e-9:
            asked += moments[at].asked
            found += moments[at].found
            at += 1
        latest = moments[max(0, at - 1)]
        shown.append(
            Moment(latest.at_s, latest.buffered, latest.indexed, latest.state, asked, found)
        )
    return shown


def animated(name: str, values: Sequence[str]) -> str:
    """Return an animation of an attribute through the frames; the last value is held."""
    steps = [(1 - HELD) * frame / len(values) for frame in range(len(values))]
    times = ";".join(f"{step:.4f}" for step in [*steps, 1])
    listed = ";".join([*values, values[-1]])
    return (
        f'<animate attributeName="{name}" values="{listed}" keyTimes="{times}" '
        f'dur="{SECONDS:g}s" repeatCount="indefinite"/>'
    )


def animation(moments: Sequence[Moment]) -> str:
    """Return the run as an animation; without one, as in print, its end is shown."""
    frames = sampled(moments, FRAMES)
    most = max(each.buffered + each.indexed for each in frames)
    left, width, top = 30.0, 660.0, 92.0
    buffered = [f"{width * each.buffered / most:.1f}" for each in frames]
    indexed = [f"{width * each.indexed / most:.1f}" for each in frames]
    begins = [f"{left + width * each.indexed / most:.1f}" for each in frames]
    last = frames[-1]
    body = [
        text(left, 36, "20,000 words go in; each is searched as soon as it is written", "title"),
        f'<rect class="line" x="{left}" y="{top}" width="{width}" height="34" fill="none"/>',
        f'<rect class="indexed" x="{left}" y="{top}" width="{indexed[-1]}" height="34">'
        f"{animated('width', indexed)}</rect>",
        f'<rect class="buffered" x="{begins[-1]}" y="{top}" width="{buffered[-1]}" height="34">'
        f"{animated('x', begins)}{animated('width', buffered)}</rect>",
        *(
            part
            for number, each in enumerate(frames)
            for part in frame_of(each, number, is_last=each is last)
        ),
    ]
    return document(720, 220, "the demo: every word is found while the index trains", body)


def in_turn(number: int) -> str:
    """Return an animation that shows a frame in its turn only; the last one until the end."""
    begin, end = (f"{(1 - HELD) * each / FRAMES:.4f}" for each in (number, number + 1))
    steps = [("0", "hidden"), (begin, "visible"), (end, "hidden")]
    steps = steps[1:] if number == 0 else steps[:2] if number == FRAMES - 1 else steps
    return (
        f'<animate attributeName="visibility" values="{";".join(value for _, value in steps)}" '
        f'keyTimes="{";".join(["0", *(at for at, _ in steps[1:])])}" '
        f'calcMode="discrete" dur="{SECONDS:g}s" repeatCount="indefinite"/>'
    )


def frame_of(moment: Moment, number: int, *, is_last: bool) -> list[str]:
    """Return the texts of a frame, visible in its turn only."""
    share = moment.found / moment.asked if moment.asked else 1.0
    lines = [
        text(30, 76, f"{moment.at_s:.1f} s: {STATES.get(moment.state, moment.state)}"),
        text(690, 76, f"{moment.buffered + moment.indexed:,} rows", anchor="end"),
        text(30, 152, f"{moment.indexed:,} indexed + {moment.buffered:,} buffered", "soft"),
        text(30, 192, f"found: {share:.0%}", "big found"),
        text(690, 192, f"{moment.found:,} of {moment.asked:,} searches", "soft", "end"),
    ]
    visibility = "visible" if is_last else "hidden"
    return [
        f'<g visibility="{visibility}">{in_turn(number)}',
        *lines,
        "</g>",
    ]
