"""`repro data` from the first command to the last, on a stand-in and small sets; what it refuses, in one line."""

import json

import pytest

from pipeline.cli import data as cli_data
from pipeline.cli import terminal
from pipeline.data.shard_manifest import with_checksum
from tests.support.making import photographs

STAND_IN = ("--classes", 3, "--train", 5, "--test", 3)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    from pipeline.data.prepare.stand_in import make_stand_in

    folder = tmp_path_factory.mktemp("stand") / "in"
    make_stand_in(folder, classes=3, train=5, test=3, side=48)
    return folder


@pytest.fixture
def shards(command, archives, tmp_path):
    """A prepared stand-in in the data folder of the command."""
    code, _, err = command("data", "prepare", archives, "--out", tmp_path / "data" / "imagenet-standin")
    assert (code, err) == (0, "")
    return tmp_path / "data" / "imagenet-standin"


def test_a_stand_in_says_what_comes_next(command, tmp_path):
    code, out, err = command("data", "stand-in", "imagenet", "--out", tmp_path / "si", *STAND_IN)
    assert (code, err) == (0, "")
    assert f"repro data prepare {tmp_path / 'si'} --out data/imagenet-standin" in out
    assert (tmp_path / "si" / "ILSVRC2012_img_train.tar").is_file()


def test_preparing_prints_what_there_is(command, archives, tmp_path):
    code, out, err = command("data", "prepare", archives, "--out", tmp_path / "s", "--samples", 4)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["imagenet-standin", "images", "shards", "MB"]
    assert [line.split()[:3] for line in lines[1:3]] == [["train", "15", "4"], ["test", "9", "3"]]
    assert lines[3].startswith("3 classes, from a stand-in for ILSVRC-2012, generated with seed 0")
    assert lines[-2] == f"shards   {tmp_path / 's'}"
    assert lines[-1] == "A run finds them in a folder called imagenet-standin, in data/ or below REPRO_SHARDS."
    assert (
        command("data", "prepare", archives, "--out", tmp_path / "s", "--samples", 4)[0] == 0
    )  # is there already


def test_a_resized_set_says_so(command, archives, tmp_path):
    _, out, _ = command("data", "prepare", archives, "--out", tmp_path / "s", "--short-side", 32)
    assert "every picture resized to a short side of 32: other data than the source's" in out
    made = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert made["resized"]["short_side"] == 32


def test_a_whole_set_verifies_and_a_damaged_one_is_named(command, shards):
    code, out, _ = command("data", "verify", shards)
    assert (code, out) == (0, f"whole: {shards}\n")
    damaged = shards / "train-00000.tar"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    code, out, _ = command("data", "verify", shards)
    assert code == 1
    assert "train-00000.tar" in out
    assert out.splitlines()[-1] == f"1 thing is wrong with {shards}"
    code, out, _ = command("data", "verify", shards, "--json")
    assert (code, len(json.loads(out))) == (1, 1)


def test_inspecting_counts_and_draws(command, shards, tmp_path):
    code, out, err = command("data", "inspect", shards)
    assert (code, err) == (0, "")
    assert "train: 5 to 5 pictures of a class (median 5)" in out
    sheet = tmp_path / "report" / "imagenet-standin.png"
    chart = tmp_path / "report" / "imagenet-standin-classes.png"
    assert out.splitlines()[-2:] == [f"pictures {sheet}", f"classes  {chart}"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (sheet, chart))
    code, out, _ = command("data", "inspect", shards, "--json")
    found = json.loads(out)
    assert (found["contact_sheet"], found["balance_chart"], found["classes"]) == (str(sheet), str(chart), 3)


def test_a_small_set_goes_into_shards_and_comes_back_the_same(command, tmp_path):
    from pipeline.data.manifest import manifest_of
    from pipeline.data.sources import load_images

    assert command("data", "prepare", "noise", "--out", tmp_path / "noise")[0] == 0
    back, own = load_images("noise", tmp_path), load_images("noise", tmp_path / "nowhere")
    assert manifest_of(back).sha256 == manifest_of(own).sha256


def test_class_folders_of_one_part(command, tmp_path):
    photographs(tmp_path / "mine", train=2, test=0)
    folder = tmp_path / "mine" / "train"
    code, _, err = command("data", "prepare", folder, "--out", tmp_path / "s")
    assert code == 2
    assert "--split" in err
    code, _, err = command("data", "prepare", folder, "--out", tmp_path / "s", "--split", "foo")
    assert code == 2
    assert "a set's parts are train and test (val is taken for test)" in err
    code, out, _ = command("data", "prepare", folder, "--out", tmp_path / "s", "--split", "val")
    assert code == 0
    assert out.splitlines()[1].split()[:2] == ["test", "6"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("prepare", "nowhere", "--out", "x"),
            "there is no folder nowhere, and no set of that name; known: cifar10",
        ),
        (
            ("prepare", "mnst", "--out", "x"),
            "there is no folder mnst, and no set of that name; did you mean 'mnist'?",
        ),
        (("prepare", "film.jpg", "--out", "x"), "film.jpg is a file; give the folder that holds it: /"),
        (("prepare", "s3://bucket/x", "--out", "x"), "pictures are prepared from a folder of this machine"),
        (
            ("prepare", "https://user:topsecret@host/x", "--out", "x"),
            "pictures are prepared from a folder of this",
        ),
        (("prepare", "s3://AKIA:topsecret@bucket/x", "--out", "x"), "pictures are prepared from a folder of this"),
        (("prepare", "pipe:cat topsecret", "--out", "x"), "pictures are prepared from a folder of this machine"),
        (("prepare", "~nobody-of-that-name", "--out", "x"), "begins with the home of a user who has none"),
        (("prepare", "loop", "--out", "x"), "loop: Too many levels of symbolic links"),
        (("prepare", "noise", "--out", "loop/x"), "loop/x: Too many levels of symbolic links"),
        (("prepare", "noise", "--out", "x", "--split", "train"), "--split says which part class folders are"),
        (("prepare", "packed", "--out", "x", "--split", "train"), "and packed holds none; leave it out"),
        (("prepare", "noise", "--out", "s3://bucket/x#1"), "holds neither ? nor #"),
        (("stand-in", "imagenet", "--out", "s3://bucket/x"), "a stand-in is made in a folder of this machine"),
        (("stand-in", "imagenet", "--out", "a" * 256), "File name too long"),
        (("verify", "~nobody-of-that-name/x"), "begins with the home of a user who has none"),
        (("verify", "a" * 256), "File name too long"),
        (("prepare", "noise", "--out", "pipe:cat"), "addresses that begin with pipe: are not read, let alone run"),
        (
            ("prepare", "noise", "--out", "http://127.0.0.1/x"),
            "http is for reading; write to a folder or to s3://",
        ),
        (("verify", "nowhere"), "data/nowhere/manifest.json; shards are made by repro data prepare"),
        (("inspect", "gs://bucket/x"), "addresses that begin with gs: are not read"),
        (("inspect", "simplecache::s3://b/x"), "addresses joined by :: are not read"),
    ],
)
def test_a_mistake_is_one_line(command, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "film.jpg").write_bytes(b"")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "ILSVRC2012_img_val.tar").write_bytes(b"")
    code, out, err = command("data", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert "topsecret" not in err
    assert len(err.splitlines()) == 1
    assert not [path for path in tmp_path.iterdir() if path.name == "x"]


def test_shards_are_not_written_among_the_pictures(command, tmp_path):
    photographs(tmp_path / "mine", train=1, test=1)
    code, _, err = command("data", "prepare", tmp_path / "mine", "--out", tmp_path / "mine" / "shards")
    assert code == 2
    assert "where shards would be taken for pictures" in err


def test_where_the_shards_go_is_tried_before_the_source_is_read(command, tmp_path, monkeypatch):
    photographs(tmp_path / "mine", train=1, test=1)
    monkeypatch.setattr("pipeline.cli.data.open_source", lambda *_: pytest.fail("read"))
    code, _, err = command("data", "prepare", tmp_path / "mine", "--out", tmp_path)
    assert (code, "holds other files (mine)" in err) == (2, True)


def test_a_sets_name_may_be_that_of_the_folder_it_goes_to(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise").mkdir()
    assert command("data", "prepare", "noise", "--out", "noise")[0] == 0
    assert (tmp_path / "noise" / "manifest.json").is_file()


@pytest.mark.parametrize("called", ["[/red]mine[", "images"])
def test_a_set_of_strangers_is_shown_as_it_is_and_warns_of_nothing(command, tmp_path, called):
    """Its name is no markup, what it says is no command to the terminal, and its classes need no font."""
    photographs(tmp_path / "mine", classes=1, train=1, test=1)
    for part in ("train", "test"):
        (tmp_path / "mine" / part / "ant").rename(tmp_path / "mine" / part / "\u732b")
    assert command("data", "prepare", tmp_path / "mine", "--out", tmp_path / "s")[0] == 0
    file = tmp_path / "s" / "manifest.json"
    values = json.loads(file.read_text()) | {"name": called.replace("/", ""), "source": "\x1b[31mred\x07"}
    file.write_text(with_checksum(values))
    code, out, err = command("data", "inspect", tmp_path / "s")
    assert (code, err) == (0, "")
    head, row = out.splitlines()[:2]
    assert head.startswith(f"{called.replace('/', '')} ")
    assert head.index("images ", 7) + 5 == row.index("1 ")  # the numbers lie below the ends of their heads
    assert "from \ufffd[31mred\ufffd; sha256" in out


def test_a_log_tells_the_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(cli_data.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cli_data, "err", terminal.console(stderr=True))
    lines = cli_data.LogProgress("pictures", "images")
    for second, done in ((0, 0), (30, 300), (60, 4_500), (90, 5_000)):
        now[0] = second
        lines.tick(done, 9_000)
    assert [line.partition("/s, ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "14 min left",  # 8,700 at 10/s
        "60 s left",  # 4,500 at 75/s
        "72 s left",
    ]


def test_a_stand_in_goes_into_a_new_folder_only(command, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    code, _, err = command("data", "stand-in", "imagenet", "--out", tmp_path / "full", *STAND_IN)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
