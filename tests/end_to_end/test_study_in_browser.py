"""The report of a study in a real browser that can reach no network."""

import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.image import imread
from synthetic_study import problems, study_rows

from solvers.study.report.page import render
from solvers.study.report.sections import Findings, study_sections

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")
ALONE = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--window-size=1100,5000", "--enable-logging=stderr"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    findings = Findings(study_rows(2), problems())
    alone = tmp_path_factory.mktemp("alone") / "report.html"
    alone.write_text(render(findings, title="A study", sections=study_sections(findings)))
    return alone


def browse(page, profile, *arguments):
    command = [BROWSER, *ALONE, f"--user-data-dir={profile}", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)


def test_the_page_shows_its_figures_and_its_script_runs(page, tmp_path):
    picture = tmp_path / "report.png"  # look at it
    done = browse(page, tmp_path / "profile", f"--screenshot={picture}")
    assert "CONSOLE" not in done.stderr
    pixels = imread(picture)[..., :3]
    assert pixels.shape[1] == 1100
    # Every fifth of the page has ink on it, and the samplers' colours are somewhere.
    for part in np.array_split(pixels, 5):
        assert (part.std(axis=-1).max(), part.std()) > (0, 0.02)
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        distance = np.abs(pixels - np.array(color) / 255).max(axis=-1)
        assert (distance < 0.02).sum() > 200


def test_figures_keep_their_text_inside(page, tmp_path):
    """Every word of every figure lies within its figure, in the browser's own fonts."""
    probe = """<script>
    const lost = [];
    for (const svg of document.querySelectorAll("figure svg")) {
      const frame = svg.getBoundingClientRect();
      for (const text of svg.querySelectorAll("text")) {
        const box = text.getBoundingClientRect();
        if (box.left < frame.left - 1 || box.right > frame.right + 1 ||
            box.top < frame.top - 1 || box.bottom > frame.bottom + 1) lost.push(text.textContent);
      }
    }
    document.title = "lost: " + JSON.stringify(lost);
    </script>"""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", probe + "</body>"))
    done = browse(probed, tmp_path / "profile", "--dump-dom")
    assert "<title>lost: []</title>" in done.stdout
