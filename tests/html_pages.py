"""A parsed HTML page, for tests: its tags, what it fetches from elsewhere, its text."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects tags, what is fetched, and text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.outside, self.words = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            fetched = name in ("src", "srcset", "data") or (
                name.endswith("href") and not (value or "").startswith("#")
            )
            if fetched or "url(h" in (value or ""):
                self.outside.append((tag, name, value))

    def handle_data(self, data):
        self.words.append(data)
