"""Files that describe the repository: line endings, wheel, schemas, and pages that must agree with the code."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from pipeline.declare.claim_tables import expand_claims, expand_printed
from pipeline.declare.claims import Claim, NotClaimed
from pipeline.declare.load import experiment_names, load_experiment
from pipeline.declare.printed import PrintedFile
from pipeline.declare.training import Train
from pipeline.declare.yaml_loader import parse_yaml
from pipeline.judge.verdict import Outcome, Reason

CLAIM: TypeAdapter[Claim] = TypeAdapter(Claim)

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("pipeline", "lightning_modules", "experiments")


def run(*command, cwd=ROOT):
    """Run a command; its output is the message of a failure."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def page(name):
    """Text of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def load_module(path):
    """Import a file that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- line endings ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_scripts_have_no_cr_in_a_clone_with_autocrlf(tmp_path):
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", "--config", "core.autocrlf=true", ROOT, clone, cwd=tmp_path)
    for name in (
        ".ci/run",
        "Makefile",
        "docker/Dockerfile",
        "docker/launch_or_resume.sh",
        "docker/repro",
        "docker/slurm/repro.sbatch",
    ):
        assert b"\r" not in (clone / name).read_bytes(), name
    files = [clone / name for name in run("git", "ls-files", "-z", cwd=clone).split("\0") if name]
    scripts = [file for file in files if file.is_file() and file.read_bytes().startswith(b"#!")]
    assert len(scripts) >= 4
    assert [file for file in scripts if b"\r" in file.read_bytes()] == []


def test_clone_with_autocrlf_and_without_attributes_has_cr(tmp_path):
    """The check above can fail: git does convert line endings where no attribute forbids it."""
    (tmp_path / "origin").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / "origin/run")
    for command in ("init --quiet", "add run", "-c user.name=n -c user.email=e commit --quiet --message m"):
        run("git", *command.split(), cwd=tmp_path / "origin")
    run("git", "clone", "--quiet", "--config", "core.autocrlf=true", "origin", "clone", cwd=tmp_path)
    assert b"\r\n" in (tmp_path / "clone/run").read_bytes()


# --- wheel -------------------------------------------------------------------------------------------------


def test_wheel_contains_every_file_of_the_packages(tmp_path):
    run(BIN / "hatchling", "build", "--target", "wheel", "--directory", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    expected = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    assert {"pipeline/py.typed", "lightning_modules/py.typed", "pipeline/report/assets/report.css"} <= packed
    assert packed == expected


# --- schemas -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "schema"),
    [
        (".github/workflows/ci.yml", "vendor.github-workflows"),
        (".github/workflows/ci.yml", "custom.github-workflows-require-timeout"),
        (".github/ISSUE_TEMPLATE/bug_report.yml", "vendor.github-issue-forms"),
        (".github/ISSUE_TEMPLATE/claim_or_paper.yml", "vendor.github-issue-forms"),
        (".github/ISSUE_TEMPLATE/config.yml", "vendor.github-issue-config"),
        ("CITATION.cff", "vendor.citation-file-format"),
    ],
)
def test_file_satisfies_its_schema(file, schema):
    run(BIN / "check-jsonschema", "--builtin-schema", schema, "--default-filetype", "yaml", ROOT / file)


def test_workflow_runs_what_ci_runs():
    (job,) = yaml.safe_load(page(".github/workflows/ci.yml"))["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


def test_pre_commit_hooks_use_programs_of_the_environment():
    run(BIN / "pre-commit", "validate-config", ROOT / ".pre-commit-config.yaml")
    (repository,) = yaml.safe_load(page(".pre-commit-config.yaml"))["repos"]
    programs = [hook["entry"].split()[0] for hook in repository["hooks"]]
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    assert {program.rpartition("/")[0] for program in programs} == {".venv/bin"}
    assert [program for program in programs if not (BIN / Path(program).name).is_file()] == []


# --- versions ----------------------------------------------------------------------------------------------


def test_citation_and_changelog_name_the_version():
    assert yaml.safe_load(page("CITATION.cff"))["version"] == PROJECT["version"]
    assert f"\n## [{PROJECT['version']}] - " in page("CHANGELOG.md")


def test_lock_has_every_extra():
    locked = set(re.findall(r"^([a-z0-9.-]+)==", page("requirements.lock"), re.MULTILINE))
    wanted = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    assert {re.split(r"[\[>=<]", line)[0].lower().replace("_", "-") for line in wanted} <= locked
    assert "://" not in page("requirements.lock")


# --- documentation -----------------------------------------------------------------------------------------


def table(text):
    """First cells of the rows of a Markdown table, without marks."""
    rows = re.findall(r"^\| ([^|]+?) \|", text, re.MULTILINE)
    return [row.strip("`") for row in rows[1:]]  # without the header


def test_glossary_defines_every_outcome_and_reason():
    outcomes, _, reasons = page("docs/glossary.md").partition("## Outcomes")[2].partition("## Reasons")
    assert table(outcomes) == [outcome.value for outcome in Outcome]
    assert table(reasons) == [reason.value for reason in Reason]


def test_architecture_page_lists_every_package():
    text = page("docs/architecture.md").partition("## Packages of `pipeline`")[2].partition("\n## ")[0]
    assert sorted(table(text)) == sorted(path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py"))


api_reference = load_module(ROOT / "docs/api_reference.py")


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        ("Path of <name> in `<root>`.", "Path of &lt;name> in `<root>`."),
        ("W*H of a [b] and _c", r"W\*H of a \[b] and \_c"),
        ("Rows:\n    a   1\n    b  22\nTotal 23.", "Rows:\n\n```text\na   1\nb  22\n```\n\nTotal 23."),
        ("Departures:\n  * One,\n    continued.\n  * Two.", "Departures:\n\n* One,\n    continued.\n* Two."),
    ],
)
def test_docstring_as_markdown(docstring, markdown):
    assert api_reference.as_markdown(docstring) == markdown


@pytest.mark.slow
def test_documentation_builds_without_warnings_and_fetches_nothing(tmp_path):
    run(BIN / "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site")
    modules = {name for package in api_reference.PACKAGES for name in api_reference.modules_of(package)}
    assert {path.stem for path in (tmp_path / "site/reference").glob("*.html")} == modules | {"index"}
    for path in (tmp_path / "site").rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//', html), path
        assert not re.search(r'<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="(?:https?:)?//', html), path
        assert not re.search(r'<link[^>]+href="(?:https?:)?//[^>]+rel="(?:stylesheet|preconnect)"', html), path
        assert 'class="mermaid"' not in html, path  # its script would come from a server


def yaml_blocks(name):
    """The YAML examples of a page, as text."""
    return re.findall(r"```yaml\n(.*?)```", page(name), re.DOTALL)


def test_the_experiment_of_the_guide_loads(tmp_path):
    file = tmp_path / "guide" / "example.yaml"
    file.parent.mkdir()
    file.write_text(yaml_blocks("docs/experiments.md")[0], encoding="utf-8")
    assert list(load_experiment(str(file)).variants) == ["plain-20", "resnet-20"]


def test_the_claims_of_the_guide_are_valid():
    *_, single, tables, printed, file, reasons = yaml_blocks("docs/experiments.md")
    text = single + tables
    claims = expand_claims(parse_yaml(text)["claims"])
    for claim in claims:
        CLAIM.validate_python(claim)
    assert len({claim["id"] for claim in claims}) == len(claims) == 23
    assert set(expand_printed(parse_yaml(printed)["printed"])) == {"alexnet_mb", "squeezenet_mb", "pruned_mb"}
    assert PrintedFile.model_validate(parse_yaml(file)).relations["degradation"].source == "Table 2"
    assert [NotClaimed.model_validate(item).rows[1] for item in parse_yaml(reasons)["not_claimed"]] == ["Table 7"]


def test_the_guide_describes_every_setting_of_schedules_and_weights():
    described = re.findall(r"^\| `(\w+)", page("docs/experiments.md"), re.MULTILINE)
    for setting in (
        "lr_drops",
        "lr_end",
        "plateau",
        "warmup",
        "start",
        "average",
        "filter_rms_limit",
        "clip_norm",
        "select",
    ):
        assert setting in Train.model_fields
        assert setting in described


def test_the_readme_links_every_experiment_once():
    linked = re.findall(r"\(experiments/([\w/]+)\.yaml\)", page("README.md"))
    assert sorted(linked) == experiment_names()


# --- installation by plain pip ------------------------------------------------------------------------------

PIP_SECONDS = 900  # limit for one resolution; a minute on an idle machine


@pytest.fixture(scope="module")
def pip(tmp_path_factory):
    """A pip of today in an environment of its own, as users have it; skips where no index is reachable."""
    environment = tmp_path_factory.mktemp("pip") / "venv"
    run(sys.executable, "-m", "venv", environment)
    program = [environment / "bin/python", "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run(
        [*map(str, program), "install", "--quiet", "--timeout", "20", "--upgrade", "pip"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PIP_SECONDS,
    )
    if done.returncode:
        pytest.skip(f"pip reaches no index: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return program


@pytest.mark.slow
@pytest.mark.timeout(PIP_SECONDS + 60)
@pytest.mark.parametrize(
    "wanted",
    [[f"{ROOT}"], [f"{ROOT}[dev]"], [f"{ROOT}[s3]", "torch", "mlflow", "ray"]],
    ids=["plain", "dev", "beside-current-torch-mlflow-and-ray"],
)
def test_plain_pip_resolves_the_project_without_the_lock(pip, wanted, tmp_path):
    """Without backtracking over versions of the S3 client, which pins botocore, fsspec and aiohttp closely.

    With fast-deps pip reads the metadata of a wheel alone, not its two gigabytes of CUDA libraries.
    """
    report = tmp_path / "report.json"
    options = ["--dry-run", "--ignore-installed", "--use-feature=fast-deps", "--report", report]
    done = subprocess.run(
        [*map(str, [*pip, "install", *options, *wanted])],
        capture_output=True,
        text=True,
        check=False,
        timeout=PIP_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "This is taking longer than usual" not in done.stdout + done.stderr
    installed = {entry["metadata"]["name"].lower() for entry in json.loads(report.read_text())["install"]}
    assert {"cnn-repro", "torch", "mlflow", "ray"} <= installed
    assert ("s3fs" in installed) == (wanted != [f"{ROOT}"])
