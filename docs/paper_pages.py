"""MkDocs hook: one page per paper, written from the declarations and the committed records."""

import json
from itertools import groupby
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from pipeline.declare.load import load_all, load_all_printed
from pipeline.judge.collect import judge_experiments
from pipeline.judge.coverage import printed_rows
from pipeline.report.paper_page import measured_rates, paper_page
from pipeline.track.record import Record

ROOT = Path(__file__).resolve().parent.parent
SECTION = "Papers"  # the navigation entry that is filled here


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each paper, and an index, to `files` and to the navigation."""
    experiments = load_all()
    rows = json.loads((ROOT / "results/records.json").read_text(encoding="utf-8"))
    records = [Record.from_dict(row) for row in rows]
    rates = measured_rates(experiments, records)
    printed = printed_rows(experiments, load_all_printed())
    index = "# Papers\n\nWritten from the declarations and the recorded runs.\n\n"
    index += "| paper | year | experiments |\n|---|---|---|\n"
    navigation: list = ["papers/index.md"]
    for folder, group in groupby(experiments, key=lambda experiment: experiment.folder):
        own = list(group)
        paper = own[0].paper
        page = paper_page(
            own,
            judge_experiments(own, records, unfinished={}),
            rates,
            [row for row in printed if row.paper == folder],
        )
        files.append(File.generated(config, f"papers/{folder}.md", content=page))
        index += f"| [{paper.title}]({folder}.md) | {paper.year} | {', '.join(one.name for one in own)} |\n"
        navigation.append({folder: f"papers/{folder}.md"})
    files.append(File.generated(config, "papers/index.md", content=index))
    config.nav = [{SECTION: navigation} if entry == SECTION else entry for entry in config.nav or []]
    return files
