"""Test the report as HTML: complete, well-formed, escaped, with a strict policy; one file or a site."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from pipeline.common.errors import UserError
from pipeline.declare.load import load_experiment
from pipeline.report.document.content import make_content
from pipeline.report.document.html import content_policy, render_file, write_file
from pipeline.report.document.site import earlier_files, write_site
from pipeline.report.document.unfinished import UnfinishedRun
from pipeline.report.leaderboard import build_leaderboard
from tests.support.fake_records import fake_record
from tests.support.ledgers import DEEP, PLAIN
from tests.support.reports import HOSTILE, Tags, empty_figure, toy_report

TITLE = "Networks, rerun"


@pytest.fixture
def records(experiment, seed_records):
    return [*seed_records(experiment, "plain-20", PLAIN), *seed_records(experiment, "plain-32", DEEP)]


def one_file(report, address=lambda record: ""):
    return render_file(report, title=TITLE, address=address)


def site(report, folder):
    write_site(report, folder, title=TITLE, address=lambda record: "")
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.html")}


def inlined(html, tag):
    return re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)


# --- one file ----------------------------------------------------------------------------------------------


def test_one_file_refers_to_no_other(experiment, records):
    addresses = Tags(one_file(toy_report(experiment, records))).addresses("src", "srcset", "href", "action")
    outside = [one for one in addresses if not one.startswith(("#", "data:image/svg+xml;base64,"))]
    assert outside == ["https://arxiv.org/abs/0000.00000"]  # a link


def test_every_link_inside_the_file_has_its_target(experiment, records):
    page = Tags(one_file(toy_report(experiment, records)))
    ids = page.ids()
    assert len(ids) == len(set(ids))
    assert {one[1:] for one in page.addresses("href") if one.startswith("#")} <= set(ids)


def test_every_link_of_a_site_has_its_target(tmp_path):
    declared = [load_experiment(name) for name in ("resnet/cifar10_depth", "lenet5/mnist")]
    records = [fake_record(declared[0], "resnet-20", 0, 8.5), fake_record(declared[1], "lenet5", 0, 1.2)]
    board = build_leaderboard(declared, records)
    report = make_content(declared, [], board, records, subject="two papers", figures=[])
    pages = {name: Tags(html) for name, html in site(report, tmp_path / "site").items()}
    assert set(pages) == {"index.html", "resnet.html", "lenet5.html"}
    dead = []
    for here, page in pages.items():
        for address in page.addresses("href"):
            file, _, anchor = address.partition("#")
            target = pages.get(file.partition("?")[0] or here)
            if target and anchor and anchor not in target.ids():
                dead.append(f"{here}: {address}")
    assert dead == []
    assert any(one.startswith("resnet.html?runs=") for one in pages["index.html"].addresses("href"))


def test_headings_skip_no_level(experiment, records, tmp_path):
    report = toy_report(experiment, records)
    for html in (one_file(report), *site(report, tmp_path / "site").values()):
        levels = [int(tag[1]) for tag, _ in Tags(html).seen if re.fullmatch(r"h[1-6]", tag)]
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_policy_allows_the_inlined_script_and_style_and_nothing_else(experiment, records):
    html = one_file(toy_report(experiment, records))
    policy = next(a["content"] for tag, a in Tags(html).seen if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for tag in ("script", "style"):
        hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inlined(html, tag)}
        assert {source.strip("'").removeprefix("sha256-") for source in rules[f"{tag}-src"].split()} == hashes
    assert (rules["default-src"], rules["img-src"], rules["form-action"]) == ("'none'", "data:", "'none'")
    assert "unsafe" not in policy
    assert not re.search(r'<[^>]+\s(style|on\w+)="', re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL))


def test_without_scripts_the_policy_forbids_them():
    assert "script-src 'none'" in content_policy(scripts=[])
    assert "script-src 'self'; style-src 'self'; img-src 'self'" in content_policy(scripts=None)


def test_numbers_lead_to_the_rows_of_their_runs(experiment, records):
    page = Tags(one_file(toy_report(experiment, records)))
    links = [attributes for tag, attributes in page.seen if tag == "a" and "data-runs" in attributes]
    expected = [f"plain-20-{seed}-paper" for seed in range(5)]
    assert [link["href"] for link in links if link["data-runs"].split() == expected]
    for link in links:
        assert link["href"] == f"#run.{link['data-runs'].split()[0]}"


def test_a_run_has_seed_commit_hardware_time_declaration_and_metrics(experiment, records):
    page = Tags(one_file(toy_report(experiment, records)))
    row = next(row for row in page.rows if row[0].strip() == "plain-32" and row[1].strip() == "3")
    texts = " ".join(" ".join(row).split())
    for expected in (
        "toy/depth, paper, cifar10",
        "10.40",
        "2026-01-01, 64000 steps",
        "1 min",
        "one core (1 thread,",
    ):
        assert expected in texts
    for expected in ("01234567", records[8].declaration, "test/top1_error_pct 10.4", "manifest of cifar10"):
        assert expected in texts


def test_a_run_links_to_its_page_on_the_tracking_server(experiment, records):
    html = one_file(toy_report(experiment, records), lambda record: f"http://server/#/runs/{record.run_id}")
    assert "http://server/#/runs/mlflow-plain-20-0" in Tags(html).addresses("href")


def test_the_page_has_summary_claims_choices_and_cost(experiment, records):
    html = one_file(toy_report(experiment, records))
    text = " ".join(re.sub(r"<[^>]+>", " ", html).split())
    for expected in (
        "4 ✔ reproduced", "0 ✔ reached", "1 – cannot judge", "1 ! erratum", "no-labels 1 the labels needed",
        "Do deep | wide networks train worse?", "Pixels are scaled. No scale is named.",
        "Not material: no effect on verdicts.", "test/top1_error_pct, mean over seeds; single view, last model",
        "9.50 ± 0.07", "Errors (Figure 6). Errors of two networks.", "Decay of 1e-5",
    ):  # fmt: skip
        assert expected in text, expected


# --- hostile texts -----------------------------------------------------------------------------------------


def hostile(experiment, records):
    """The report of an experiment whose every text could be a script."""
    claims = tuple(claim.model_copy(update={"says": HOSTILE, "source": HOSTILE}) for claim in experiment.claims)
    claims += (claims[-1].model_copy(update={"id": HOSTILE}),)
    paper = experiment.paper.model_copy(
        update={"title": HOSTILE, "authors": HOSTILE, "arxiv": HOSTILE, "section": HOSTILE}
    )
    other = {"paper": paper, "question": HOSTILE, "claims": claims}
    rows = [
        replace(
            record, commit=HOSTILE, hardware=HOSTILE, identity=f"{HOSTILE} {record.seed}", ended=HOSTILE,
            metrics={**record.metrics, HOSTILE: 1.0}, manifest=HOSTILE, changes={"train.lr": HOSTILE},
            run_id=HOSTILE, libraries={HOSTILE: HOSTILE}, members=(HOSTILE,),
        )
        for record in records
    ]  # fmt: skip
    unfinished = [UnfinishedRun(HOSTILE, HOSTILE, HOSTILE, "failed", HOSTILE, 1)]
    return toy_report(
        experiment.model_copy(update=other), [*rows, *records], subject=HOSTILE, commit=HOSTILE, trouble=HOSTILE,
        figures=[empty_figure(HOSTILE, HOSTILE)], unfinished=unfinished,
    )  # fmt: skip


def test_no_text_becomes_a_tag_or_an_attribute(experiment, records, tmp_path):
    plain, report = toy_report(experiment, records), hostile(experiment, records)
    pages = [
        one_file(report, lambda record: f"http://server/{record.run_id}"),
        *site(report, tmp_path / "site").values(),
    ]
    for html in pages:
        page = Tags(html)
        assert page.open == []
        attributes = {name for _, found in page.seen for name in found}
        assert not {name for name in attributes if name.startswith("on")} | ({"x"} & attributes)
        assert HOSTILE in Tags(html).rows[-1][0] or "alert(3)" in html  # it is shown, as text
        assert [a.get("src", "")[:5] for tag, a in page.seen if tag == "img" and a.get("src") == "x"] == []
    scripts = inlined(one_file(plain), "script")
    assert inlined(pages[0], "script") == scripts


def test_a_hostile_identity_keeps_its_link(experiment, records):
    page = Tags(one_file(hostile(experiment, records)))
    ids = set(page.ids())
    assert {one[1:] for one in page.addresses("href") if one.startswith("#")} <= ids
    assert all(re.fullmatch(r"[\w.-]+", one) for one in ids)


# --- nothing, or little, to show ---------------------------------------------------------------------------


def test_an_empty_store_says_what_to_do_next(experiment):
    html = one_file(toy_report(experiment, [], figures=[]))
    assert "No finished runs of these experiments yet" in html
    assert "<code>repro run toy/depth --scale laptop</code>" in html
    assert Tags(html).open == []


def test_unfinished_and_failed_runs_have_their_reason_and_command(experiment, records):
    left = [UnfinishedRun("plain-32 seed 4", "toy/depth", "paper", "failed", "out of memory", 120)]
    page = Tags(one_file(toy_report(experiment, records[:7], unfinished=left)))
    assert [
        "plain-32 seed 4", "toy/depth at paper scale", "failed", "out of memory", "120",
        "repro run toy/depth --scale paper",
    ] in page.rows  # fmt: skip


def test_a_server_that_does_not_answer_is_named(experiment, records):
    html = one_file(toy_report(experiment, records, trouble="the tracking server http://a does not answer"))
    assert "Runs may be missing: the tracking server http://a does not answer." in html


# --- a site ------------------------------------------------------------------------------------------------


def test_a_site_has_an_index_a_page_for_each_paper_and_figures(experiment, records, tmp_path):
    pages = site(toy_report(experiment, records), tmp_path / "site")
    assert set(pages) == {"index.html", "toy.html"}
    for name, html in pages.items():
        page = Tags(html)
        for address in page.addresses("href", "src", "srcset"):
            file, _, anchor = address.partition("#")
            file = file.partition("?")[0]
            if not file.startswith("https://"):
                assert (tmp_path / "site" / file).exists()
                if anchor:
                    assert anchor in Tags(pages[file or name]).ids(), address
    assert (tmp_path / "site/assets/dataTables.LICENSE.txt").is_file()


def test_a_second_report_replaces_the_first(experiment, records, tmp_path):
    folder = tmp_path / "site"
    site(toy_report(experiment, records), folder)
    (folder / "mine.txt").write_text("kept")
    assert (folder / "figures/toy-figure.png").exists()
    site(toy_report(experiment, records, figures=[]), folder)
    assert not (folder / "figures/toy-figure.png").exists()
    assert (folder / "mine.txt").read_text() == "kept"


def test_a_site_whose_writing_was_interrupted_is_written_again(experiment, records, tmp_path, monkeypatch):
    folder, written = tmp_path / "site", []

    def interrupted(path, *args, **kwargs):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(write_file(path, *args, **kwargs))
        return path

    monkeypatch.setattr("pipeline.report.document.site.write_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        site(toy_report(experiment, records), folder)
    monkeypatch.undo()
    begun = {path for path in folder.rglob("*") if path.is_file()}
    assert begun == set(written)
    assert {path.relative_to(folder).as_posix() for path in begun} - earlier_files(folder) == {"report.json"}
    site(toy_report(experiment, records, figures=[]), folder)
    assert not (folder / "figures").exists() or not any((folder / "figures").iterdir())
    assert (folder / "index.html").is_file()


def test_an_error_while_rendering_leaves_nothing(experiment, records, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.report.document.site.render_page", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        site(toy_report(experiment, records), tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_folder_with_other_files_is_refused(experiment, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds other files and no report; give an empty or a new folder$"):
        earlier_files(tmp_path)
    with pytest.raises(UserError, match=r"is a file; give a folder, or a name that ends in \.html"):
        earlier_files(tmp_path / "thesis.tex")


@pytest.mark.parametrize("content", ["{", "[]", '{"files": 1}'])
def test_a_damaged_list_of_files_is_named(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match=r"report\.json cannot be read"):
        earlier_files(tmp_path)


def test_a_list_of_files_cannot_name_others(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"files": ["../x", "/etc/passwd", "index.html"]}))
    assert earlier_files(tmp_path) == {"index.html"}


def test_a_run_whose_files_cannot_be_read_says_so_and_the_rest_stands(experiment, records):
    broken = records[0]
    reason = "runs/x/journal.jsonl is damaged: line 2 is not a journal entry"
    plain = one_file(toy_report(experiment, records))
    html = one_file(toy_report(experiment, records, unread={broken.identity: reason}))
    assert f"plain-20 seed 0 of toy/depth at paper scale: {reason}" in html
    (row,) = [cells for cells in Tags(html).rows if any(reason in cell for cell in cells)]
    assert (row[0], row[1]) == ("plain-20", "0")
    assert reason not in plain
    assert html.count("<figure") == plain.count("<figure") > 0
