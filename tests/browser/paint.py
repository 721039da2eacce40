"""When pages are first seen over a slow line: 1.6 Mbit/s, 150 ms to the server and back,
nothing in the cache.

python tests/browser/paint.py _build/html book/intro.html ...    seconds, medians of five
"""

import sys
from pathlib import Path
from statistics import median

from playwright.sync_api import Browser
from served import server
from visits import chromium, started

LINE = {
    "offline": False,
    "latency": 150,  # ms
    "downloadThroughput": 1.6e6 / 8,  # bytes per second
    "uploadThroughput": 0.75e6 / 8,
}
PAINTS = """async () => {
    await window.MathJax?.startup?.promise;
    const last = (type) => new Promise((done) => {
        const answer = (list) => done(list.getEntries().at(-1).startTime / 1000);
        new PerformanceObserver(answer).observe({ type, buffered: true });
    });
    return [await last("paint"), await last("largest-contentful-paint")];
}"""


def paints(browser: Browser, url: str) -> tuple[float, float]:
    """The first and the largest contentful paint of one load, in seconds."""
    tab = browser.new_page(viewport={"width": 1400, "height": 900})
    line = tab.context.new_cdp_session(tab)
    line.send("Network.enable")
    line.send("Network.emulateNetworkConditions", LINE)
    tab.goto(url, wait_until="networkidle", timeout=120_000)
    first, largest = tab.evaluate(PAINTS)
    tab.context.close()
    return first, largest


def main() -> None:
    executable = chromium()
    if not executable:
        sys.exit("no Chromium on the path; FLATNB_CHROMIUM may name one")
    with started(executable) as browser, server(Path(sys.argv[1]).resolve()) as address:
        for page in sys.argv[2:]:
            loads = [paints(browser, f"{address}/{page}") for _ in range(5)]
            first, largest = (median(times) for times in zip(*loads, strict=True))
            print(
                f"{page}: first paint {first:.2f} s, largest {largest:.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
