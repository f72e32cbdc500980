"""The page in a real browser: nothing is refused or asked of anybody else, it fits, and it keeps its place."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from app.overview.model import Overview
from app.page import document, site
from tests.page import samples
from tests.page.browser import Browser
from tests.page.conftest import answering, probes
from tests.support.waiting import eventually

#: Elements that stick out of the window at the right.
_STICK_OUT = """
return [...document.querySelectorAll('body *')]
    .filter(element => element.getBoundingClientRect().right > window.innerWidth + 0.5)
    .map(element => element.outerHTML.slice(0, 99))
"""
_GROUND = "return getComputedStyle(document.body).backgroundColor"


@pytest.fixture(autouse=True)
def _nothing_said_before(browser: Browser) -> None:
    browser.open("about:blank")
    browser.complaints()
    browser.requests()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 768, 1024, 1280, 1920])
@pytest.mark.parametrize("make", [samples.fine, samples.degraded, samples.long_words])
def test_it_fits_without_a_complaint(browser: Browser, make: Callable[[], Overview], width: int, scheme: str) -> None:
    with answering(probes(make)) as address:
        browser.size(width, 900, phone=width < 600)
        browser.scheme(scheme)
        for path in ("/still", "/configuration"):
            browser.open(address + path)
            assert (
                browser.run("return document.querySelectorAll('tbody tr').length") > 20
            )  # and no page about a failure
            assert browser.run("return document.documentElement.scrollWidth") == width
            assert browser.run(_STICK_OUT) == []
        assert browser.complaints() == []
        assert {urlsplit(url).netloc for url in browser.requests()} - {""} == {urlsplit(address).netloc}


def test_it_is_light_or_dark_as_the_reader_prefers(browser: Browser) -> None:
    with answering(probes(samples.fine)) as address:
        grounds = {}
        for scheme in ("light", "dark"):
            browser.scheme(scheme)
            browser.open(address + "/still")
            grounds[scheme] = browser.run(_GROUND)
        assert grounds == {"light": "rgb(246, 247, 249)", "dark": "rgb(16, 19, 24)"}


def test_it_refreshes_itself_and_stays_where_it_was_scrolled_to(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "REFRESH_SECONDS", 1)
    with answering(probes(samples.degraded)) as address:
        browser.size(390, 800, phone=True)
        browser.open(address + "/")
        browser.run("window.scrollTo(0, 1234); window.marked = true")
        eventually(lambda: browser.run("return !window.marked && document.readyState == 'complete'"))
        eventually(lambda: browser.run("return window.scrollY") == 1234)


def test_a_process_that_is_gone_for_a_moment_is_seen_again(browser: Browser) -> None:
    """The page that a reader holds still is not loaded anew."""
    with answering(probes(samples.fine)) as address:
        browser.open(address + site.STILL)
        assert browser.run("return document.querySelector('meta[http-equiv]')") is None


def test_hostile_texts_run_nothing(browser: Browser) -> None:
    with answering(probes(samples.hostile)) as address:
        browser.open(address + "/still")
        assert browser.run("return window.ran") is None
        assert browser.run("return document.querySelectorAll('script, img, iframe').length") == 0
        assert browser.complaints() == []


def test_headings_and_tables_have_names_also_as_cards(browser: Browser) -> None:
    with answering(probes(samples.degraded)) as address:
        browser.size(360, 800, phone=True)
        browser.open(address + "/still")
        assert browser.run("return document.querySelectorAll('h1').length") == 1
        assert browser.run("return [...document.querySelectorAll('table')].every(t => t.caption.innerText)")
        nodes = browser.accessibility()
        roles = [node["role"]["value"] for node in nodes if "role" in node]
        assert roles.count("table") == 4
        assert roles.count("rowheader") > 20
        assert all(node["name"]["value"] for node in nodes if node.get("role", {}).get("value") in {"image", "link"})
