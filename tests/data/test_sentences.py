import os
from pathlib import Path

import pytest

from flatnb.data.sentences import read_sentences

DATA = os.environ.get("FLATNB_DATA", "")  # which the tests of this folder take away


def written(folder: Path, train: str, test: str = "0 so so\n") -> Path:
    (folder / "train.txt").write_text(train, encoding="utf-8")
    (folder / "test.txt").write_text(test, encoding="utf-8")
    return folder


def test_sentences_are_read_in_order(tmp_path) -> None:
    found = read_sentences(
        written(tmp_path, "1 very  good !\n0 1 star , crème \u2028\n")
    )
    assert found.train_x == ["very  good !", "1 star , crème"]
    assert found.train_y.tolist() == [1, 0]
    assert (found.test_x, found.test_y.tolist()) == (["so so"], [0])
    assert found.classes == ("0", "1")
    assert read_sentences(written(tmp_path, "1 a\r\n0 b")).train_x == ["a", "b"]


def test_a_byte_that_is_not_of_utf_8_does_not_end_it(tmp_path) -> None:
    written(tmp_path, "0 a\n1 b\n")
    (tmp_path / "test.txt").write_bytes(b"1 the \xf0 byte\n")
    assert read_sentences(tmp_path).test_x == ["the \ufffd byte"]


@pytest.mark.parametrize(
    ("train", "match"),
    [
        ("0 a\nb c\n1 d\n", r"train.txt, line 2: 'b c'; allowed: a number 0, 1"),
        ("0 a\n\n1 d\n", "line 2: ''"),
        ("0 a\n1\n", "line 2: '1'"),
        ("0 a\n1  \n", "line 2: '1 '"),
        ("0 a\n-1 b\n", "line 2: '-1 b'"),
        ("", "train.txt is empty"),
        ("0 a\n0 b\n", r"labels \[0\]; allowed: 0, 1, ... without a gap, two or more"),
        ("0 a\n2 b\n", r"labels \[0, 2\]"),
    ],
)
def test_what_is_no_line_of_label_and_sentence_is_refused(
    tmp_path, train, match
) -> None:
    with pytest.raises(ValueError, match=match):
        read_sentences(written(tmp_path, train))


def test_labels_of_the_test_alone_are_refused(tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"test.txt has the label 2; allowed: .* 0 to 1"
    ):
        read_sentences(written(tmp_path, "0 a\n1 b\n", "2 c\n"))


def test_a_missing_file_is_named(tmp_path) -> None:
    written(tmp_path, "0 a\n1 b\n")
    (tmp_path / "test.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"test.txt is not there; allowed: a fol"
    ):
        read_sentences(tmp_path)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [("sst2", 6920, 1821, 2), ("trec", 5452, 500, 6)],
)
def test_the_published_sets_are_whole(name, train, test, classes) -> None:
    folder = Path(DATA) / "text" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    found = read_sentences(folder)
    assert (len(found.train_x), len(found.test_x)) == (train, test)
    assert len(found.classes) == classes
