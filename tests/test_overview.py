"""What a campaign has made so far, counted by hand; the report that opens on it, in a real browser."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
from conftest import Refuse
from tolerances import WRITTEN

from satm.cli import main
from satm.config import load_campaign
from satm.results.columns import CONTINUAL
from satm.results.rows import write_rows
from satm.tables.overview import agreement, markdown, overview, page

ROOT = Path(__file__).parent.parent
NAN = math.nan


@pytest.mark.parametrize(
    ("measured", "published", "std", "expected"),
    [
        (0.50, 0.51, 0.01, "within one"),
        (0.50, 0.515, 0.01, "within two"),
        (0.50, 0.53, 0.01, "outside"),
        (0.53, 0.50, 0.01, "outside"),
        (0.50, 0.50, NAN, "no deviation printed"),
    ],
)
def test_a_number_agrees_within_so_many_published_deviations(
    measured: float, published: float, std: float, expected: str
) -> None:
    assert agreement(measured, published, std) == expected


def test_the_overview_of_a_campaign_that_is_run_in_part(campaign: Path) -> None:
    assert main(["table", "--config", "tiny.yaml", "--name", "overview"]) == 0
    frame = pandas.read_csv("results/tiny/overview.csv").set_index("table")
    assert list(frame.index) == ["table2", "all"]
    assert frame.loc["table2", ["cells", "measured", "missing", "published"]].tolist() == [3, 1, 2, 0]
    found = overview(load_campaign(Path("tiny.yaml")))
    cell = Path("results/tiny/distilled/digits/ipc-1/satm/seed-0/metrics.parquet")
    tested = Path("results/tiny/evaluation/digits/ipc-1/satm/seed-0/convnet.parquet")
    rows = [pandas.read_parquet(path) for path in (cell, tested)]
    assert frame.loc["all", "hours"] == pytest.approx(sum(part["seconds"].sum() for part in rows) / 3600, rel=WRITTEN)
    assert frame.loc["all", "gpu_hours"] == 0 and found.devices == ["cpu"]
    memory = max(part["peak_memory_bytes"].max() for part in rows) / 1e9
    assert frame.loc["all", "peak_memory_gb"] == pytest.approx(memory, rel=WRITTEN)
    assert len(found.missing) == 2 and "python -m satm evaluate --config tiny.yaml" in found.missing[0]
    assert "Measured cells of tables below x: 1 of 3; missing: 2." in markdown(found, "x") and "&lt;x&gt;" in page(
        found, "<x>"
    )
    assert Path("results/tiny/overview.md").is_file() and Path("results/tiny/overview.html").is_file()


def test_the_cost_of_a_network_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entry = "{kind: continual, datasets: {digits: [1]}, methods: [mtt], steps: 2, orders: 1, repeats: 1}"
    Path("it.yaml").write_text(f"tables:\n  two: {entry}\n")
    row: dict[str, Any] = {"dataset": "digits", "ipc": 1, "method": "mtt", "seed": 0, "network": "convnet"}
    row |= {"protocol": "two", "sets": "sliced", "labels": "hard", "split": "test", "selection": "last"}
    row |= {
        "average": "raw",
        "step_size": "learned",
        "order": 0,
        "repeat": 0,
        "images": 1,
        "accuracy": 0.5,
        "rate": 1.0,
    }
    row |= {"seconds": 3600.0, "peak_memory_bytes": 10**9}
    rows = [
        {**row, "step": step, "classes_seen": step, "label": label, "learned_at": label + 1}
        for step in (1, 2)
        for label in range(step)
    ]
    path = Path("results/it/continual/digits/ipc-1/mtt/seed-0/two.parquet")
    write_rows(path, rows, CONTINUAL, {"device": "NVIDIA Something"})
    whole = overview(load_campaign(Path("it.yaml"))).frame.iloc[-1]
    assert whole["hours"] == 2.0 and whole["gpu_hours"] == 2.0 and whole["measured"] == 1


def test_overview_is_no_name_of_a_table(tmp_path: Path, refused: Refuse) -> None:
    path = tmp_path / "it.yaml"
    path.write_text("tables: {overview: {datasets: {digits: [1]}, methods: [mtt]}}")
    assert "'overview' means the progress of all tables; rename it" in refused(
        "table", "--config", str(path), "--name", "overview"
    )


FIGURES = """
figures:
  losses: {kind: iterations, datasets: {digits: [1]}, methods: [satm], quantities: [loss]}
  steps: {kind: iterations, datasets: {digits: [1]}, methods: [satm], quantities: [step_size]}
"""
"""With the picture three figures; of two the report makes a switch instead of a list."""


LOADED = "return [...document.images].filter(i => i.complete && i.naturalWidth > 200 && !i.src.includes('logo'))"
"""Finds the pictures that are shown."""


@pytest.fixture(scope="session")
def reported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign with the reports on what is there: one file, and an archive that was unpacked."""
    folder = tmp_path_factory.mktemp("reported") / "work"
    shutil.copytree(finished, folder)
    with (folder / "tiny.yaml").open("a") as file:
        file.write(FIGURES)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1"]
    command += ["results/tiny/tables/all", "results/tiny/figures/all", "--configfile", "tiny.yaml"]
    for last in ([], ["--report", "report.html"], ["--report", "report.zip"]):
        made = [*command, *last, "--config", "partial=true"]
        done = subprocess.run(made, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    shutil.unpack_archive(folder / "report.zip", folder / "unpacked")
    return folder


@pytest.mark.workflow
def test_partial_tables_and_figures_of_a_campaign_run_nothing_else(reported: Path) -> None:
    made = reported / "results/tiny"
    frame = pandas.read_csv(made / "table2.csv").set_index("method")
    assert frame["accuracy_mean"].notna().to_dict() == {"random": False, "mtt": False, "satm": True}
    text = (made / "table2.md").read_text()
    assert "Left out:" in text and "python -m satm evaluate" in text
    assert (made / "figures/synthetic-digits-ipc-1.png").is_file()
    assert not (made / "distilled/digits/ipc-1/mtt").exists()


@pytest.mark.parametrize("file", ["report.html", "unpacked/report/report.html"])
@pytest.mark.workflow
def test_the_report_opens_on_the_overview_and_asks_no_other_host(reported: Path, file: str) -> None:
    report = reported / file
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed; the report was made and not looked at")
    from selenium import webdriver
    from selenium.common.exceptions import ElementClickInterceptedException, NoSuchElementException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    shown = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    wait = WebDriverWait(shown, 120)

    def choose(category: str, name: str) -> None:
        """Open one result of a category."""
        shown.get(report.as_uri())
        wait.until(lambda page: page.find_element(By.XPATH, f"//*[text()='{category}']")).click()
        row = f"//nav//tr[.//*[normalize-space()='{name}']]//a"
        # While the panel slides in, its rows lie over each other.
        passing = [ElementClickInterceptedException, NoSuchElementException]
        moving = WebDriverWait(shown, 120, ignored_exceptions=passing)
        moving.until(lambda page: page.find_element(By.XPATH, row).click() or True)

    try:
        shown.get(report.as_uri())
        text = wait.until(lambda page: page.find_element(By.ID, "satm-overview")).text
        assert "Overview of results/tiny" in text and "results/tiny: 1 of 3;" in text
        choose("Tables", "table2")
        shown.switch_to.frame(wait.until(lambda page: page.find_element(By.TAG_NAME, "iframe")))
        table = wait.until(lambda page: page.find_element(By.TAG_NAME, "table")).text
        assert "satm" in table and "±" in table
        assert "Left out:" in shown.find_element(By.TAG_NAME, "body").text
        shown.switch_to.default_content()
        for figure in ("losses", "synthetic-digits-ipc-1"):
            choose("Figures", figure)
            (image,) = wait.until(lambda page: page.execute_script(LOADED))
            assert figure in image.get_attribute("src")
        severe = [entry for entry in shown.get_log("browser") if entry["level"] == "SEVERE"]
        events = [json.loads(entry["message"])["message"] for entry in shown.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    finally:
        shown.quit()
    assert severe == []
    assert sent and {each["request"]["url"].split(":")[0] for each in sent} <= {"file", "data", "blob"}


def test_a_table_of_an_unknown_dataset_says_so(campaign: Path, refused: Refuse) -> None:
    Path("tiny.yaml").write_text(
        Path("tiny.yaml").read_text().replace("{datasets: {digits: [1]}", "{datasets: {digts: [1]}")
    )
    assert "unknown dataset 'digts'; known: " in refused("table", "--config", "tiny.yaml")
