"""Checks of a page in a browser."""

WIDTHS = (1280, 400)
# Elements that are wider than the window or than their container, apart from what scrolls.
CUT_OFF = """[...document.querySelectorAll("main *")].filter((element) => {
  const box = element.getBoundingClientRect(), width = document.documentElement.clientWidth;
  return box.width > 0 && !element.closest(".wide, svg") && (box.left < 0 || box.right > width + 0.5);
}).map((element) => element.outerHTML.slice(0, 80))"""


def assert_sound(browser, page, ready="true"):
    """At every width and in both color schemes nothing is cut off, requested, or wrong."""
    grounds = set()
    for width in WIDTHS:
        for dark in (False, True):
            browser.open(page, width, dark)
            browser.wait_for(ready)
            assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
            assert browser.run(CUT_OFF) == []
            assert browser.requests == browser.problems == []
            grounds.add(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
