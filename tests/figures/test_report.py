import base64
import copy
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from eir_jax.figures.report import write_report
from eir_jax.system.errors import UserError

HOSTILE = "<script>alert(1)</script>\"'&"
VOID = {"meta", "img"}
CLOSED_BY_THE_NEXT = {"li", "tr", "td", "th", "thead"}
RECORD = {
    "step": 12345,
    "knn": {"5": 0.9412, "20": 0.95, "200": 0.93},
    "knn_top5": {"5": 0.98, "20": 0.98, "200": 0.99},
    "linear": {"top-1": 0.97, "top-5": 1.0, "learning_rate": 0.1, "weight_decay": 0.0},
    "retrieval": {"R@1": 0.9713, "NMI": float("nan")},
    "health": {"rank_me": 40.1234, "news": 3.0},
    "warnings": [f"the embedding collapses {HOSTILE}"],
    "protocol": {
        "data": {"name": HOSTILE, "source": "digits", "train_images": 50000},
        "transform": "resize",
        "knn": {"k": [5, 20, 200], "temperature": 0.1, "hash": "ab12cd34"},
        "linear": {"solver": "sgd", "hash": "11aa"},
        "retrieval": {"gallery": "test", "hash": "99ff"},
        "health": {"rows": "all", "hash": "77bb"},
    },
}


class Page(HTMLParser):
    """What a browser sees: the tags' tree must be sound, the text is kept by tag."""

    def __init__(self, path):
        super().__init__()
        self.open, self.attributes, self.text = [], [], []
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open[-1] != tag:
            assert self.open.pop() in CLOSED_BY_THE_NEXT
        self.open.pop()

    def handle_data(self, data):
        if data.strip():
            self.text.append((self.open[-1] if self.open else "", data.strip()))

    def of(self, tag):
        return [text for where, text in self.text if where == tag]

    def words(self):
        return " ".join(text for where, text in self.text if where != "style")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def report(tmp_path, record=RECORD, config=None, figures=None, **more):
    path = tmp_path / "new" / "report.html"
    write_report(record, config or {}, figures or {}, path, **more)
    assert [x.name for x in path.parent.iterdir()] == ["report.html"]
    return Page(path)


def test_is_self_contained_and_readable_on_a_phone(tmp_path, picture):
    figures = {"t-SNE": picture, f"Neighbours {HOSTILE}": picture}
    page = report(tmp_path, figures=figures)
    tags = [tag for tag, _ in page.attributes]
    assert not {"script", "link", "iframe"} & set(tags)
    assert not re.search(r"https?://|@import|url\(|file:", page.source)
    assert ("html", {"lang": "en"}) in page.attributes
    assert "width=device-width" in page.source
    assert "prefers-color-scheme: dark" in page.source
    assert tags.count("h1") == 1 and tags.count("table") == page.source.count(
        '"scroll"'
    )
    images = [attributes for tag, attributes in page.attributes if tag == "img"]
    assert [x["alt"] for x in images] == list(figures)
    for image in images:
        kind, code = image["src"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(code) == picture.read_bytes()
        assert Image.open(io.BytesIO(base64.b64decode(code))).size == (60, 40)


def test_escapes_every_text(tmp_path, picture):
    record = copy.deepcopy(RECORD)
    record["health"][HOSTILE] = 1.0
    record["retrieval"][HOSTILE] = 0.5
    record["protocol"]["knn"] = {HOSTILE: HOSTILE, "hash": HOSTILE}
    other = {"step": 1, "label": HOSTILE, "protocol": {"knn": {"hash": HOSTILE + "2"}}}
    page = report(
        tmp_path,
        record,
        {HOSTILE: [HOSTILE]},
        {HOSTILE: picture},
        paper={"table": HOSTILE, "knn": {"5": 0.8}},
        compare=other,
    )
    assert "<script" not in page.source
    assert page.of("h1") == [f"{HOSTILE}, step 12,345"]
    assert page.words().count("alert(1)") > 12


def test_numbers_beside_the_papers_and_another_runs(tmp_path):
    other = copy.deepcopy(RECORD) | {"label": "IRaug", "knn": {"5": 0.9, "20": 0.91}}
    paper = {"table": "Table 2", "knn": {"5": 0.866, "200": 0.93004}}
    page = report(tmp_path, paper=paper, compare=other)
    words = page.words()
    assert "% ours paper's EIR difference IRaug k = 5 94.12 86.60 +7.52 90.00" in words
    assert "k = 20 95.00 — — 91.00 k = 200 93.00 93.00 +0.00 —" in words
    assert "R@1 97.13 97.13 NMI — —" in words
    assert "Paper: Table 2." in words and words.count("Table 2") == 1
    assert "Chosen: learning rate 0.1, weight decay 0." in words
    assert "kNN, k = 200 93.00 % paper's EIR 93.00 ( +0.00 )" in words
    assert "R@1 97.13 % Linear, top-1 97.00 %" in words
    assert "RankMe 40.12 About" in words and "News 3" in words
    assert "50,000 training images" in words
    assert page.of("code") == ["ab12cd34", "11aa", "99ff", "77bb"]
    assert "do not compare" not in words


def test_says_when_protocols_differ(tmp_path):
    other = copy.deepcopy(RECORD)
    other["protocol"]["knn"]["hash"] = "ffff"
    words = report(tmp_path, compare=other).words()
    assert words.count("do not compare") == 1 and "(ffff)" in words
    assert "% ours step 12345" in words


def test_absent_parts_leave_nothing(tmp_path):
    page = report(tmp_path, {"step": 3, "protocol": {}})
    assert not {"section", "table", "ul", "p", "details"} & {
        t for t, _ in page.attributes
    }
    assert page.of("h1") == ["Evaluation, step 3"]
    record = {k: RECORD[k] for k in ("step", "retrieval", "protocol")}
    page = report(tmp_path, record, {"lambda_intra": 15.0, "data.path": ""})
    assert page.of("h2") == ["Retrieval", "How it was made"]
    assert page.of("summary") == ["Protocol", "Data and images", "Settings"]
    assert "data.path —" in page.words() and "lambda_intra 15" in page.words()


def test_says_what_made_it_and_what_each_panel_is(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    path, made = tmp_path / "r.html", {"trained by": "python -m <x>", "commit": "abc1"}
    figures = {"Training": tmp_path / "a.png", "Nearest neighbours": tmp_path / "a.png"}
    write_report({"step": 3, "protocol": {}}, {}, figures, path, made=made)
    page = Page(path)
    assert "trained by python -m <x> commit abc1" in page.words()
    assert page.of("summary") == ["What each panel is", "Commands, commits, devices"]
    assert (
        "Bank drift How far" in page.words() and "green: of its class" in page.words()
    )


def test_one_line_for_what_cannot_be_read_or_written(tmp_path):
    with pytest.raises(UserError, match=r"none\.png cannot be read"):
        write_report(RECORD, {}, {"a": tmp_path / "none.png"}, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_report(RECORD, {}, {}, tmp_path / "file" / "r.html")
