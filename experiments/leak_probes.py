"""The probes of experiments/leaks.py: small networks that choose an option from what they are shown."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

if __name__ == "__main__":
    raise SystemExit("experiments/leak_probes.py is a part of leaks.py, not a command")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE_PX = 42  # of the frames that a probe sees: half of the world's
WIDTH = 64
CLAUSES = re.compile(r", then | and ")
MOST_CLAUSES = 2
BATCH, VALIDATED = 64, 0.15


@dataclass(frozen=True)
class Asked:
    """A question, the place of its right option, and the number of its clip."""

    text: str
    options: tuple[str, ...]
    right: int
    clip: int


def words_of(text: str) -> list[str]:
    """Lowercase words."""
    return re.findall(r"\w+", text.lower())


class Words:
    """Questions as numbers, with the words of the training questions.

    Shape:
        N questions with at most O options -> content (N, O, F), relations (N, O, G), shown (N, O) bool.
    """

    def __init__(self, trained: Sequence[Asked]) -> None:
        texts = {text for asked in trained for text in (asked.text, *asked.options)}
        self.places = {w: i for i, w in enumerate(sorted({w for text in texts for w in words_of(text)}))}
        self.most = max(len(asked.options) for asked in trained)

    def bag(self, text: str) -> Tensor:
        """Which words occur."""
        found = torch.zeros(len(self.places))
        found[[self.places[word] for word in words_of(text) if word in self.places]] = 1
        return found

    def content(self, asked: Asked) -> Tensor:
        """What each option says, clause by clause, and what is asked."""
        question = self.bag(asked.text)
        rows = []
        for option in asked.options:
            clauses = CLAUSES.split(option)[:MOST_CLAUSES]
            bags = [self.bag(c) for c in clauses] + [torch.zeros_like(question)] * (
                MOST_CLAUSES - len(clauses)
            )
            rows.append(torch.cat([*bags, question]))
        return torch.stack(rows)

    def relations(self, asked: Asked) -> Tensor:
        """What each option shares with the others and the question, its place and its length."""
        question, bags = self.bag(asked.text), [self.bag(option) for option in asked.options]
        split = [CLAUSES.split(option) for option in asked.options]
        lengths = [len(option) for option in asked.options]
        rows = []
        for place, option in enumerate(asked.options):
            others = [clauses for i, clauses in enumerate(split) if i != place]
            shared = [float(bags[place] @ bags[i]) for i in range(len(bags)) if i != place] or [0.0]
            numbers = [
                *(
                    float(sum(c[k : k + 1] == split[place][k : k + 1] for c in others))
                    for k in range(MOST_CLAUSES)
                ),
                *(
                    float(sum(clause in c for c in others for clause in split[place][k : k + 1]))
                    for k in range(MOST_CLAUSES)
                ),
                *(float(clause in asked.text) for clause in (split[place] + [""])[:MOST_CLAUSES]),
                *(min(shared), max(shared), sum(shared) / len(shared)),
                float(bags[place] @ question),
                len(option) / 20,
                float(len(option) == max(lengths)),
                float(len(option) == min(lengths)),
                *(float(place == i) for i in range(self.most)),
            ]
            rows.append(torch.cat([torch.tensor(numbers), bags[place] * question]))
        return torch.stack(rows)

    def encode(self, questions: Sequence[Asked]) -> tuple[Tensor, Tensor, Tensor]:
        """Content, relations and which options are shown."""
        sizes = torch.tensor([len(asked.options) for asked in questions])
        pad = nn.utils.rnn.pad_sequence
        content = pad([self.content(asked) for asked in questions], batch_first=True)
        relations = pad([self.relations(asked) for asked in questions], batch_first=True)
        return content, relations, torch.arange(content.shape[1]) < sizes[:, None]


class Eye(nn.Sequential):
    """Frames of 42 x 42 pixels to a vector that keeps places: (N, channels, 42, 42) -> (N, WIDTH)."""

    def __init__(self, channels: int) -> None:
        layers: list[nn.Module] = []
        for before, after, kernel in ((channels, 16, 5), (16, 32, 3), (32, 48, 3)):
            conv = nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(48 * 6 * 6, WIDTH))


class Numbers(nn.Sequential):
    """Standardised numbers to a vector: (N, count) -> (N, WIDTH)."""

    def __init__(self, count: int) -> None:
        super().__init__(nn.Linear(count, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


class Probe(nn.Module):
    """Scores of the options: what is seen (N, WIDTH), or nothing, with the text (N, O, F) -> (N, O).

    Args:
        words: numbers of the text for each option.
        see: the network for what is seen; None for a probe of the text alone.
        moments: frames of a clip, if the probe is told which of them it sees.
    """

    def __init__(self, words: int, see: nn.Module | None, moments: int = 0) -> None:
        super().__init__()
        self.see = see
        self.moment = nn.Embedding(moments, WIDTH) if moments else None
        self.read = nn.Sequential(nn.Linear(words, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.score = nn.Sequential(nn.Linear(WIDTH * (1 if see is None else 3), WIDTH), nn.ReLU())
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, text: Tensor, shown: Tensor, seen: Tensor, moment: Tensor | None = None) -> Tensor:
        """Log-probabilities of the options."""
        read = self.read(text)
        if self.see is not None:
            sight = self.see(seen)
            if self.moment is not None and moment is not None:
                sight = sight + self.moment(moment)
            sight = sight[:, None].expand_as(read)
            read = torch.cat([read, sight, read * sight], dim=-1)
        scores = self.last(self.score(read))[..., 0]
        return F.log_softmax(scores.masked_fill(~shown, -1e4), dim=-1)


Look = Callable[[Tensor, Tensor], Tensor]  # numbers of clips, moments -> what the probe sees of them


def fit(
    probe: Probe,
    text: Tensor,
    shown: Tensor,
    right: Tensor,
    clips: Tensor,
    look: Look,
    *,
    moments: int = 1,
    epochs: int,
    seed: int,
    lr: float = 2e-3,
) -> None:
    """Train; the weights of the epoch that was best on held-back training clips are kept.

    Args:
        text, shown, right, clips: of N questions, the right option's place and the clip's number.
        look: what the probe sees of clips.
        moments: frames of a clip, of which each question shows a random one.
    """
    rng = torch.Generator().manual_seed(seed)
    order = clips.unique()[torch.randperm(len(clips.unique()), generator=rng)]
    held = torch.isin(clips, order[: int(len(order) * VALIDATED)])  # questions of one clip stay together
    training, validation = torch.where(~held)[0], torch.where(held)[0]
    steps = epochs * -(-len(training) // BATCH)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    best, kept = -1e9, probe.state_dict()
    for _ in range(epochs):
        probe.train()
        for rows in training[torch.randperm(len(training), generator=rng)].split(BATCH):
            moment = torch.randint(moments, (len(rows),), generator=rng)
            scores = probe(text[rows], shown[rows], look(clips[rows], moment), moment)
            loss = F.nll_loss(scores, right[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        scores = choose(probe, text[validation], shown[validation], clips[validation], look, moments)
        value = float(scores.sum(0).gather(1, right[validation][:, None]).mean())
        if value > best:
            best, kept = value, {name: v.clone() for name, v in probe.state_dict().items()}
    probe.load_state_dict(kept)


@torch.no_grad()
def choose(probe: Probe, text: Tensor, shown: Tensor, clips: Tensor, look: Look, moments: int = 1) -> Tensor:
    """Log-probabilities of the options at each moment: (moments, N, O)."""
    probe.eval()
    scores = []
    for moment in range(moments):
        parts = [
            probe(
                text[rows],
                shown[rows],
                look(clips[rows], torch.full_like(rows, moment)),
                torch.full_like(rows, moment),
            )
            for rows in torch.arange(len(clips)).split(512)
        ]
        scores.append(torch.cat(parts))
    return torch.stack(scores)


def habits(trained: Sequence[Asked], tested: Sequence[Asked]) -> dict[str, list[bool]]:
    """Whether each test question is answered by a habit of the training questions.

    The habits: the place that is right most often, the longer or the shorter options, and the option that was
    right most often where it was shown.
    """
    places = Counter(asked.right for asked in trained)
    place = places.most_common(1)[0][0]
    longest, shortest = (
        sum(asked.right == extreme(asked.options, sign) for asked in trained) for sign in (1, -1)
    )
    sign = 1 if longest >= shortest else -1
    shown = Counter(option for asked in trained for option in asked.options)
    right = Counter(asked.options[asked.right] for asked in trained)
    favourite = [
        max(range(len(a.options)), key=lambda i, a=a: right[a.options[i]] / shown.get(a.options[i], 1))
        for a in tested
    ]
    return {
        "place": [asked.right == min(place, len(asked.options) - 1) for asked in tested],
        "length": [asked.right == extreme(asked.options, sign) for asked in tested],
        "frequency": [asked.right == choice for asked, choice in zip(tested, favourite, strict=True)],
    }


def extreme(options: Sequence[str], sign: int) -> int:
    """The place of the longest option (sign 1) or the shortest (-1)."""
    return max(range(len(options)), key=lambda i: sign * len(options[i]))
