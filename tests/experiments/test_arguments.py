"""Owns: arguments of an experiment that make no sense end it with status 2 and are named."""

import benchmark_action
import benchmark_decoding
import benchmark_stss
import benchmark_tables
import benchmark_training
import efficiency
import pytest
import torch


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        (benchmark_action, "--batch 0", "it must be at least 1"),
        (benchmark_action, "--clips 0", "it must be at least 1"),
        (benchmark_action, "--steps 2", "--steps is 2; it must be above 2"),
        (benchmark_action, "--json .", ". is a folder"),
        (benchmark_action, "--device cuda", "no CUDA device"),
        (benchmark_action, "--parts sleeping", "--parts is 'sleeping'; it must be one of"),
        (benchmark_decoding, "", ""),
        (benchmark_decoding, "x.mp4 --turns 0", ""),
        (benchmark_decoding, "x.mp4 --before nowhere", ""),
        (benchmark_stss, "--shapes ax", "unknown shapes x"),
        (benchmark_stss, "--shapes=", "one or more, got ''"),
        (benchmark_stss, "--shapes aa", "different letters"),
        (benchmark_stss, "--json .", ". is a folder"),
        (benchmark_stss, "--repeats 0", "it must be at least 1"),
        (benchmark_stss, "--device cuda", "no CUDA device"),
        (benchmark_tables, "--batch 0", "it must be at least 1"),
        (benchmark_tables, "--tables 4a --rows 1", "--rows: no row '1'; the rows are none, n=1"),
        (benchmark_tables, "--tables 4a --size-px 56", "--size-px is 56; these tables take multiples of 16"),
        (benchmark_tables, "--size-px 64", "these tables take multiples of 112"),
        (benchmark_tables, "--json .", ". is a folder"),
        (benchmark_tables, "--device cuda", "no CUDA device"),
        (benchmark_training, "--steps 0", "it must be at least 1"),
        (benchmark_training, "--repeats 0", "it must be at least 1"),
        (benchmark_training, "--shape miniature --clip-s 10 0.5", "--clip-s is 0.5; it must be at least 1"),
        (benchmark_training, "--json .", ". is a folder"),
        (benchmark_training, "--shape 2b", "--shape 2b needs a GPU: add --device cuda"),
        (benchmark_training, "--shape 2b --device cuda", "--shape miniature without --device runs the same"),
        (benchmark_training, "--shape 3b", "--shape is '3b'; it must be one of 2b, 7b"),
        (efficiency, "--device mps", "--device is 'mps'; it must be one of"),
        (efficiency, "--device cuda", "no CUDA device"),
    ],
)
def test_bad_arguments_are_named(script, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        script.main(arguments.split())
    assert stopped.value.code == 2 and message in capsys.readouterr().err
