"""The report in a real browser: search, filter, sort, compare and keyboard, speed, hostile text, no request, accessibility.

Needs Chromium and its driver on the PATH; without them every test here is skipped and says so.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scored_runs import folder, scored

from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.visualize.run_report import ReportConfig, run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MISSING = [name for name, found in (("chromium", BROWSER), ("chromedriver", DRIVER)) if found is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no {' and no '.join(MISSING)} here: install chromium and chromium-driver"),
]

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</script><script>document.title='owned'</script>",
    "\u202eRTL \u0645\u0631\u062d\u0628\u0627 it's",
    "x" * 10_000,
]
BOX = Box(0.2, 0.4, 0.6, 0.9)
MANY = 2000
LOAD_SECONDS, FILTER_SECONDS = 3.0, 0.1
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"]
    # Smooth scrolling would move what is about to be clicked.
    arguments.append("--force-prefers-reduced-motion")
    for argument in [*arguments, "--disable-extensions", "--disable-background-networking", "--no-first-run"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`two`: two runs on 40 questions, some of them hostile; `many`: one run on 2,000 questions, 500 pictures."""
    root = tmp_path_factory.mktemp("pages")
    quiet = SilentReporter()
    data = folder(root / "data", 40, 5, HOSTILE)
    before = scored(root / "before", data, [i % 2 == 0 for i in range(40)], policy="none")
    after = scored(root / "after", data, [i % 4 != 1 for i in range(40)], BOX)
    run(ReportConfig((before, after), root / "two.html"), quiet)
    large = folder(root / "large", MANY, 500)
    run(ReportConfig((scored(root / "run", large, [i % 3 == 0 for i in range(MANY)], BOX),), root / "many.html"), quiet)
    return {"two": root / "two.html", "many": root / "many.html"}


def script(browser: Any, source: str, *values: object) -> Any:
    return browser.execute_script(source, *values)


def shown(browser: Any) -> str:
    return script(browser, "return document.getElementById('shown').textContent")


def opened(browser: Any, page: Path) -> Any:
    browser.get(page.as_uri())
    return browser


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def test_search_filter_sort_and_keys(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, pages["two"])
    body = find(browser, "body")
    assert shown(browser) == "40 of 40 questions"
    body.send_keys("/")
    assert script(browser, "return document.activeElement.id") == "search"
    find(browser, "#search").send_keys("SHAPE 17?")
    assert shown(browser) == "1 of 40 questions"
    assert "shape 17" in find(browser, ".card h3").text
    find(browser, "#search").send_keys(Keys.ESCAPE)
    assert shown(browser) == "40 of 40 questions"
    # Right in both: even numbers; gained: 3, 7, 11, ...
    find(browser, 'button[data-outcome="gained"]').click()
    assert shown(browser) == "10 of 40 questions"
    script(
        browser,
        "const s = document.querySelector('[data-facet=Box]'); s.value = 'unparsable'; s.dispatchEvent(new Event('change'))",
    )
    assert shown(browser) == "3 of 40 questions"
    find(browser, 'button[data-outcome=""]').click()
    script(browser, "const s = document.querySelector('[data-facet=Box]'); s.value = ''; s.dispatchEvent(new Event('change'))")
    script(browser, "const s = document.getElementById('order'); s.value = 'id'; s.dispatchEvent(new Event('change'))")
    ids = script(browser, "return [...document.querySelectorAll('.card')].map(c => c.dataset.id)")
    assert ids[:12] == [f"s{i}#q0" for i in range(12)]
    find(browser, "#turn").click()
    assert find(browser, ".card").get_attribute("data-id") == "s39#q0"
    body.send_keys("jj")
    assert script(browser, "return document.activeElement.dataset.id") == "s38#q0"
    body.send_keys("k")
    assert script(browser, "return document.activeElement.dataset.id") == "s39#q0"
    find(browser, "#search").send_keys("no such words anywhere")
    assert find(browser, "#none").is_displayed()


def test_two_runs_stand_side_by_side(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["two"])
    find(browser, "#search").send_keys("shape 7?")
    card = find(browser, ".card")
    rows = [
        [part.text for part in row.find_elements("css selector", "dt, dd")]
        for row in card.find_elements("css selector", "dl div")
    ]
    assert ["before", "x ✗"] in rows
    assert ["after", "7 ✓"] in rows
    assert find(browser, ".card rect.predicted").get_attribute("x") == "0.2"
    assert "Gained" in card.text


def test_hostile_text_is_text_and_nothing_leaves_the_file(browser: Any, pages: dict[str, Path]) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    opened(browser, pages["two"])
    headings = script(browser, "return [...document.querySelectorAll('.card h3')].map(h => h.textContent)")
    assert headings[: len(HOSTILE)] == [text.replace("\u202e", "\ufffd") for text in HOSTILE], (
        "no text turns the page's direction"
    )
    assert browser.title.startswith("Report: ")
    assert not browser.find_elements("css selector", ".card h3 *")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith("data:") or url == pages["two"].as_uri() for url in asked), asked
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    # A request that a script tried to make would be stopped by the page's own policy.
    said = "const done = arguments[0]; fetch('https://example.org/').then(() => done('sent'), () => done('refused'))"
    assert browser.execute_async_script(said) == "refused"


def test_thousands_of_cards_load_and_filter_fast(browser: Any, pages: dict[str, Path]) -> None:
    loads, filters = [], []
    change = """
        const search = document.getElementById('search');
        const start = performance.now();
        search.value = arguments[0];
        search.dispatchEvent(new Event('input'));
        document.body.getBoundingClientRect();
        return performance.now() - start;
    """
    for _ in range(3):
        start = time.perf_counter()
        opened(browser, pages["many"])
        assert shown(browser) == f"{MANY:,} of {MANY:,} questions"
        loads.append(time.perf_counter() - start)
        for words in ("shape 1", "reading", ""):
            filters.append(script(browser, change, words) / 1000)
    # Other work on the machine only ever adds: the quickest round is what the page needs.
    filtering = min(max(filters[i : i + 3]) for i in (0, 3, 6))
    print(
        f"{MANY:,} cards: load {min(loads):.2f} s, filter {filtering:.3f} s; slowest {max(loads):.2f} and {max(filters):.3f} s"
    )
    assert min(loads) <= LOAD_SECONDS
    assert filtering <= FILTER_SECONDS


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_accessibility_fault(browser: Any, pages: dict[str, Path], theme: str) -> None:
    from importlib.resources import files

    opened(browser, pages["two"])
    script(browser, "document.documentElement.dataset.theme = arguments[0]", theme)
    script(browser, files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = browser.execute_async_script("axe.run().then(arguments[0])")
    faults = [(v["id"], v["impact"], [n["html"][:120] for n in v["nodes"][:3]]) for v in found["violations"]]
    assert len(found["passes"]) > 15
    assert [fault for fault in faults if fault[1] in SERIOUS] == []
