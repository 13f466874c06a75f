"""The page in headless Chromium: no complaints, charts drawn, and a molecule that moves."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from ase.build import bulk, molecule
from matplotlib.figure import Figure

from diffmd_ase.report.interactive import chart
from diffmd_ase.report.report import write_report
from diffmd_ase.system import System

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LOOK = """
<script>
const told = {errors: [], outside: performance.getEntriesByType("resource")
  .filter((e) => !e.name.startsWith("data:")).map((e) => e.name)};
addEventListener("error", (e) => told.errors.push(e.message));
addEventListener("load", () => {
  const all = (words) => [...document.querySelectorAll(words)];
  const inked = (c) => c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some(Boolean);
  told.charts = all(".panel").length;
  told.drawn = all("canvas").filter(inked).length;
  told.pictures = all(".chart img").filter((i) => i.offsetParent !== null).length;
  const canvas = all(".panel canvas")[0], box = canvas.getBoundingClientRect();
  const at = (kind, x) => canvas.dispatchEvent(new PointerEvent(kind,
    {clientX: box.left + x, clientY: box.top + 50}));
  at("pointermove", 200);
  told.hover = all(".told")[0].textContent;
  const before = canvas.toDataURL();
  at("pointerdown", 120); at("pointerup", 240);
  told.zoomed = canvas.toDataURL() !== before;
  const viewer = all(".viewer")[0];
  told.first = viewer.dataset.frame;
  viewer.querySelector("button").click();
  setTimeout(() => {
    told.last = viewer.dataset.frame;
    document.body.append(Object.assign(document.createElement("pre"),
      {id: "told", textContent: JSON.stringify(told)}));
  }, 700);
});
</script>"""


def page_of(path, system, x, **options):
    write_report(path, system=system, reference=x[:, 0], temperature_K=300, trajectory=x,
                 Dt=0.1 * np.arange(len(x)), **options)  # fmt: skip
    return path.read_text()


def crystal(rng):
    atoms = bulk("Cu", cubic=True)
    x = atoms.positions + 0.05 * rng.standard_normal((30, 3, len(atoms), 3))
    return System.from_atoms(atoms), x


def butane(rng):
    atoms = molecule("trans-butane")
    x = atoms.positions + 0.03 * rng.standard_normal((60, 3, len(atoms), 3))
    return System.from_atoms(atoms), x


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("made", [butane, crystal])
def test_the_page_in_a_browser(tmp_path, rng, made):
    system, x = made(rng)
    text = page_of(tmp_path / "a.html", system, x, title="a </script> <b>")
    page = tmp_path / "b.html"
    page.write_text(text.replace("<body>", "<body>" + LOOK, 1))
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    words += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=3000"]
    words += ["--enable-logging=stderr", page.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert "CONSOLE" not in done.stderr
    told = json.loads(re.search(r'id="told">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    assert told["errors"] == [] and told["outside"] == []
    assert told["charts"] >= 2 and told["drawn"] == told["charts"] + 1
    assert told["pictures"] == 0  # those are for pages without scripts
    assert "at" in told["hover"] and told["zoomed"]
    assert told["first"] == "0" and int(told["last"]) > 3


def test_numbers_of_a_figure():
    """Lines, bands, steps, bars with errors; a picture has none."""
    figure = Figure()
    axis, other = figure.subplots(1, 2)
    x = np.linspace(1, 2, 7)
    axis.plot(x, x**2, label="a", color="#112233")
    axis.fill_between(x, x - 1, x + 1)
    axis.axhline(0.0)
    axis.errorbar(x, x, 0.25 * x, label="b", capsize=2)
    axis.stairs([1.0, 2.0], [0.0, 1.0, 3.0], label="c")
    axis.set(xscale="log", xlabel="x", title="</script>")
    other.bar([0, 1], [0.3, 0.7], yerr=[0.1, 0.2])
    other.set_xticks([0, 1], ["p", "q"])
    text = chart(figure)
    assert text.count("</script>") == 1
    first, second = json.loads(text[text.index(">") + 1 : -len("</script>")])
    a, b, c, band = first["series"]
    assert (a["name"], a["color"]) == ("a", "#112233")
    np.testing.assert_allclose(a["y"], x**2, rtol=1e-5)
    np.testing.assert_allclose(b["error"], 0.25 * x, rtol=1e-5)
    assert b["name"] == "b" and c["steps"] and c["y"] == [1.0, 2.0, 2.0]
    np.testing.assert_allclose([band["low"], band["high"]], [x - 1, x + 1], rtol=1e-5)
    assert first["logx"] and not first["logy"] and first["title"] == "</script>"
    assert [s["name"] for s in second["series"]] == ["p", "q"]
    np.testing.assert_allclose([s["error"][0] for s in second["series"]], [0.1, 0.2])
    other.imshow(np.zeros((2, 2)))
    assert chart(figure) is None
