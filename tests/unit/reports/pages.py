"""A page as its tests see it: parsed, attacked, and drawn by a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(1)><!--"


class Page(HTMLParser):
    """The parts of a page that the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.visible: list[str] = []
        self.scripts: list[str] = []
        self.raw = ""
        self.data: list[tuple[str, str]] = []  # exact value, text shown
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag == "data":
            self.data.append((str(dict(attrs)["value"]), ""))
        if tag not in ("meta", "img", "br", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts[-1] += data
        elif "pre" in self._open:
            self.raw += data
        elif "body" in self._open and data.strip():
            self.visible.append(data.strip())
        if "data" in self._open:
            self.data[-1] = (self.data[-1][0], self.data[-1][1] + data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.visible).split())


PHONE = """<iframe src="report.html" width="420" height="900" frameborder="0"></iframe><script>
onload = () => {
  const page = document.querySelector("iframe").contentDocument;
  const inside = (one) => one.closest("pre, svg, .plot") !== null;
  const cut = [...page.querySelectorAll("main *")].filter(
    (one) => !inside(one) && one.getBoundingClientRect().right > 420.5);
  document.body.textContent = "cut off: " + cut.map((one) => one.outerHTML.slice(0, 80)).join("; ");
};
</script>"""


def cut_off_on_a_phone(folder: Path) -> str:
    """What of the page lies beyond 420 pixels, as a phone shows it; empty if nothing does."""
    (folder / "phone.html").write_text(PHONE, "utf-8")
    dom, _ = browse(folder, "--dump-dom", "--allow-file-access-from-files", shown="phone.html")
    return re.search(r"<body>cut off: (.*?)\s*</body>", dom, re.S)[1]


def browse(folder: Path, *options: str, shown: str = "report.html") -> tuple[str, str]:
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("no Chromium on this machine")
    quiet = ["gpu", "quic", "sync", "background-networking", "component-update", "extensions"]
    command = [browser, "--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars"]
    command += [f"--disable-{feature}" for feature in quiet]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=30000"]
    command += ["--enable-logging=stderr", "--v=0", *options, (folder / shown).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return done.stdout, done.stderr


def assert_safe(page: Page) -> None:
    """Nothing is loaded, the policy forbids it, and no name became a tag."""
    assert not [tag for tag, attrs in page.tags if {"src", "srcset", "data"} & attrs.keys()]
    assert not [tag for tag, _ in page.tags if tag in ("link", "base", "iframe", "object", "form")]
    assert not any(tag == "img" or "onerror" in attrs for tag, attrs in page.tags)
    policy = next(str(a["content"]) for _, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert len(page.scripts) in (3, 5)  # five with a film
    for script in page.scripts[1::2]:  # data
        assert not set("<>&") & set(script)
