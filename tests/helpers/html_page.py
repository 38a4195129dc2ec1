"""A page as tests read it: parsed, with its links, and its pictures decoded."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

from PIL import Image

VOID = {"meta", "img", "br", "col", "link", "input", "hr", "source"}
URL_ATTRIBUTES = {"src", "href", "xlink:href", "action", "data", "poster", "srcset"}


class Page(HTMLParser):
    """Parses a page and fails on tags that do not close in order; keeps elements, links and text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(source)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.texts.setdefault(tag, []).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag: str = "body") -> str:
        return " ".join("".join(self.texts.get(tag, [])).split())

    def links(self) -> list[str]:
        return [value or "" for _, attrs in self.tags for name, value in attrs.items() if name in URL_ATTRIBUTES]

    def check_self_contained(self) -> None:
        """Nothing is loaded from elsewhere and nothing runs; the page's own policy says so too."""
        assert self.links()
        for link in self.links():
            assert link.startswith(("data:image/", "#")), link[:80]
        assert not self.of("script")
        assert not self.of("link")
        assert not self.of("iframe")
        assert not [name for _, attributes in self.tags for name in attributes if name.startswith("on")]
        style = self.text("style")
        assert "url(" not in style
        assert "@import" not in style
        policy = next(meta["content"] for meta in self.of("meta") if meta.get("http-equiv"))
        assert policy is not None
        assert policy.startswith("default-src 'none'; img-src data:")

    def check_anchors(self) -> None:
        """Every link within the page leads somewhere, and no id is there twice."""
        ids = [value for _, attributes in self.tags for name, value in attributes.items() if name == "id"]
        assert len(ids) == len(set(ids))
        assert {link[1:] for link in self.links() if link.startswith("#")} <= set(ids)

    def pictures(self) -> list[Image.Image]:
        """Every embedded picture, decoded: in the format that its address names."""
        return [decode(link) for link in self.links() if link.startswith("data:")]


def decode(link: str) -> Image.Image:
    """The picture of a ``data:`` address; fails unless it is whole and of the kind that the address names."""
    kind, data = link.removeprefix("data:image/").split(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode("".join(data.split()), validate=True)))
    picture.load()
    assert picture.format == kind.upper()
    return picture
