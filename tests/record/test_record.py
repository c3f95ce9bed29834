import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from opposing_signals.errors import InputError
from opposing_signals.record import Record, column

CONFIGURATION = {"steps": 5, "model": {"width": 4}}


def rows(step: int) -> np.ndarray:
    return np.arange(3, dtype=np.float32) + step


def test_what_is_appended_is_read_back_while_it_is_written(tmp_path):
    with Record.writing(tmp_path, CONFIGURATION) as writer:
        for step in range(4):
            writer.append("sample_loss", step, rows(step))
            writer.append("sharpness", step, 2.0 * step)
            reader = Record(tmp_path)
            assert len(reader["sample_loss"]) == step + 1
            np.testing.assert_array_equal(reader["sample_loss"].at(step), rows(step))
    assert set(Record(tmp_path)) == {"sample_loss", "sharpness"}
    assert Record(tmp_path)["sharpness"].values.tolist() == [0, 2, 4, 6]
    assert Record(tmp_path).configuration == CONFIGURATION


def test_files_are_plain_npy(tmp_path):
    with Record.writing(tmp_path, CONFIGURATION) as writer:
        writer.append("sample_loss", 7, rows(7))
    array = np.load(tmp_path / "sample_loss.npy", allow_pickle=False)
    assert array["step"].tolist() == [7]
    np.testing.assert_array_equal(array["value"], rows(7)[None])


def test_cutting_back_forgets_later_rows_and_spares_open_readers(tmp_path):
    with Record.writing(tmp_path, CONFIGURATION) as writer:
        for step in range(6):
            writer.append("sample_loss", step, rows(step))
        open_reader = Record(tmp_path)["sample_loss"]
    with Record.writing(tmp_path, CONFIGURATION) as writer:
        writer.cut(2)
        assert Record(tmp_path)["sample_loss"].steps.tolist() == [0, 1]
        writer.append("sample_loss", 2, rows(20))
    np.testing.assert_array_equal(Record(tmp_path)["sample_loss"].at(2), rows(20))
    assert open_reader.values[5].tolist() == rows(5).tolist()


def test_a_half_written_row_is_not_counted(tmp_path):
    with Record.writing(tmp_path, CONFIGURATION) as writer:
        writer.append("sample_loss", 0, rows(0))
    with (tmp_path / "sample_loss.npy").open("ab") as file:
        file.write(b"\x01" * 5)
    with Record.writing(tmp_path, CONFIGURATION) as writer:
        writer.append("sample_loss", 1, rows(1))
    np.testing.assert_array_equal(Record(tmp_path)["sample_loss"].values, [rows(0), rows(1)])


def test_a_full_disk_leaves_the_rows_so_far(tmp_path, monkeypatch):
    with Record.writing(tmp_path, CONFIGURATION) as writer:
        writer.append("sample_loss", 0, rows(0))
        pwrite = os.pwrite
        taken = []

        def nearly_full(descriptor, data, offset):
            if taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken.append(pwrite(descriptor, data[:7], offset))
            return taken[0]

        monkeypatch.setattr(column.os, "pwrite", nearly_full)
        with pytest.raises(OSError, match="No space left"):
            writer.append("sample_loss", 1, rows(1))
        monkeypatch.undo()
    np.testing.assert_array_equal(Record(tmp_path)["sample_loss"].values, [rows(0)])


def test_steps_must_increase_and_shapes_must_stay(tmp_path):
    with Record.writing(tmp_path, CONFIGURATION) as writer:
        writer.append("sample_loss", 3, rows(3))
        with pytest.raises(ValueError, match="step 3 after step 3"):
            writer.append("sample_loss", 3, rows(3))
        with pytest.raises(ValueError, match="shape"):
            writer.append("sample_loss", 4, rows(4)[:2])
    with Record.writing(tmp_path, CONFIGURATION) as writer, pytest.raises(ValueError, match="step 2 after step 3"):
        writer.append("sample_loss", 2, rows(2))


def test_reading_only_does_not_write(tmp_path):
    with Record.writing(tmp_path, CONFIGURATION):
        pass
    with pytest.raises(ValueError, match="reading only"):
        Record(tmp_path).append("sample_loss", 0, rows(0))


def test_a_second_process_may_not_write(tmp_path):
    code = (
        "import sys; from opposing_signals.record import Record; from opposing_signals.errors import InputError\n"
        "try:\n  with Record.writing(sys.argv[1], {'steps': 5, 'model': {'width': 4}}): pass\n"
        "except InputError as error: print(error)"
    )
    with Record.writing(tmp_path, CONFIGURATION):
        second = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert "another process is writing" in second.stdout


def test_a_second_writer_can_wait_for_the_first(tmp_path):
    code = (
        "import sys; from opposing_signals.record import Record\n"
        "with Record.writing(sys.argv[1], {'steps': 5, 'model': {'width': 4}}, wait=True) as record:\n"
        "  print(record.state)"
    )
    with Record.writing(tmp_path, CONFIGURATION) as writer:
        second = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(timeout=2)
        writer.write_state("complete")
    assert second.communicate(timeout=60)[0] == "complete\n"


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    with Record.writing(tmp_path, CONFIGURATION):
        pass
    other = {"steps": 5, "model": {"width": 8}}
    with pytest.raises(InputError, match=r"model.width = 4 there, 8 here"), Record.writing(tmp_path, other):
        pass


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(InputError, match="no record of a run"):
        Record(tmp_path)


def test_unknown_quantities_are_named_with_the_known(tmp_path):
    with Record.writing(tmp_path, CONFIGURATION) as writer:
        writer.append("sharpness", 0, 1.0)
    with pytest.raises(KeyError, match="it holds sharpness"):
        Record(tmp_path)["sample_loss"]
    with pytest.raises(KeyError, match="step 1"):
        Record(tmp_path)["sharpness"].at(1)
