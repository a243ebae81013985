"""Invariant: what is right, and what is read, is what the benchmarks' own published rules say by hand.

Each table has at least sixty answers. The expected values were worked out from the scripts' rules, which the
comments repeat, and not by running this project.
"""

import json
from dataclasses import replace

import pytest

from moss_vllm.data.favor import read_favor_bench
from moss_vllm.data.motionbench import read_motionbench
from moss_vllm.data.rows import Question
from moss_vllm.evaluation.protocols import CLIP_SETTINGS, FAVOR_BENCH, LETTERS, MOTIONBENCH
from moss_vllm.evaluation.result import Result
from moss_vllm.evaluation.scoring import judge_favor, parse_letter
from moss_vllm.video.frames import short_side_within, target_size

POT = ("Pick up the pot", "Turn left", "Turn around", "Put down the pot", "Turn around and walk forward")
PUSH = ("Push", "Pull", "Push and pull", "push the door", "Lift", "Lift and push")
STOPS = ("The camera pans left.", "The camera zooms in.", "The camera stays still.")
ORDER = ("Jump, Lay down, Stand", "Jump, Stand, Lay down", "Lay down, Stand, Jump")
COUNTS = ("1", "2", "3", "4", "5", "6")
LINES = ("the man\n  then the dog", "the dog", "the cat")  # MotionBench's continuation lines stay in the text
QUOTES = ("Turn around", 'Open the cook\'s "pot"')

# FAVOR-Bench, inference_qa_qwen.py: the answer's text is in the output, whatever the case, and no other
# option that contains the answer (there case counts) is. Letters, word boundaries and negations mean nothing.
# (options, answer) -> outputs that are right, outputs that are wrong.
FAVOR_ANSWERS = {
    (POT, "Turn around"): (
        [
            *("Turn around", "turn around", "TURN AROUND", "tURN aROUND.", "'Turn around'", '"Turn around"'),
            *("  Turn around\n", "(C) Turn around", "C. Turn around", "(B) Turn around", "Turn around!"),
            *("The answer is Turn around", "She will turn around and then leave", "Turn around and walk"),
            *("Turn around and  walk forward", "['Turn left', 'Turn around']", "Turn left or turn around"),
            *("Not turn around", "turn around, turn around", "Turn aroundabout", "They return around noon"),
            "Pick up the pot\nTurn left\nTurn around\nPut down the pot",
        ],
        [
            *("Turn around and walk forward", "turn around AND walk forward"),
            "Turn around and walk forwards",
            *("(E) Turn around and walk forward.", "Turn around, not turn around and walk forward"),
            *(str(list(POT)), "C", "(C)", "c", "C.", "The answer is C", "Option C", "3", "", " ", "\n", "?"),
            *("Turn  around", "turn\naround", "Turn-around", "turnaround", "Turned around", "Turns around"),
            *("Turning around", "around turn", "Turn", "around", "Turn left", "Pick up the pot"),
            *("(C) Put down the pot", "None of these", "A and C", "I cannot answer this.", "['Turn left']"),
        ],
    ),
    (POT, "Turn around and walk forward"): (  # contained in no option; that it contains one does not matter
        [
            *("Turn around and walk forward", "turn around and walk forward, then stop", str(list(POT))),
            *("Turn around? Turn around and walk forward", "(C) turn around and Walk Forward"),
        ],
        ["Turn around", "Turn around and walk", "E", "(E)", "Turn around, walk forward", ""],
    ),
    (PUSH, "Push"): (  # only "Push and pull" contains it: "push the door" and "Lift and push" have a small p
        [
            *("Push", "push", "pushing", "Push, pull"),
            *("push and then pull", "Push the door", "Lift and push"),
            *("PUSH!", "Push or Pull", "push the door, lift and push"),
        ],
        ["Push and pull", "PUSH AND PULL", "Push. Push and pull.", "Pull", "Lift", "A", "Pus", "p u s h"],
    ),
    (STOPS, "The camera zooms in."): (  # the stop is part of the text
        ["The camera zooms in.", "the camera zooms in...", "B. THE CAMERA ZOOMS IN.\n"],
        ["The camera zooms in", "The camera zooms in, slowly.", "B", "The camera zooms  in."],
    ),
    (QUOTES, QUOTES[1]): (  # the prompt shows Python's repr, in which the quote has a backslash
        ['Open the cook\'s "pot"', 'OPEN THE COOK\'S "POT".'],
        ['Open the cook\\\'s "pot"', 'Open the cook’s "pot"', "Open the cook's pot", str(list(QUOTES))],
    ),
    (("Öffnet die Tür", "Schließt die Tür"), "Öffnet die Tür"): (
        ["ÖFFNET DIE TÜR", "Er öffnet die Tür"],
        ["Offnet die Tur", "Schließt die Tür"],
    ),
    (("Wave", "Wave", "Nod"), "Wave"): (["Wave", "waves"], ["Nod"]),  # an equal option contains nothing more
    (("Turn around", " Turn around", "Go"), "Turn around"): (  # a blank makes an option longer
        ["Turn around", "(Turn around)"],
        ["They turn around"],
    ),
}

# VideoLLaMA3, mvbench.py: delete "answer" and "Answer"; the first capital from A to the last option's letter
# counts, in a word too; without one, the first option (in their order) whose text, less blanks and stops at
# its ends, is in the output, whatever the case. Where it then stops with an error, nothing was read.
LETTER_ANSWERS = {
    POT: {
        "A": [
            *("A", "(A)", "A.", "A) Pick up the pot", "A or C", "A and B", "ABC", "a A"),
            *("A man turns around", "An answer: C", "ANSWER: C"),
            *("TURN AROUND", "I think A", "pick up the pot"),
            *("turn left after you pick up the pot", "\nA\n", "Asked: turn left", "Option A"),
        ],
        "B": [
            *("B", "(B) Turn left", "Both A and C", "But C", "Based on the video, C", "turn left"),
            *("the answer is turn left", "turn left then turn around", "**B**", "Turn left.", "[B]"),
        ],
        "C": [
            *("C", "(C)", "C:", " C", "C\n", "C)", "The answer is C", "Answer: C", "answer:C", "Option C"),
            *("The best answer is (C).", "Correct: D", "Cannot tell", "Turn around", "turn around or turn"),
            *("PICK UP THE POT", "答案是C", "Turn around and walk forward", "It is turn around."),
        ],
        "D": [
            *("D", "(D)", "Answers: D", "<answer>D</answer>", "Definitely E", "Put down the Pot", "DE"),
            *("Do not know", "the answer, put down the pot"),
        ],
        "E": ["E", "(E) Turn around and walk forward", "E D C", "Video shows E", "Each", "Either C or D"],
        None: [
            *("", " ", "\n", "b", "(b)", "c.", "the answer is c"),
            *("F", "(F)", "G.", "?", "3", "answer", "Answer"),
            *("None of these", "I don't know", "It is unclear", "she turns around", "turn  left", "Ⓒ", "É"),
            "С",  # Cyrillic
        ],
    },
    ORDER: {
        "A": ["A", "(A)", "jump, lay down, stand", "Option D or A"],
        "B": ["B", "(B) Jump, Stand, Lay down", "jump, stand, lay down.", "D, so B"],
        "C": ["C", "C. Lay down, Stand, Jump", "Lay down, Stand, Jump", "E or C", "Dog? C"],
        None: ["D", "(D)", "E", "Dog", "Each", "Jump", "Jump Stand Lay down", "stand, jump, lay down"],
    },
    COUNTS: {
        "A": ["A", "1", "12", "10 times", "21"],
        "B": ["B", "2", "2 or 3", "32"],  # the first option, not the first digit
        "C": ["C", "3 times"],
        "D": ["D", "4", "Don't know"],
        "E": ["E", "5"],
        "F": ["F", "(F)", "F. 6", "6", "Four", "For sure 2", "FACE"],
        None: ["G", "five", "0", "789", ""],
    },
    STOPS: {
        "A": ["the camera pans left", "The  pans; A", "A."],
        "B": ["the camera zooms in, slowly", "The camera zooms in."],
        "C": ["The camera stays still", "Camera"],
        None: ["the camera zooms", "D", "camera pans right."],
    },
    LINES: {
        "A": ["A", "the man\n  then the dog", "THE MAN, then the dog"],
        "B": ["the man then the dog", "the man\nthen the dog", "The dog"],
        "C": ["the cat", "CAT"],
        None: ["the man", "dog"],
    },
}

# MotionBench, answer_util.py: blanks off; what stands before the first ")"; of that, what stands between its
# first "(" and the next; the first word; its first character. That must be the answer's letter, case and all.
POLISHED_ANSWERS = {
    "A": [
        *("A", " A\n", "A.", "A)", "(A)", "A) Jump", "(A) Jump", "A. Jump", "A, B", "AB", "A B", "A or C"),
        *("Answer: B", "I think (A)", "(A and (B)", "A)B)C)", "A: Jump", "A-Jump", "\tA\t", "(A", "All"),
        "A\u00a0Jump",
    ],
    "B": ["B", "B.", "(B) ...", "A (B)", "Both", "Because A", "B\nas it moves", "\n\nB", "(B) or (C)", "B)"],
    "C": ["C", "(C)", "The answer is (C)", "The answer is (C) as (D)", "Cannot tell", "( C )", "答案是(C)"],
    "D": ["D", "Definitely C", "(\nD)", "Answer: (D)", "A C (D) B", "Do it"],
    "E": ["E", "(E)", "Each"],
    "F": ["F", "F.", "(F) six", "For sure 2"],
    "G": ["G", "(G)", "Go"],
    "T": ["The answer is C", "The correct option is D.", "TURN"],
    "I": ["It is B.", "I think A"],
    "O": ["Option B"],
    "N": ["None", "No"],
    "a": ["a", "a)", "(a)", "answer B"],
    "b": ["b", "option (b)", "b. Jump"],
    "c": ["c", "c)", "(c) jump"],
    "t": ["A (the man) B", "the answer is C"],
    "x": ["x) (B)"],
    "*": ["**B**"],
    "[": ["[B]"],
    "'": ["'B'"],
    "-": ["- B"],
    ".": [".B"],
    "1": ["1) B", "1"],
    "?": ["?"],
    "Ａ": ["Ａ"],  # full width
    "": ["", "   ", ")", "(", "()", ") A", "((A))", "A (", "(  ) B"],
}


def favor_question(options, answer):
    return Question("27k-12-4-3|P1|4966|5375_1", "AS", "What next?", options, answer, "What next?")


def letters_of(options):
    return LETTERS[: len(options)]


FAVOR_ROWS = [
    (options, answer, output, right)
    for (options, answer), (good, bad) in FAVOR_ANSWERS.items()
    for right, outputs in ((True, good), (False, bad))
    for output in outputs
]
LETTER_ROWS = [
    (options, output, letter)
    for options, read in LETTER_ANSWERS.items()
    for letter, outputs in read.items()
    for output in outputs
]
POLISHED_ROWS = [(output, read) for read, outputs in POLISHED_ANSWERS.items() for output in outputs]


def test_no_table_has_an_answer_twice_or_fewer_than_sixty():
    for rows, output in ((FAVOR_ROWS, 2), (LETTER_ROWS, 1), (POLISHED_ROWS, 0)):
        assert len({row[:-1] for row in rows}) == len(rows) and len({row[output] for row in rows}) >= 60


@pytest.mark.parametrize(("options", "answer", "output", "right"), FAVOR_ROWS)
def test_favor_official(options, answer, output, right):
    judged, read = FAVOR_BENCH.protocols["favor_official"].judge(output, favor_question(options, answer))
    assert judged is right
    assert read is not None or not right  # the table says how many answers had an option in them


@pytest.mark.parametrize(("options", "output", "letter"), LETTER_ROWS)
def test_letter(options, output, letter):
    for protocol in ("letter", "likelihood"):
        for place, option in zip(letters_of(options), options, strict=True):
            found = FAVOR_BENCH.protocols[protocol].judge(output, favor_question(options, option))
            assert found == (letter == place, letter)
            asked = Question("ggqGrLl5uBMMNzW2", "MR", "?", options, place, "?")
            assert MOTIONBENCH.protocols[protocol].judge(output, asked) == (letter == place, letter)


@pytest.mark.parametrize(("output", "read"), POLISHED_ROWS)
def test_motionbench(output, read):
    for options in (ORDER, POT, COUNTS):
        shown = read if read and read in letters_of(options) else None
        for place in letters_of(options):
            asked = Question("ggqGrLl5uBMMNzW2", "MR", "?", options, place, "?")
            assert MOTIONBENCH.protocols["motionbench"].judge(output, asked) == (read == place, shown)


@pytest.mark.parametrize(
    ("output", "read"),
    [
        ("She will turn around.", "Turn around"),
        ("Turn around and walk forward", "Turn around and walk forward"),
        ("Turn left, turn around", "Turn left; Turn around"),
        (
            "turn around and walk forward, then put down the pot",
            "Put down the pot; Turn around and walk forward",
        ),
        ("(C)", None),
    ],
)
def test_favor_official_names_the_longest_options_said(output, read):
    judge = FAVOR_BENCH.protocols["favor_official"].judge
    assert judge(output, favor_question(POT, "Turn around"))[1] == read


@pytest.mark.parametrize(
    ("options", "answer", "text", "right"),
    [
        (POT, "Turn around", "Turn around", True),
        (POT, "Turn around", "Turn around and walk forward", False),  # it contains the answer
        (POT, "Turn around and walk forward", "Turn around", False),
        (PUSH, "Push", "push the door", True),  # as in FAVOR_ANSWERS: only a longer "Push ..." would count
        (("Wave", "Wave", "Nod"), "Wave", "Wave", True),
        (("Turn around", " Turn around", "Go"), "Turn around", "Turn around", True),
        (("Turn around ", "Go"), "Turn around ", "Turn around", True),  # blanks are in no output
    ],
)
def test_option_text_of_favor_is_right_by_the_official_rule_and_read_whole(options, answer, text, right):
    judge = FAVOR_BENCH.protocols["option_text"].judge
    assert judge(text, favor_question(options, answer)) == (right, text)


def test_option_text_of_motionbench_is_the_letter_of_the_first_option_with_that_text():
    protocol = MOTIONBENCH.protocols["option_text"]
    asked = Question("u", "MR", "?", ("up", "left ", "left", "up and left"), "C", "?")
    assert protocol.judge("left", asked) == (False, "B")
    assert protocol.judge("left", replace(asked, answer="B")) == (True, "B")
    assert protocol.judge("up and left", replace(asked, answer=None)) == (False, "D")
    assert protocol.choices(asked) == ["up", "left", "up and left"]
    scores = {"up": 1.0, "left": 0.5, "up and left": 2.0}
    assert protocol.scores_by_letter(asked, scores) == {"A": 1.0, "B": 0.5, "C": 0.5, "D": 2.0}


def test_option_text_is_asked_as_the_default_protocol_and_named_with_the_score():
    for benchmark in (FAVOR_BENCH, MOTIONBENCH):
        default, protocol = next(iter(benchmark.protocols.values())), benchmark.protocols["option_text"]
        assert protocol.prompt is default.prompt and protocol.settings.keys() == default.settings.keys()
        named = "option_text (mean loss per token of an option's text, nothing is generated): 2 fps"
        assert str(protocol).startswith(named)


def test_favor_exception_compares_options_with_case_and_outputs_without():
    assert judge_favor("he turns around slowly", "turns", ("turns", "Turns around")) is True
    assert judge_favor("it turns around slowly", "turns", ("turns", "it turns Around")) is False


@pytest.mark.parametrize(("output", "letter"), [("A, as", "A"), ("( A )", "A"), (",B", "B"), ("C, A", "C")])
def test_letter_goes_on_where_the_original_trips_over_its_own_brackets_and_commas(output, letter):
    assert parse_letter(output, POT) == letter


def test_a_withheld_answer_is_never_right():
    for benchmark, name in ((MOTIONBENCH, "letter"), (MOTIONBENCH, "motionbench")):
        asked = Question("u", "MR", "?", ORDER, None, "?")
        assert benchmark.protocols[name].judge("(A)", asked) == (False, "A")
        assert benchmark.protocols[name].judge("", asked) == (False, None)


def test_letters_need_options_that_can_be_lettered():
    assert parse_letter("Z", ["x"] * 26) == "Z"
    for options in ((), ["x"] * 27):
        with pytest.raises(ValueError, match=f"{len(options)} options cannot be lettered; pass 1 to 26"):
            parse_letter("A", options)


def test_questions_as_distributed_are_judged_by_these_rules(tmp_path):
    """From the files: ids with bars, .mp4 twice, options in the question string, a line that goes on."""
    for name in ("27k-12-4-3|P1|4966|5375.mp4", "1333C.mp4.mp4", "m.mp4"):
        (tmp_path / name).write_bytes(b"")
    ask = {"question": "?", "options": list(POT), "correct_answer": "Turn around", "task_type": "AS"}
    rows = [
        {"video_name": name, "questions": [ask, ask]} for name in ("27k-12-4-3|P1|4966|5375", "1333C.mp4.mp4")
    ]
    (tmp_path / "video_perspective.json").write_text(json.dumps(rows))
    favor = [question for video in read_favor_bench(tmp_path, tmp_path) for question in video.questions]
    assert [q.uid for q in favor] == [
        *("27k-12-4-3|P1|4966|5375_1", "27k-12-4-3|P1|4966|5375_2", "1333C_1", "1333C_2")
    ]
    assert {FAVOR_BENCH.protocols["letter"].judge("(C)", q) for q in favor} == {(True, "C")}
    assert {FAVOR_BENCH.protocols["favor_official"].judge("turn around", q)[0] for q in favor} == {True}

    raw = "Which comes first?\nA. the man\n  then the dog\nB. the dog\nC. the cat\n"
    qa = [
        {"uid": f"ggqGrLl5uBMMNzW2_{n}", "answer": answer, "question": raw} for n, answer in enumerate("AB")
    ]
    row = {"question_type": "Action Order", "video_path": "m.mp4", "qa": qa}
    (tmp_path / "video_info.meta.jsonl").write_text(json.dumps(row) + "\n")
    (video,) = read_motionbench(tmp_path, tmp_path)
    # The released scorer wraps question_type into a list once more for every question of a row.
    assert [(q.uid, q.task) for q in video.questions] == [
        *(("ggqGrLl5uBMMNzW2_0", "AO"), ("ggqGrLl5uBMMNzW2_1", "AO"))
    ]
    first, second = video.questions
    judge = MOTIONBENCH.protocols["letter"].judge
    assert judge("the man\n  then the dog", first) == (True, "A")
    assert judge("it is the dog", second) == (True, "B") and judge("D", second) == (False, None)


def test_withheld_answers_are_in_no_denominator():
    """MotionBench's script divides by all questions and counts the withheld ones as answered."""
    protocol = MOTIONBENCH.protocols["letter"]
    records = [
        {"uid": str(n), "task": "MR", "parsed": "A", "answer": answer, "correct": answer and answer == "A"}
        for n, answer in enumerate(["A", "A", "B", "A", None, None, None, None])
    ]
    records[3] |= {"parsed": None, "correct": False}
    found = Result({"questions": 8}, MOTIONBENCH, protocol, records, {}).score
    assert (found.correct["all"], found.answered["all"], found.total["all"]) == (2, 3, 4)
    assert found.accuracy["all"] == 50.0


# ---- clip settings


def test_named_clips_are_the_papers_and_the_benchmarks():
    assert CLIP_SETTINGS == {
        "paper": {"sample_fps": 2.0, "short_side_px": 224, "max_frames": 180},
        "favor_official": {"sample_fps": 1.0, "max_pixels": 151_200, "max_frames": 180},
    }
    for protocol in (*FAVOR_BENCH.protocols.values(), *MOTIONBENCH.protocols.values()):
        assert protocol.adapt(CLIP_SETTINGS["paper"]) == protocol
    assert str(FAVOR_BENCH.protocols["favor_official"].adapt(CLIP_SETTINGS["favor_official"])) == (
        "favor_official, answers of up to 256 tokens: 1 fps, at most 151,200 pixels, up to 180 frames, "
        "token compression"
    )


@pytest.mark.parametrize(
    ("preferences", "size"),
    [
        ([], (224, None)),
        ([{}], (224, None)),
        ([{"short_side_px": 84}], (84, None)),
        ([{"short_side_px": 84}, {"short_side_px": None}], (84, None)),
        ([{"short_side_px": 84}, {"short_side_px": 112}], (112, None)),
        ([{"max_pixels": 151_200}], (224, 151_200)),  # short_side_px is not used then
        ([{"short_side_px": 84}, {"max_pixels": 151_200}], (84, 151_200)),
        ([{"max_pixels": 151_200}, {"short_side_px": 84}], (84, None)),  # the later of the two
        ([{"max_pixels": 151_200}, {"short_side_px": None}], (224, 151_200)),
        ([{"short_side_px": 84}, {"max_pixels": 151_200}, {"short_side_px": 112}], (112, None)),
        ([{"short_side_px": 84}, {"max_pixels": 151_200}, {"sample_fps": 4.0}], (84, 151_200)),
        ([{"max_pixels": 151_200, "short_side_px": 84}], (84, 151_200)),  # as a run's own protocol has both
        ([{"max_pixels": None, "short_side_px": 84}], (84, None)),
        ([{"max_pixels": 1}, {"max_pixels": 151_200}], (224, 151_200)),
    ],
)
def test_the_later_of_two_sizes_counts(preferences, size):
    protocol = FAVOR_BENCH.protocols["letter"]
    adapted = protocol.adapt(*preferences)
    assert (adapted.short_side_px, adapted.max_pixels) == size
    assert ("at most 151,200 pixels" in str(adapted)) == (size[1] == 151_200)
    assert ("short side" in str(adapted)) == (size[1] is None)


@pytest.mark.parametrize(
    ("height", "width", "short_side_px", "size"),
    [
        (720, 1280, 280, (280, 504)),  # 497.8 is nearest to 18 * 28; 308 x 560 = 172,480 would be too many
        (1280, 720, 280, (504, 280)),
        (360, 480, 336, (336, 448)),  # 150,528 of 151,200
        (336, 336, 336, (336, 336)),  # 364 x 364 would fit, but the video has no more
        (112, 84, 84, (112, 84)),
        (20, 20, 28, (28, 28)),
    ],
)
def test_a_pixel_budget_sets_the_short_side_of_each_video(height, width, short_side_px, size):
    found = short_side_within(height, width, CLIP_SETTINGS["favor_official"]["max_pixels"])
    assert found == short_side_px and target_size(height, width, found) == size


def test_flags_come_before_named_clips_before_the_checkpoints():
    trained = {"sample_fps": 4.0, "short_side_px": 84, "max_frames": 16, "compress_tokens": False, "seed": 1}
    flags = dict.fromkeys(("sample_fps", "short_side_px", "compress_tokens"))
    flags |= {"max_frames": 8, "still": True}
    protocol = FAVOR_BENCH.protocols["favor_official"]
    adapted = protocol.adapt(trained, CLIP_SETTINGS["favor_official"], flags)
    clips = {"sample_fps": 1.0, "short_side_px": 84, "max_pixels": 151_200, "max_frames": 8}
    assert adapted == replace(protocol, **clips, compress_tokens=False, still=True)
    shown = {**clips, "compress_tokens": False, "still": True}
    assert adapted.settings == {"name": "favor_official", "max_new_tokens": 256, **shown}
    assert str(adapted) == (
        "favor_official, answers of up to 256 tokens: 1 fps, at most 151,200 pixels, up to 8 frames, "
        "no token compression; one-frame control: every frame is the middle one"
    )
