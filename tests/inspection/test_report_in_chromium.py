"""The page of a run in a real browser: nothing overflows, nothing is loaded, all pictures are decoded."""

import json
import re
import shutil
import subprocess

import pytest

from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog
from retinanet_ext.inspection.runs.run_report import write_run_report
from tests.inspection.report_runs import write_detection_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

SECTIONS = [
    "What stands out", "Metrics", "Precision, recall and F1", "Operating thresholds", "Calibration", "Confusion",
    "Errors by kind", "AP by size", "Worst images", "Training", "Speed", "Data", "Config", "Environment",
]  # fmt: skip
# A frame of exactly the width to test, because a headless window is at least 500 pixels wide. Its load event comes once
# all pictures are there; the browser writes the document only after that event, so nothing here may be asynchronous.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" src="report.html" style="border:0;width:{width}px;height:900px"></iframe><pre id="seen"></pre><script>
document.getElementById("page").onload = event => {{
  const page = event.target.contentDocument, view = event.target.contentWindow;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const images = [...page.images];
  const anchors = [...page.querySelectorAll("nav a")].map(link => page.querySelector(link.getAttribute("href")));
  document.getElementById("seen").textContent = JSON.stringify({{
    width: page.documentElement.clientWidth, scrolled: page.documentElement.scrollWidth,
    headings: [...page.querySelectorAll("h2")].map(heading => heading.textContent),
    pictures: images.map(image => image.complete ? image.naturalWidth : 0),
    figures: page.querySelectorAll("figure svg").length,
    smallest: Math.min(...[...page.querySelectorAll("figure svg")].map(svg => svg.getBoundingClientRect().width)),
    broken_anchors: anchors.filter(target => target === null).length,
    loaded: view.performance.getEntriesByType("resource").map(entry => entry.name.slice(0, 40)),
  }});
}};
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chromium")
    write_run_report(write_detection_run(folder, "cells_in_chromium"), folder / "report.html")
    yield folder
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "cells_in_chromium" in catalog.list():
            catalog.remove("cells_in_chromium")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_is_complete(report, tmp_path, width):
    (report / f"probe_{width}.html").write_text(PROBE.format(width=width))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path}", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--window-size={max(width, 500)},1000", "--dump-dom", f"file://{report}/probe_{width}.html",
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    text = re.search(r'<pre id="seen">(.+?)</pre>', dom, re.DOTALL)
    assert text, dom[-2000:]
    seen = json.loads(text[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert seen["scrolled"] <= seen["width"] <= width, "the page must not scroll sideways"
    assert [heading for heading in SECTIONS if heading not in seen["headings"]] == []
    # Of the two images with errors one exists; its ground truth and its detections, enlarged to 480 pixels.
    assert seen["pictures"] == [480, 480]
    assert seen["figures"] >= 8 and seen["smallest"] > 250 and seen["broken_anchors"] == 0
    assert all(name.startswith("data:") for name in seen["loaded"])
