"""The report in Chromium: sorting, filtering, links to runs, numbers, accessibility, narrow windows."""

import json
import re

import pytest

from pipeline.declare.load import load_experiment
from pipeline.judge.collect import FinishedRuns
from pipeline.report.document.html import render_file
from pipeline.report.document.site import write_site
from tests.support.browser import NARROW, OpenPage, open_chromium
from tests.support.ledgers import DEEP, PLAIN
from tests.support.reports import HOSTILE, empty_figure, toy_report

pytestmark = pytest.mark.slow
READY = "html[data-ready]"


@pytest.fixture(scope="module")
def browser():
    with open_chromium() as found:
        yield found


@pytest.fixture
def report(experiment, seed_records):
    records = [
        *seed_records(experiment, "plain-20", PLAIN),
        *seed_records(experiment, "plain-32", DEEP),
        *seed_records(
            experiment, "resnet-20", [9.0, 8.9, 100.0], scale="laptop", commit=HOSTILE, hardware=HOSTILE
        ),
    ]
    return toy_report(experiment, records, figures=[empty_figure(caption=HOSTILE)])


@pytest.fixture
def file(report, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render_file(report, title="Rerun", address=lambda record: ""), encoding="utf-8")
    return path


@pytest.fixture
def folder(report, tmp_path):
    write_site(report, tmp_path / "site", title="Rerun", address=lambda record: "")
    return tmp_path / "site"


def column(page, table, number):
    return page.locator(f"{table} tbody tr td:nth-child({number})").all_inner_texts()


def test_tables_sort_by_number_and_the_page_has_no_complaints(browser, file):
    with OpenPage(browser) as opened:
        page = opened.open(file)
        page.wait_for_selector(READY)
        runs = page.locator("table.runs")
        runs.scroll_into_view_if_needed()
        button = runs.get_by_role("button", name=re.compile("top-1"))
        button.focus()
        page.keyboard.press("Enter")
        errors = [float(text) for text in column(page, "table.runs", 4)]
        assert errors == sorted(errors)
        assert errors[-1] == 100.0  # as a text, "100.00" comes before "8.90"
        page.keyboard.press("Enter")
        assert [float(text) for text in column(page, "table.runs", 4)] == sorted(errors, reverse=True)
        assert opened.complaints == []
        assert [address for address in opened.requests if not address.startswith(("file:", "data:"))] == []


def test_claims_are_filtered_by_words_kind_and_verdict(browser, file):
    with OpenPage(browser) as opened:
        page = opened.open(file)
        page.wait_for_selector(READY)
        rows, count = page.locator("section table.claims tbody tr"), page.locator(".claim-filter output")
        filters = page.locator(".claim-filter")  # a column's button for sorting has the label "verdict", too
        filters.get_by_label("kind").select_option("trained")
        filters.get_by_label("verdict").select_option("reproduced")
        count.filter(has_text="4 of 7 claims").wait_for()
        assert rows.count() == 4
        page.get_by_label("search claims").fill("deeper worse")
        count.filter(has_text="1 of 7 claims").wait_for()
        assert rows.get_attribute("id") == "claim.toy.depth.deeper"
        page.get_by_label("search claims").fill("<b>")
        count.filter(has_text="0 of 7 claims").wait_for()
        assert "No claim of this paper matches." in rows.inner_text()
        page.locator(".claim-filter").get_by_role("button", name="Show all").click()
        count.filter(has_text="7 of 7 claims").wait_for()
        assert opened.complaints == []


def test_a_number_shows_exactly_its_runs(browser, file):
    with OpenPage(browser) as opened:
        page = opened.open(file)
        page.wait_for_selector(READY)
        page.get_by_role("link", name=re.compile(r"^10\.50 ± 0\.10")).first.click()
        page.locator(".run-filter output").filter(has_text="5 of 13 runs").wait_for()
        assert [name.strip() for name in column(page, "table.runs", 1)] == ["plain-32"] * 5
        assert column(page, "table.runs", 2) == ["0", "1", "2", "3", "4"]
        page.wait_for_selector("tr.shown")
        assert page.locator("tr.shown").get_attribute("data-identity") == "plain-32-0-paper"
        page.evaluate("location.hash = '#run.plain-20-3-paper'")  # of a row that is filtered out
        page.locator(".run-filter output").filter(has_text="13 of 13 runs").wait_for()
        assert opened.complaints == []


def test_a_site_s_pages_work_and_lead_to_runs_on_other_pages(browser, folder):
    with OpenPage(browser) as opened:
        page = opened.open(folder / "index.html")
        page.wait_for_selector(READY)
        page.locator("a", has_text="On <Depth>").first.click()
        page.wait_for_url("**/toy.html*")
        page.wait_for_selector(READY)
        assert page.locator("figure img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        page.goto((folder / "toy.html").as_uri() + "?runs=plain-20-1-paper+plain-20-2-paper#run.plain-20-1-paper")
        page.locator(".run-filter output").filter(has_text="2 of 13 runs").wait_for()
        assert opened.complaints == []


def test_without_scripts_everything_reads(browser, file):
    with OpenPage(browser, java_script_enabled=False) as opened:
        page = opened.open(file)
        assert page.locator("table.claims tbody tr").count() == 7
        assert page.locator("table.runs tbody tr").count() == 13
        assert not page.locator("form").first.is_visible()
        assert page.locator("picture img").first.is_visible()
        assert opened.complaints == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious_and_a_narrow_window_does_not_scroll_sideways(browser, file, dark):
    with OpenPage(browser, dark=dark, viewport=NARROW) as opened:
        page = opened.open(file)
        page.wait_for_selector(READY)
        assert opened.overflow == 0
        assert opened.violations() == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) is dark


def test_axe_and_the_width_can_fail(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<!doctype html><title>x</title><p style='color:#ccc; width: 900px'>pale<img src='no.png'>")
    with OpenPage(browser, viewport=NARROW) as opened:
        opened.open(bad)
        assert opened.overflow > 400
        assert {one.split(":")[0] for one in opened.violations()} >= {
            "serious color-contrast",
            "critical image-alt",
        }
        assert any("no.png" in one for one in opened.complaints)


def test_hostile_texts_run_nothing_even_without_the_policy(browser, file):
    asked = []
    with OpenPage(browser, bypass_csp=True) as opened:
        opened.page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
        page = opened.open(file)
        page.wait_for_selector(READY)
        page.get_by_label("search runs").fill("onerror")  # DataTables reads the cells
        page.locator(".run-filter output").filter(has_text="3 of 13 runs").wait_for()
        page.get_by_label("search claims").fill("<img src=x onerror=alert(1)>")
        page.wait_for_timeout(500)
        assert asked == []
        assert opened.complaints == []


def test_numbers_equal_those_of_repro_leaderboard(browser, command, monkeypatch, tmp_path, seed_records):
    """The page shows two decimals and sorts by the exact number; both commands read the same records."""
    experiment = load_experiment("resnet/cifar10_depth")
    errors = {"plain-20": [3.1, 3.4, 3.9], "resnet-20": [2.2, 2.9, 3.3]}
    records = [
        record
        for variant, values in errors.items()
        for record in seed_records(experiment, variant, values, scale="laptop")
    ]
    for name in ("report", "leaderboard"):
        monkeypatch.setattr(f"pipeline.cli.{name}.collect_with_warnings", lambda: FinishedRuns(records, None))
    page_file = tmp_path / "out.html"
    assert command("report", "resnet/cifar10_depth", "--html", page_file)[0] == 0
    rows = json.loads(command("leaderboard", "resnet/cifar10_depth", "--json")[1])
    assert {row["variant"] for row in rows} == set(errors)
    with OpenPage(browser) as opened:
        page = opened.open(page_file)
        page.wait_for_selector(READY)
        table = page.locator("table.sortable", has_text="at laptop scale").first
        heads = [" ".join(text.split()) for text in table.locator("thead th").all_text_contents()]
        assert heads[:2] == ["network", "top-1 error %"]
        for row in rows:
            cells = table.locator("tbody tr", has=page.get_by_text(row["variant"], exact=True))
            for head, key in (("top-1 error %", "top1"), ("top-5 error %", "top5"), ("paper top-1 %", "paper")):
                cell = cells.locator(f"td:nth-child({heads.index(head) + 1})")
                assert float(cell.get_attribute("data-order")) == row[key]
                assert cell.text_content().startswith(f"{row[key]:.2f}" if key != "paper" else f"{row[key]:g}")
            seeds = cells.locator(f"td:nth-child({heads.index('seeds') + 1}) a")
            assert seeds.get_attribute("data-runs").split() == row["runs"]
