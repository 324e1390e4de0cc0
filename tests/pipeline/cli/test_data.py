"""The commands `repro data` on a stand-in and small sets, and the errors they report."""

import json

import pytest

from pipeline.data.shard_manifest import with_checksum
from pipeline.data.transfer_sets.load import load_transfer_set
from tests.support.image_sets import write_class_folders

STAND_IN = ("--classes", 3, "--train", 5, "--test", 3)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The archives of a small stand-in; tests must not change them."""
    from pipeline.data.prepare.stand_in import make_stand_in

    folder = tmp_path_factory.mktemp("stand") / "in"
    make_stand_in(folder, classes=3, train=5, test=3, side=48)
    return folder


@pytest.fixture
def shards(command, archives, tmp_path):
    """The shards of the stand-in, in the data folder of the command."""
    code, _, err = command("data", "prepare", archives, "--out", tmp_path / "data" / "imagenet-standin")
    assert (code, err) == (0, "")
    return tmp_path / "data" / "imagenet-standin"


def test_stand_in_prints_the_next_command(command, tmp_path):
    code, out, err = command("data", "stand-in", "imagenet", "--out", tmp_path / "si", *STAND_IN)
    assert (code, err) == (0, "")
    assert f"repro data prepare {tmp_path / 'si'} --out data/imagenet-standin" in out
    assert (tmp_path / "si" / "ILSVRC2012_img_train.tar").is_file()


def test_stand_in_of_a_set_for_transfers_can_be_read(command, tmp_path):
    name = "voc2012-standin"
    code, out, err = command("data", "stand-in", "voc2012", "--out", tmp_path / name, "--train", 2)
    assert (code, err, out) == (0, "", f"archives {tmp_path / name}\n")
    assert load_transfer_set(name, tmp_path).manifest.train == 2 * 10 * 2  # images of ten classes in two parts
    code, out, _ = command("data", "stand-in", "voc2012", "--out", tmp_path / "other", "--train", 2)
    assert "Runs look for this set in a folder named voc2012-standin, in data/." in out
    code, _, err = command("data", "stand-in", "voc2012", "--out", tmp_path / "other")
    assert (code, "is not an empty folder" in err) == (2, True)


@pytest.mark.parametrize("option", ["--classes", "--test"])
def test_options_of_the_stand_in_of_imagenet_are_refused_for_others(command, tmp_path, option):
    code, _, err = command("data", "stand-in", "voc2012", "--out", tmp_path / "new", option, 3)
    assert (code, (tmp_path / "new").exists()) == (2, False)
    assert f"{option} 3: only the stand-in of imagenet has this option; omit it" in err


def test_prepare_prints_splits_classes_and_the_target(command, archives, tmp_path):
    code, out, err = command("data", "prepare", archives, "--out", tmp_path / "s", "--samples", 4)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["split", "images", "shards", "MB"]
    assert [line.split()[:3] for line in lines[1:3]] == [["train", "15", "4"], ["test", "9", "3"]]
    assert lines[3].startswith(
        "imagenet-standin: 3 classes (ILSVRC's WordNet ids), from a stand-in for ILSVRC-2012"
    )
    assert lines[-3] == "bounding boxes: train: 15 in 15 images; test: 9 in 9 images"
    assert lines[-2] == f"shards   {tmp_path / 's'}"
    assert (
        lines[-1] == "Runs look for this set in a folder named imagenet-standin, in data/ or below REPRO_SHARDS."
    )
    assert (
        command("data", "prepare", archives, "--out", tmp_path / "s", "--samples", 4)[0] == 0
    )  # already finished


def test_prepare_prints_the_resizing(command, archives, tmp_path):
    _, out, _ = command("data", "prepare", archives, "--out", tmp_path / "s", "--short-side", 32)
    assert "images resized to a short side of 32 pixels: another set than the source" in out
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["resized"]["short_side"] == 32


def test_verify_accepts_an_intact_set_and_reports_a_damaged_one(command, shards):
    code, out, _ = command("data", "verify", shards)
    assert (code, out) == (0, f"no problems found in {shards}\n")
    damaged = shards / "train-00000.tar"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    code, out, _ = command("data", "verify", shards)
    assert code == 1
    assert "train-00000.tar" in out
    assert out.splitlines()[-1] == f"1 problem found in {shards}"
    code, out, _ = command("data", "verify", shards, "--json")
    assert (code, len(json.loads(out))) == (1, 1)


def test_inspect_prints_counts_and_draws_figures(command, shards, tmp_path):
    code, out, err = command("data", "inspect", shards)
    assert (code, err) == (0, "")
    assert "train: 5 to 5 images per class (median 5)" in out
    sheet = tmp_path / "report" / "imagenet-standin.png"
    chart = tmp_path / "report" / "imagenet-standin-classes.png"
    assert out.splitlines()[-2:] == [f"images   {sheet}", f"classes  {chart}"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (sheet, chart))
    code, out, _ = command("data", "inspect", shards, "--json")
    found = json.loads(out)
    assert (found["contact_sheet"], found["balance_chart"], found["classes"]) == (str(sheet), str(chart), 3)


def test_a_small_set_is_the_same_after_preparing(command, tmp_path):
    from pipeline.data.manifest import manifest_of
    from pipeline.data.sources import load_images

    assert command("data", "prepare", "noise", "--out", tmp_path / "noise")[0] == 0
    prepared, original = load_images("noise", tmp_path), load_images("noise", tmp_path / "nowhere")
    assert manifest_of(prepared).sha256 == manifest_of(original).sha256


def test_class_folders_without_a_split_folder_need_the_split_option(command, tmp_path):
    write_class_folders(tmp_path / "mine", train=2, test=0)
    folder = tmp_path / "mine" / "train"
    code, _, err = command("data", "prepare", folder, "--out", tmp_path / "s")
    assert code == 2
    assert "--split" in err
    code, _, err = command("data", "prepare", folder, "--out", tmp_path / "s", "--split", "foo")
    assert code == 2
    assert "must be train or test (val means test)" in err
    code, out, _ = command("data", "prepare", folder, "--out", tmp_path / "s", "--split", "val")
    assert code == 0
    assert out.splitlines()[1].split()[:2] == ["test", "6"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("prepare", "nowhere", "--out", "x"),
            "no folder or set named nowhere; known: cifar10",
        ),
        (
            ("prepare", "mnst", "--out", "x"),
            "no folder or set named mnst; did you mean 'mnist'?",
        ),
        (("prepare", "film.jpg", "--out", "x"), "film.jpg is a file; give the folder that contains it: /"),
        (("prepare", "s3://bucket/x", "--out", "x"), "SOURCE must be a local folder, not an address"),
        (
            ("prepare", "https://user:topsecret@host/x", "--out", "x"),
            "SOURCE must be a local folder, not an address",
        ),
        (
            ("prepare", "s3://AKIA:topsecret@bucket/x", "--out", "x"),
            "SOURCE must be a local folder, not an address",
        ),
        (("prepare", "pipe:cat topsecret", "--out", "x"), "SOURCE must be a local folder, not an address"),
        (("prepare", "~nobody-of-that-name", "--out", "x"), "begins with the home of an unknown user"),
        (("prepare", "loop", "--out", "x"), "loop: Too many levels of symbolic links"),
        (("prepare", "noise", "--out", "loop/x"), "loop/x: Too many levels of symbolic links"),
        (("prepare", "noise", "--out", "x", "--split", "train"), "--split applies to class folders only"),
        (("prepare", "packed", "--out", "x", "--split", "train"), "and packed has none; omit it"),
        (("prepare", "noise", "--out", "s3://bucket/x#1"), "must not contain ? or #"),
        (("stand-in", "imagenet", "--out", "s3://bucket/x"), "--out must be a local folder, not an address"),
        (("stand-in", "imagenet", "--out", "a" * 256), "File name too long"),
        (("verify", "~nobody-of-that-name/x"), "begins with the home of an unknown user"),
        (("verify", "a" * 256), "File name too long"),
        (("prepare", "noise", "--out", "pipe:cat"), "addresses that begin with pipe: are not supported"),
        (
            ("prepare", "noise", "--out", "http://127.0.0.1/x"),
            "http is read-only; write to a folder or to s3://",
        ),
        (("verify", "nowhere"), "data/nowhere/manifest.json not found; repro data prepare makes shards"),
        (("inspect", "gs://bucket/x"), "addresses that begin with gs: are not supported"),
        (("inspect", "simplecache::s3://b/x"), "chained addresses with :: are not supported"),
    ],
)
def test_a_user_error_is_one_line(command, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "film.jpg").write_bytes(b"")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "ILSVRC2012_img_val.tar").write_bytes(b"")
    code, out, err = command("data", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "topsecret" not in err
    assert len(err.splitlines()) == 1
    assert not [path for path in tmp_path.iterdir() if path.name == "x"]


def test_files_that_are_not_images_are_counted_and_named(command, tmp_path):
    folder = write_class_folders(tmp_path / "mine", classes=2, train=1, test=1)
    for name in ("train/ant/Thumbs.db", "train/bee/notes.txt", "test/.git"):
        (folder / name).write_text("x")
    (folder / "test" / "@eaDir").mkdir()
    code, out, err = command("data", "prepare", folder, "--out", tmp_path / "s")
    assert code == 0
    skipped = f"{folder}/test/.git, {folder}/test/@eaDir, {folder}/train/ant/Thumbs.db and 1 more"
    assert err == f"Skipped 4 files that are not images: {skipped}.\n"
    assert "2 classes (sorted names), from class folders mine/train and mine/test; sha256 " in out


def test_shards_are_not_written_into_the_source(command, tmp_path):
    write_class_folders(tmp_path / "mine", train=1, test=1)
    code, _, err = command("data", "prepare", tmp_path / "mine", "--out", tmp_path / "mine" / "shards")
    assert code == 2
    assert "where shards would be read as images" in err


def test_the_target_is_checked_before_the_source_is_read(command, tmp_path, monkeypatch):
    write_class_folders(tmp_path / "mine", train=1, test=1)
    monkeypatch.setattr("pipeline.cli.data.open_source", lambda *_: pytest.fail("read"))
    code, _, err = command("data", "prepare", tmp_path / "mine", "--out", tmp_path)
    assert (code, "contains other files (mine)" in err) == (2, True)


def test_a_set_may_have_the_name_of_the_target_folder(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise").mkdir()
    assert command("data", "prepare", "noise", "--out", "noise")[0] == 0
    assert (tmp_path / "noise" / "manifest.json").is_file()


@pytest.mark.parametrize("name", ["[/red]mine[", "images"])
def test_a_foreign_manifest_is_printed_literally_and_without_warnings(command, tmp_path, name):
    """Names are not read as markup, control characters are replaced, and a missing glyph is no warning."""
    write_class_folders(tmp_path / "mine", classes=1, train=1, test=1)
    for split in ("train", "test"):
        (tmp_path / "mine" / split / "ant").rename(tmp_path / "mine" / split / "\u732b")
    assert command("data", "prepare", tmp_path / "mine", "--out", tmp_path / "s")[0] == 0
    file = tmp_path / "s" / "manifest.json"
    values = json.loads(file.read_text()) | {"name": name.replace("/", ""), "source": "\x1b[31mred\x07"}
    file.write_text(with_checksum(values))
    code, out, err = command("data", "inspect", tmp_path / "s")
    assert (code, err) == (0, "")
    head, row, _, named = out.splitlines()[:4]
    assert head.index("images ") + 5 == row.index("1 ")  # numbers are right-aligned with their titles
    assert named.startswith(f"{name.replace('/', '')}: 1 classes (")
    assert "from \ufffd[31mred\ufffd; sha256" in out


def test_stand_in_refuses_a_folder_that_is_not_empty(command, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    code, _, err = command("data", "stand-in", "imagenet", "--out", tmp_path / "full", *STAND_IN)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
