"""A drawing as SVG text: a few shapes, named colours for light and dark pages, the same bytes on every machine.

Colours are roles, such as `video`; a style sheet in the file gives each role one value for light pages and one for
dark ones. Every drawing has a card of its own behind it, so it can be read on any page.
"""

from html import escape
from pathlib import Path

LIGHT = {
    "paper": "#fcfbf8",
    "ink": "#23262c",
    "soft": "#6a717c",
    "rule": "#d9d5cb",
    "faint": "#efece4",
    "video": "#2f6fb3",
    "video-pale": "#bcd5ee",
    "audio": "#cf7a1c",
    "audio-pale": "#f3d3a8",
    "sink": "#7857a8",
    "sink-pale": "#d8c9ec",
    "now": "#2b8a57",
    "now-pale": "#bfe3cd",
    "warn": "#b4393f",
}
DARK = {
    "paper": "#17191e",
    "ink": "#e9e7e2",
    "soft": "#a0a7b1",
    "rule": "#3d424b",
    "faint": "#24272d",
    "video": "#72aee8",
    "video-pale": "#274a6e",
    "audio": "#f0a95c",
    "audio-pale": "#6b4517",
    "sink": "#b69be0",
    "sink-pale": "#4b3a69",
    "now": "#63c792",
    "now-pale": "#1f5339",
    "warn": "#ee8a8e",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
MARGIN = 24


def number(value: float) -> str:
    """Write a coordinate with two digits at most, so that files are small and alike everywhere."""
    return f"{round(value, 2) + 0:g}"


class Drawing:
    """Shapes in the order in which they are drawn.

    Args:
        width: Pixels.
        height: Pixels.
        title: Read aloud in place of the picture.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._shapes: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, fill: str, **style: str | float) -> None:
        """Draw a rectangle; `style` as in `_attributes`, and `radius` of its corners."""
        size = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
        radius = f' rx="{number(float(style.pop("radius")))}"' if "radius" in style else ""
        self._shapes.append(f"<rect {size}{radius}{_attributes(fill=fill, **style)}/>")

    def circle(self, x: float, y: float, radius: float, fill: str, **style: str | float) -> None:
        """Draw a circle."""
        at = f'cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"'
        self._shapes.append(f"<circle {at}{_attributes(fill=fill, **style)}/>")

    def line(self, points: list[tuple[float, float]], stroke: str = "ink", **style: str | float) -> None:
        """Draw a line through points; `arrow=1` ends it with a head, `curve=1` makes four points a Bezier curve."""
        arrow = ' marker-end="url(#head)"' if style.pop("arrow", 0) else ""
        joint = " C " if style.pop("curve", 0) else " L "
        first, *rest = (f"{number(x)} {number(y)}" for x, y in points)
        path = f"M {first}{joint}{' '.join(rest)}"
        self._shapes.append(f'<path d="{path}"{arrow}{_attributes(fill="none", stroke=stroke, **style)}/>')

    def text(self, x: float, y: float, words: str, **style: str | float) -> None:
        """Write a line of text; `size` in pixels, `anchor` start, middle or end, `bold=1`, `mono=1`, `fill`, `turn`."""
        size, anchor = style.get("size", 13), style.get("anchor", "start")
        turn = f' transform="rotate({style["turn"]} {number(x)} {number(y)})"' if "turn" in style else ""
        more = (' font-weight="600"' if style.get("bold") else "") + (
            ' font-family="ui-monospace, Menlo, Consolas, monospace"' if style.get("mono") else ""
        )
        at = f'x="{number(x)}" y="{number(y)}" font-size="{number(float(size))}" text-anchor="{anchor}"'
        self._shapes.append(f'<text {at}{more}{turn} class="f-{style.get("fill", "ink")}">{escape(words)}</text>')

    def lines(self, x: float, y: float, lines: tuple[str, ...], step: float = 20) -> None:
        """Write lines of text under each other."""
        for i, words in enumerate(lines):
            self.text(x, y + step * i, words)

    def render(self) -> str:
        """Return the file."""
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{FONT}">'
        card = f'<rect x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" rx="10" {_CARD}/>'
        return "\n".join([head, f"<title>{escape(self.title)}</title>", _STYLE, _HEAD, card, *self._shapes, "</svg>\n"])


_CARD = 'class="f-paper s-rule"'
_HEAD = (
    '<defs><marker id="head" viewBox="0 0 8 8" refX="6.5" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto-start-reverse"><path d="M 0.5 0.8 L 7 4 L 0.5 7.2 z" class="f-soft"/></marker></defs>'
)


def _rules(colours: dict[str, str]) -> str:
    return "".join(f".f-{role}{{fill:{value}}}.s-{role}{{stroke:{value}}}" for role, value in colours.items())


_STYLE = f"<style>{_rules(LIGHT)}@media (prefers-color-scheme: dark){{{_rules(DARK)}}}</style>"


def _attributes(**style: str | float) -> str:
    """Write what shapes share: colours by role, `width` of the stroke, `dash`, `opacity`."""
    fill, stroke = style["fill"], style.get("stroke")
    classes = " ".join([*([] if fill == "none" else [f"f-{fill}"]), *([f"s-{stroke}"] if stroke else [])])
    parts = [' fill="none"' if fill == "none" else "", f' class="{classes}"' if classes else ""]
    if stroke:
        parts.append(f' stroke-width="{number(float(style.get("thick", 1)))}"')
    if "dash" in style:
        parts.append(f' stroke-dasharray="{style["dash"]}"')
    if "opacity" in style:
        parts.append(f' opacity="{number(float(style["opacity"]))}"')
    return "".join(parts)


def save(drawings: dict[str, Drawing], folder: Path) -> None:
    """Write drawings by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in drawings.items():
        (folder / f"{name}.svg").write_text(drawing.render(), encoding="utf-8")
