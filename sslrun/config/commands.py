"""The commands: what is typed, and what a run of each leaves behind."""

from dataclasses import dataclass
from typing import Literal

FROM_CHECKPOINT = "from_checkpoint"  # the choice in a config group that leaves it to the checkpoint
TASKS = "pretext"  # the config group of what a network is pretrained on
PRETRAIN, FINETUNE, EVALUATE, PREDICT, COMPARE = "pretrain", "finetune", "evaluate", "predict", "compare"


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        about: a sentence for `sslrun --help`.
        images: whether it takes names of pictures as they are.
        gives: the trained network that its runs hold.
        of_data: whether it is typed as `sslrun data COMMAND`; such a run is no run to be listed.
        one_go: nothing is lost of it when it is stopped.
    """

    about: str
    images: bool = False
    gives: Literal["encoder", "classifier"] | None = None
    of_data: bool = False
    one_go: bool = False


COMMANDS = {
    PRETRAIN: Command("Learn features from pictures without their labels.", gives="encoder"),
    FINETUNE: Command("Make a classifier from few labels.", gives="classifier"),
    EVALUATE: Command("Measure a classifier on the test split."),
    PREDICT: Command("Name what is on pictures.", images=True, one_go=True),
    "embed": Command("Turn pictures into features, and draw them on a map.", images=True, one_go=True),
    "search": Command("Find the pictures that look most like one.", images=True, one_go=True),
    "suggest": Command("Choose the pictures to label first.", images=True, one_go=True),
    "export": Command("Take a classifier, or its backbone, to where sslrun is not.", one_go=True),
    COMPARE: Command("Does pretraining help, and from how many labels on?"),
    "fetch": Command("Have a published data set where it belongs.", of_data=True),
    "check": Command("Look a data set over before training on it.", of_data=True),
    "preview": Command("Draw what a network is shown of it.", of_data=True),
}
LISTED = tuple(name for name, c in COMMANDS.items() if not c.of_data)
FOR_ENCODER = tuple(name for name, c in COMMANDS.items() if c.gives == "encoder")
WITH_ENCODER = tuple(name for name, c in COMMANDS.items() if c.gives)
WITH_CLASSIFIER = tuple(name for name, c in COMMANDS.items() if c.gives == "classifier")


def typed(command: str) -> str:
    """Return what is typed to run a command."""
    return f"sslrun data {command}" if COMMANDS[command].of_data else f"sslrun {command}"
