"""What a conversion's folders must be, before anything is written."""

import json
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from polybit.errors import JobError
from polybit.quantizer import folders
from polybit.quantizer.folders import WORK_FOLDER, check_apart, check_empty, check_room, delete_leftovers, held
from polybit.quantizer.job import Job, Progress

Usage = namedtuple("Usage", "total used free")


class TestApart:
    @pytest.mark.parametrize(
        ("source", "out", "work", "finding"),
        [
            ("in", "in", "in/.w", "the result .* would lie in the source"),
            ("in", "in/out", "in/out/.w", "the result .* would lie in the source"),
            ("all/in", "all", "all/.w", "the source .* lies in the result"),
            ("in", "out", "in/work", "work_dir .* would lie in the source"),
            ("work/in", "out", "work", "the source .* lies in work_dir"),
            ("in", "work/out", "work", "is deleted at the end"),
            ("in", "out", "out", "is deleted at the end"),
            ("in", "../{here}/in/out", "w", "the result .* would lie in the source"),
            ("in", "link/out", "w", "the result .* would lie in the source"),
        ],
    )
    def test_refused(self, source: str, out: str, work: str, finding: str, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "in")
        with pytest.raises(JobError, match=finding):
            check_apart(tmp_path / source, tmp_path / out.format(here=tmp_path.name), tmp_path / work)

    @pytest.mark.parametrize(("out", "work"), [("in-4bpw", "in-4bpw/.w"), ("out", "work"), ("inner/out", "inner/work")])
    def test_accepted(self, out: str, work: str, tmp_path: Path) -> None:
        check_apart(tmp_path / "in", tmp_path / out, tmp_path / work)


class TestHeld:
    def test_one_at_a_time(self, tmp_path: Path) -> None:
        work = tmp_path / "deep" / "work"
        with (
            held(work),
            pytest.raises(JobError, match=rf"^another conversion is at work in {re.escape(str(work))}"),
            held(work),
        ):
            pass
        with held(work):
            pass

    def test_leaves_nothing_where_no_job_began(self, tmp_path: Path) -> None:
        with held(tmp_path / "work"):
            pass
        assert not (tmp_path / "work").exists()

    def test_leaves_what_is_not_its_own(self, tmp_path: Path) -> None:
        with held(tmp_path / "work"):
            (tmp_path / "work" / "mine").touch()
        assert (tmp_path / "work" / "mine").exists()

    def test_a_file_in_its_place_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(Exception, match="file could not be written"), held(tmp_path / "file"):
            pass


class TestLeftovers:
    def test_of_a_job_are_deleted(self, tmp_path: Path) -> None:
        Job(tmp_path, {}).save(Progress())
        delete_leftovers(tmp_path)
        assert not tmp_path.exists()

    def test_of_a_killed_job_are_deleted_by_the_folder_s_name(self, tmp_path: Path) -> None:
        (tmp_path / WORK_FOLDER / "forward").mkdir(parents=True)
        delete_leftovers(tmp_path / WORK_FOLDER)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("text", ["", "[]", json.dumps({"version": 1, "progress": {}, "identity": {}})])
    def test_of_another_program_stay(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "job.json").write_text(text)
        (tmp_path / "letter.txt").touch()
        delete_leftovers(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["job.json", "letter.txt"]
        with pytest.raises(JobError, match=r"not empty \(it holds job\.json\)"):
            check_empty(tmp_path, tmp_path / "out")


class TestEmpty:
    def test_files_and_links_to_nothing_are_no_folders(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        for name, what in (("file", "a file"), ("link", "a link to nothing")):
            with pytest.raises(JobError, match=f"{name} is {what}, expected a new folder's name"):
                check_empty(tmp_path / "work", tmp_path / name)


class TestRoom:
    @pytest.fixture(autouse=True)
    def disks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Folders that stand for disks of their own, and what is free there."""
        free = {"small": 1_000_000, "large": 9_000_000_000}
        for name in free:
            (tmp_path / name).mkdir()
        monkeypatch.setattr(folders, "disk_of", lambda path: path.name)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free[path.name]))

    @pytest.mark.parametrize(("work", "out"), [("small", "large"), ("large", "small")])
    def test_both_disks_are_asked(self, work: str, out: str, tmp_path: Path) -> None:
        needs = [(tmp_path / work / "w", 2e6), (tmp_path / out / "o", 2e6)]
        with pytest.raises(JobError, match=r"small has 1 MB free, but converting needs about 2 MB there"):
            check_room(needs)

    def test_what_lies_on_one_disk_adds_up(self, tmp_path: Path) -> None:
        check_room([(tmp_path / "small" / "w", 6e5)])
        with pytest.raises(JobError, match=r"needs about 1\.2 MB there"):
            check_room([(tmp_path / "small" / "w", 6e5), (tmp_path / "small" / "o", 6e5)])

    def test_a_file_on_the_way_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(JobError, match=r"file is a file, so that .* cannot be made"):
            check_room([(tmp_path / "file" / "out" / "w", 1)])

    def test_both_folders_must_be_writable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / "large")
        for needs in ([("small/a", 1), ("large/b", 1)], [("large/b", 1), ("small/a", 1)]):
            with pytest.raises(JobError, match="large may not be written"):
                check_room([(tmp_path / name, num_bytes) for name, num_bytes in needs])
